"""The demo, and load on a served model. Run it as `python -m benchmarks`."""

import sys


class BenchmarkError(RuntimeError):
    """There are no figures; the message says what is wrong and what to do."""


def say(command: str, line: str) -> None:
    """A command's progress, on stderr: stdout carries its result."""
    print(f"{command}: {line}", file=sys.stderr, flush=True)
