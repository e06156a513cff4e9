"""The demo, and load on a served model. Run it as `python -m benchmarks`."""

import sys
import time
from collections.abc import Callable

import release  # noqa: F401 (before ONNX Runtime)


class BenchmarkError(RuntimeError):
    """There are no figures; the message says what is wrong and what to do."""


def say(command: str, line: str) -> None:
    """A command's progress, on stderr: stdout carries its result."""
    print(f"{command}: {line}", file=sys.stderr, flush=True)


def wait_for(what: Callable[[], bool], seconds: float) -> bool:
    """Whether it becomes true in time."""
    end = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < end:
        time.sleep(0.2)
    return found
