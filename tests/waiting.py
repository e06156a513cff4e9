"""Waiting for what becomes true by itself."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(what: Callable[[], bool], seconds: float = 60) -> None:
    """Returns when it is true; fails after a minute, or so many seconds."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)
