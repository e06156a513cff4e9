"""Lets one export or plan build at a time work in a model repository."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class LockError(RuntimeError):
    """The repository cannot be used now; says why. Nothing was changed."""


@contextmanager
def locked(repository: Path) -> Iterator[None]:
    """Keeps others out of the repository until the block ends or the process is killed. Makes it if it is not there.

    Raises:
        LockError: another export is at work in it, or it cannot be made.
    """
    try:
        repository.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(repository, os.O_RDONLY)
    except OSError as exc:
        raise LockError(f"{repository} cannot be used as a model repository: {exc.strerror}") from exc
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise LockError(f"another export is publishing into {repository}; wait for it, then run again") from exc
        yield
    finally:
        os.close(descriptor)
