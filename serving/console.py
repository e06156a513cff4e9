"""The output of a process that must go on when its log's disk is full."""

from __future__ import annotations

import io
import sys


class Lossy(io.FileIO):
    """A descriptor that takes everything, and loses what cannot be written."""

    def write(self, data: object) -> int:
        """Writes bytes; returns how many, as if all were."""
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError:
            return len(data)  # type: ignore[arg-type]


def lose_what_cannot_be_written() -> None:
    """From now on a message that cannot be written to stdout or stderr is lost, and raises nothing."""
    sys.stdout = io.TextIOWrapper(Lossy(1, "w", closefd=False), write_through=True, errors="backslashreplace")
    sys.stderr = io.TextIOWrapper(Lossy(2, "w", closefd=False), write_through=True, errors="backslashreplace")
