"""Who may change a model repository: one at a time, and never for long.

An export or a plan build works for minutes, and a rollback must not wait for it. So what it works in, a folder that
nothing serves yet, is its own (`held`), and the repository (`locked`) only while something there is renamed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class LockError(RuntimeError):
    """A folder cannot be used now; says why. Nothing was changed."""


@contextmanager
def locked(repository: Path, *, wait: bool = False) -> Iterator[None]:
    """Keeps others from changing the repository until the block ends. Makes it if it is not there.

    Args:
        wait: for whoever has it now; for those who would lose the work of minutes.

    Raises:
        LockError: a load is at work in it, or an export is just publishing; or it cannot be made.
    """
    try:
        repository.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise LockError(f"{repository} cannot be used as a model repository: {exc.strerror}") from exc
    why = f"a load is at work in {repository}, or an export is just publishing there; wait for it, then run again"
    with held(repository, why, wait=wait):
        yield


@contextmanager
def held(folder: Path, why: str, *, wait: bool = False) -> Iterator[None]:
    """Keeps a folder, whatever it is renamed to, until the block ends or the process is killed.

    Args:
        why: what is said where somebody else has it.
        wait: until it is free.

    Raises:
        LockError: somebody else has it, or it cannot be read.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as exc:
        raise LockError(f"{folder} cannot be used: {exc.strerror}") from exc
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as exc:
            raise LockError(why) from exc
        yield
    finally:
        os.close(descriptor)
