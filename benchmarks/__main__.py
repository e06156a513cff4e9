"""Runs the demo, the benchmark and its parts, and the measurements behind decisions.

    python -m benchmarks demo
    python -m benchmarks saturate
    python -m benchmarks load --users 16 --duration 60
    python -m benchmarks tune --model clickbert_onnx_int8
    python -m benchmarks soak --minutes 60
    python -m benchmarks plan --rate 5000 --slo p99=50ms --results FILE
    python -m benchmarks capacity --model clickbert_onnx_int8 --texts titles --candidates 20
    python -m benchmarks scheduling | baselines | echo | http | bulk | heads | gpu

The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import options as of_commands


class Command(NamedTuple):
    """A command: its module has `run`, which returns the exit code, and EXPECTED, the errors that it raises."""

    module: str
    help: str
    add_options: Callable[[argparse.ArgumentParser], None]


COMMANDS = {
    "demo": Command("benchmarks.demo", "run the full pipeline", of_commands.demo),
    "saturate": Command(
        "benchmarks.saturate", "`make benchmark`: every engine up to saturation, and its ceiling", of_commands.saturate
    ),
    "load": Command("benchmarks.load", "one load by Locust on one model", of_commands.load),
    "scheduling": Command(
        "benchmarks.scheduling.phases",
        "small requests beside large ones, overload, calls given up",
        of_commands.scheduling,
    ),
    "soak": Command(
        "benchmarks.soak.run", "`make soak`: hours of mixed traffic, and whether anything grows", of_commands.soak
    ),
    "plan": Command("benchmarks.capacity.plan", "how many replicas a load needs", of_commands.plan),
    "capacity": Command(
        "benchmarks.capacity.check", "check what `plan` says with two replicas behind the gateway", of_commands.capacity
    ),
    "tune": Command("benchmarks.tune", "find a model's settings for this machine", of_commands.tune),
    "baselines": Command("benchmarks.baselines.cpu", "compare with PyTorch and a rerank server", of_commands.baselines),
    "echo": Command("benchmarks.echo", "measure what the client costs", of_commands.echo),
    "http": Command("benchmarks.http", "measure what rerank over HTTP adds to a call", of_commands.echo),
    "bulk": Command("benchmarks.bulk", "compare `clickbert score` with the saturated load", of_commands.bulk),
    "heads": Command("benchmarks.heads", "measure what unasked further heads cost", of_commands.heads),
    "gpu": Command("benchmarks.baselines.gpu", "compare TensorRT plans with PyTorch FP16", of_commands.gpu),
}


def main(arguments: Sequence[str] | None = None, **settings: Any) -> int:
    """The command. Returns the exit code: 0, 1 failed (says why), 2 usage, 130 interrupted.

    Args:
        arguments: the command line's words; None: the process's own.
        settings: more arguments for the command's `run`: schedules and limits.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(
            name,
            help=command.help,
            description=read_docstring(command.module),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_options(subparser)
    options = parser.parse_args(arguments)
    module = importlib.import_module(COMMANDS[options.command].module)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup asks to live on
            signal.signal(number, signal.default_int_handler)  # as Ctrl-C: the server that this started ends, too
    try:
        return int(module.run(options, **settings))
    except (*module.EXPECTED, OSError) as exc:
        print(f"{options.command}: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{options.command}: interrupted", file=sys.stderr)
        return 130


def read_docstring(module: str) -> str | None:
    """A module's docstring, read without importing it."""
    spec = importlib.util.find_spec(module)
    assert spec and spec.origin
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.exit(main())
