"""The journal of a job: what is done, so that the same command goes on after any end, even `kill -9`.

It is replaced whole, by a rename, after the rows that it counts are on the disk. What the files hold beyond it is cut
off when the job goes on, so each row is in the output once.
"""

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from clickbert.bulk.rows import JobError, Place

_FORMAT = 1


@dataclass(frozen=True)
class Done:
    """What a job has done so far."""

    offset: int = 0  # the place in the input, as `Place` has it
    line: int = 0
    scored: int = 0  # rows
    bad: int = 0
    output_bytes: int = 0  # of the unfinished output
    bad_bytes: int = 0  # of the file with the bad rows
    versions: dict[str, int] = field(default_factory=dict)  # the rows that each version of the model scored
    first_bad: str = ""  # line and reason
    is_complete: bool = False  # every row was read: only the last pass is missing

    @property
    def place(self) -> Place:
        """Where the next row begins."""
        return Place(self.offset, self.line)

    @property
    def rows(self) -> int:
        """The rows, good and bad."""
        return self.scored + self.bad

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read what `asdict` made. Raises ValueError for anything else."""
        done = cls(**values) if set(values) == {each.name for each in fields(cls)} else None
        kinds = {"versions": dict, "first_bad": str, "is_complete": bool}
        if done is None or not all(isinstance(values[name], kind) for name, kind in kinds.items()):
            raise ValueError("wrong fields")
        numbers = [*(value for name, value in values.items() if name not in kinds), *done.versions.values()]
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError("wrong numbers")
        return done


class Journal:
    """The journal beside an output. `job` is what must be the same to go on: the input and the settings."""

    def __init__(self, path: Path, job: dict[str, Any]) -> None:
        self.path, self._job = path, job

    def read(self) -> Done | None:
        """Return what is done; None if that is nothing. Raises `JobError` if it is another job's, or damaged."""
        try:
            content = json.loads(self.path.read_bytes())
            kind, job, done = content["format"], content["job"], Done.from_json(content["done"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as exc:
            raise JobError(f"{self.path} cannot be read ({type(exc).__name__}): {self._anew}") from exc
        if not done.rows and not done.is_complete:
            return None  # whatever the job was, nothing of it is lost
        if kind != _FORMAT:
            raise JobError(f"{self.path} was written by another release of clickbert: go on with that, or {self._anew}")
        if other := [name for name in self._job if not isinstance(job, dict) or job.get(name) != self._job[name]]:
            raise JobError(
                f"{self.path} is of a job with another {' and another '.join(other)}: run the same command to go on,"
                f" or {self._anew}"
            )
        return done

    def write(self, done: Done) -> None:
        """Replace the journal. Raises OSError, and then it is as before."""
        fresh = self.path.with_name(f"{self.path.name}.new")
        with fresh.open("w", encoding="utf-8") as file:
            json.dump({"format": _FORMAT, "job": self._job, "done": asdict(done)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path)
        sync_folder(self.path)

    @property
    def _anew(self) -> str:
        return f"remove {self.path} to begin anew"


def sync_folder(path: Path) -> None:
    """Have the folder of a file remember its names after a power cut."""
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
