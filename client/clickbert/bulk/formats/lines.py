"""Lines of a file, of a gzipped one, or of a pipe, with the place after each."""

import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from clickbert.bulk.rows import MOST_BYTES, DamagedError, Place

STDIN = "-"
START = Place()
_BOM = b"\xef\xbb\xbf"


class Lines:
    """The lines after a place. A line is cut once it is longer than a row may be: then it is one byte too long."""

    def __init__(self, name: str, *, gzipped: bool, start: Place = START) -> None:
        self.name = name
        self._files = ExitStack()
        # Not sys.stdin: Python cannot end while a thread waits in that one.
        raw = Path(name).open("rb") if name != STDIN else open(0, "rb", closefd=False)  # noqa: SIM115
        self._raw = self._files.enter_context(raw)
        status = os.fstat(raw.fileno())
        self._size = status.st_size if stat.S_ISREG(status.st_mode) and name != STDIN else None
        self._file: Any = self._files.enter_context(gzip.GzipFile(fileobj=raw)) if gzipped else raw
        self.place = start
        if start.offset:
            self._ask(self._file.seek, start.offset)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line: bytes = self._ask(self._file.readline, MOST_BYTES + 1)
        rest, size = line, len(line)
        while len(rest) == MOST_BYTES + 1 and not rest.endswith(b"\n"):
            rest = self._ask(self._file.readline, MOST_BYTES + 1)
            size += len(rest)
        if not line:
            raise StopIteration
        is_first = not self.place.offset
        self.place = Place(self.place.offset + size, self.place.line + 1)
        return line.removeprefix(_BOM) if is_first else line

    @property
    def share(self) -> float | None:
        """The share of the file that was read; None for a pipe."""
        if self._size is None:
            return None
        return 1.0 if self._raw.closed else min(self._raw.tell() / max(self._size, 1), 1.0)

    def close(self) -> None:
        """Close the file."""
        self._files.close()

    def _ask(self, function: Any, argument: int) -> Any:
        try:
            return function(argument)
        except (OSError, EOFError, zlib.error) as exc:
            raise DamagedError(f"{self.name} cannot be read on after line {self.place.line:,}: {exc}") from exc


def line_break(line: bytes) -> bytes:
    """Return what ends a line, with all carriage returns; a line feed where nothing does."""
    return line[len(line.rstrip(b"\r\n")) :] if line.endswith(b"\n") else b"\n"
