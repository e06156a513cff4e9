"""Processes of a server under test."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager


def children(process: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True, check=False)
    assert found.returncode in (0, 1), found.stderr  # 1: it has none, or none yet
    return [int(line) for line in found.stdout.split()]


@contextmanager
def paused(processes: list[int]) -> Iterator[None]:
    """They compute nothing inside the block."""
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)
