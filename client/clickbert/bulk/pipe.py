"""Scored rows that go straight into a pipe."""

import os
import sys
from collections.abc import Callable

from clickbert.bulk.journal import Done
from clickbert.bulk.output import write_all, writing
from clickbert.bulk.rows import Row
from clickbert.bulk.threads import in_thread


class Pipe:
    """Standard output, or what is no regular file: rows leave at once, and bad ones are named on stderr.

    Its reader may stall, so all of it is done in threads.
    """

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self._name, self._say = name, say
        self._descriptor = -1  # none, or one that a thread is writing to: that one is left to the process's end

    async def begin(self, header: bytes) -> Done:
        """Open it."""
        with writing(self._name):
            self._descriptor = await in_thread(self._open)
        await self.add(header, [])
        return Done()

    async def add(self, rows: bytes, bad: list[Row]) -> None:
        """Send rows."""
        descriptor, self._descriptor = self._descriptor, -1

        def send() -> None:
            for row in bad:
                self._say(f"bad row in line {row.line:,}: {row.reason}")
            write_all(descriptor, rows)

        with writing(self._name):
            await in_thread(send)
        self._descriptor = descriptor

    async def commit(self, done: Done) -> Done:
        """Do nothing: a pipe keeps nothing."""
        return done

    async def finish(self, done: Done) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Close it, unless it is the process's own."""
        if self._name != "-" and self._descriptor >= 0:
            os.close(self._descriptor)

    def _open(self) -> int:
        return sys.stdout.fileno() if self._name == "-" else os.open(self._name, os.O_WRONLY)
