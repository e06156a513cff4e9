"""Where scored rows go: to a file that grows beside the output until it is whole."""

import fcntl
import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from clickbert.bulk.journal import Done, Journal, sync_folder
from clickbert.bulk.rows import JobError, Row
from clickbert.bulk.threads import in_thread

Finish = Callable[[Path, Path], None]  # makes the second file, in the output's form, of the first


class Output(Protocol):
    """Where a job's rows go."""

    async def begin(self, header: bytes) -> Done:
        """Return what is done already. Raises `JobError` if the output cannot be written, or is not this job's."""

    async def add(self, rows: bytes, bad: list[Row]) -> None:
        """Take the next scored rows, and those that are bad."""

    async def commit(self, done: Done) -> Done:
        """Make sure that what was added stays, and note it; returns what was noted."""

    async def finish(self, done: Done) -> None:
        """Make the whole output of it."""

    def close(self) -> None:
        """Let go of the files."""


class Growing:
    """`OUTPUT.unfinished`, `OUTPUT.bad.jsonl` and `OUTPUT.journal`; at last OUTPUT, made by `finish`, or renamed.

    Without a journal, for an input that cannot be read again, it always begins anew. The file with the bad rows is
    there from the first step to the last, so its lock is the job's: it ends with the process, however that ends.
    """

    def __init__(
        self, path: Path, source: str, job: dict[str, Any] | None, finish: Finish | None, say: Callable[[str], None]
    ) -> None:
        self.path, self._source, self._finish, self._say = path, source, finish, say
        self.unfinished, self.bad, self._finishing, self._journal_path = (
            path.with_name(f"{path.name}.{end}") for end in ("unfinished", "bad.jsonl", "finishing", "journal")
        )
        self._journal = None if job is None else Journal(self._journal_path, job)
        self._rows = self._bad = -1  # descriptors
        self._noted = Done()
        self._is_finishing = False

    async def begin(self, header: bytes) -> Done:
        """Open the files, and cut off what the journal does not count."""
        with writing(str(self.bad)):
            self._bad = _open_locked(self.bad)
        done = self._find_done()
        if done and done.is_complete:
            self._noted = done
            return done
        if self.path.exists():
            raise JobError(f"{self.path} exists already: remove it, or name another output")
        with writing(str(self.unfinished)):
            self._rows = os.open(self.unfinished, os.O_RDWR | os.O_CREAT, 0o666)
            self._noted = done or Done()
            for file, descriptor, size in (
                (self.unfinished, self._rows, self._noted.output_bytes),
                (self.bad, self._bad, self._noted.bad_bytes),
            ):
                if os.fstat(descriptor).st_size < size:
                    raise JobError(f"{file} has lost rows since: remove {self._journal_path} to begin anew")
                os.ftruncate(descriptor, size)
                os.lseek(descriptor, size, os.SEEK_SET)
            if not done:
                write_all(self._rows, header)
        return done or self._commit(self._noted)

    def _find_done(self) -> Done | None:
        if self._journal:
            return self._journal.read()
        if self._journal_path.exists():
            raise JobError(
                f"{self._journal_path} is of a job that was broken off: run that one to its end, or remove the journal"
            )
        return None

    async def add(self, rows: bytes, bad: list[Row]) -> None:
        """Append rows."""
        with writing(str(self.unfinished)):
            write_all(self._rows, rows)
        with writing(str(self.bad)):
            write_all(self._bad, b"".join(map(self._described, bad)))

    async def commit(self, done: Done) -> Done:
        """Have everything on the disk, and then in the journal."""
        return await in_thread(lambda: self._commit(done))

    def _commit(self, done: Done) -> Done:
        with writing(str(self.unfinished)):
            for descriptor in (self._rows, self._bad):
                os.fsync(descriptor)
            rows, bad = (os.lseek(descriptor, 0, os.SEEK_CUR) for descriptor in (self._rows, self._bad))
        done = replace(done, output_bytes=rows, bad_bytes=bad)
        if self._journal:
            with writing(str(self._journal_path)):
                self._journal.write(done)
        self._noted = done
        return done

    async def finish(self, done: Done) -> None:
        """Make the output. After an end in the middle of this, it is done again from where it was."""
        self._is_finishing = True
        await in_thread(lambda: self._make_output(done))

    def _make_output(self, done: Done) -> None:
        try:
            with writing(str(self._finishing)):
                if self.unfinished.exists():
                    self._pass_over_all()
                if self._finishing.exists():
                    if self.path.exists():
                        raise JobError(
                            f"{self.path} has appeared meanwhile: move it away, and run the same command again"
                        )
                    self._finishing.rename(self.path)
                    sync_folder(self.path)
                elif not self.path.exists():  # an end came right after that, and somebody took it away since
                    raise JobError(
                        f"{self.path} was finished, and is gone since: remove {self._journal_path} to begin anew"
                    )
                if not done.bad:
                    self.bad.unlink(missing_ok=True)
                self._journal_path.unlink(missing_ok=True)
        finally:
            self._is_finishing = False

    def _pass_over_all(self) -> None:
        if self._finish:
            self._say(f"writing {self.path}")
            self._finish(self.unfinished, self._finishing)
            with self._finishing.open("rb") as written:
                os.fsync(written.fileno())
            self.unfinished.unlink()  # only now: its absence says that the other one is whole
        else:
            self.unfinished.rename(self._finishing)
        sync_folder(self.path)

    def close(self) -> None:
        """Let go of the files; another process may go on. Files of a job that has done nothing are removed."""
        if self._is_finishing:
            return  # the thread of the last pass still writes: nobody may begin one before this process's end
        try:
            self._remove_nothing_done()
        finally:  # and with them of the lock
            for descriptor in (self._rows, self._bad):
                if descriptor >= 0:
                    os.close(descriptor)
            self._rows = self._bad = -1

    def _remove_nothing_done(self) -> None:
        if self._bad < 0 or self._noted.rows or self._noted.is_complete:
            return
        if self._rows >= 0:
            for path in (self._journal_path, self.unfinished, self.bad):
                path.unlink(missing_ok=True)
        elif not os.fstat(self._bad).st_size:  # refused: it is there for the lock alone
            self.bad.unlink(missing_ok=True)

    def _described(self, row: Row) -> bytes:
        described = {"file": self._source, "line": row.line, "reason": row.reason}
        if row.raw:
            described["raw"] = row.raw.decode(errors="backslashreplace")
        return f"{json.dumps(described, ensure_ascii=False)}\n".encode()


def compress(plain: Path, target: Path) -> None:
    """Make a gzipped file, the same bytes every time."""
    with plain.open("rb") as source, target.open("wb") as file, gzip.GzipFile("", "wb", 6, file, 0) as packed:
        shutil.copyfileobj(source, packed, 2**20)


def _open_locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError as exc:
            os.close(descriptor)
            raise JobError(f"{path} is being written by another process: wait for it") from exc
        except FileNotFoundError:
            pass
        os.close(descriptor)  # the process that had it removed it meanwhile


def write_all(descriptor: int, content: bytes) -> None:
    """Write the whole of it."""
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]


@contextmanager
def writing(name: str) -> Iterator[None]:
    """Raise a `JobError` in place of an OSError."""
    try:
        yield
    except OSError as exc:
        raise JobError(f"cannot write {name}: {exc.strerror or exc}") from exc
