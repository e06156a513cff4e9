"""Uses the whole: the demo, the benchmark and its parts, and the figures behind decisions.

    python -m benchmarks demo
    python -m benchmarks saturate
    python -m benchmarks load --users 16 --duration 60
    python -m benchmarks tune --model clickbert_onnx_int8
    python -m benchmarks baselines | echo | gpu

The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

# Each module has `add_arguments`, `run`, which returns the exit code, and EXPECTED, the errors that it raises. Only the
# one that is asked for is imported.
COMMANDS = {
    "demo": ("benchmarks.demo", "the whole way on real parts"),
    "saturate": ("benchmarks.saturate", "`make benchmark`: every engine up to saturation, beside its ceiling"),
    "load": ("benchmarks.load", "one load by Locust on one model"),
    "tune": ("benchmarks.tune", "find a model's settings for this machine"),
    "baselines": ("benchmarks.baselines.cpu", "beside PyTorch, and beside a rerank server"),
    "echo": ("benchmarks.echo", "what the client costs"),
    "gpu": ("benchmarks.baselines.gpu", "TensorRT plans beside PyTorch FP16"),
}


def main(arguments: Sequence[str] | None = None, **settings: Any) -> int:
    """The command. Returns the exit code: 0, 1 failed (says why), 2 usage, 130 interrupted.

    Args:
        arguments: the command line's words; None: the process's own.
        settings: for the command's `run`, beside its options: schedules and limits.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    asked = next((word for word in words if not word.startswith("-")), "")
    module: Any = import_module(COMMANDS[asked][0]) if asked in COMMANDS else None
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, text) in COMMANDS.items():
        command = commands.add_parser(
            name, help=text, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        if name == asked:
            command.description = module.__doc__
            module.add_arguments(command)
    options = parser.parse_args(words)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup asks to live on
            signal.signal(number, signal.default_int_handler)  # as Ctrl-C: the server that this started ends, too
    try:
        return int(module.run(options, **settings))
    except (*module.EXPECTED, OSError) as exc:
        print(f"{asked}: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{asked}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
