"""Files by which a backend's process shows that it lives, and by which the server's parent sees that one died.

Triton does not say that a backend's process died: the requests that it had taken would wait until their callers give
up, and new ones would fail until the model is loaded anew. A process holds a lock on a file of its own. A lock ends
with its process, however that ends; a process that ends in good order removes its file first. So a file without a lock
is that of a process that died.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import IO

PROCESSES = "processes"


class Presence:
    """The file of this process.

    Args:
        folder: the backend's own folder of the running server.
        name: what the process is for; a part of the file's name.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / PROCESSES / f"{name}.{os.getpid()}"
        self.file: IO[bytes] | None = None
        hidden = self.path.with_name(f".{self.path.name}")
        with contextlib.suppress(OSError):  # a folder that nobody may write to is not looked at by anybody
            self.path.parent.mkdir(exist_ok=True)
            self.file = hidden.open("wb")
            fcntl.flock(self.file, fcntl.LOCK_EX)
            hidden.rename(self.path)  # nobody sees it without its lock

    def leave(self) -> None:
        """Says that the process ends in good order."""
        if self.file:
            self.path.unlink(missing_ok=True)
            self.file.close()


def find_dead(backends: Path) -> list[str]:
    """The names of processes that died, of all backends in a server's folder; reported as long as their files lie.

    The name of a file's process is what `Presence` was given, a dot, and its number.
    """
    dead = []
    for path in sorted(backends.glob(f"*/{PROCESSES}/[!.]*")):
        with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_nlink:  # else it was removed a moment ago, in good order
                dead.append(path.name)
    return dead
