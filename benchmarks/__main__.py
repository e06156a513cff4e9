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
import json
import signal
import sys
from typing import Any

from benchmarks import demo, echo, load, saturate, tune
from benchmarks.baselines import cpu as baselines
from benchmarks.baselines import gpu, peer
from benchmarks.load_gen.target import LoadError
from benchmarks.load_gen.workload import WorkloadError
from clickbert import ClickBertError
from export.quantize.calibration import CalibrationError
from finetune.checkpoint.load import CheckpointError
from finetune.data.clicklog import ClickLogError
from finetune.metrics import MetricError
from release.stamp import PlanError
from serving.triton import ServingError

EXPECTED = (
    LoadError, WorkloadError, baselines.BaselineError, peer.PeerError, demo.DemoError, ServingError, PlanError,
    CalibrationError, CheckpointError, ClickBertError, ClickLogError, MetricError, OSError,
)  # fmt: skip

# Each has `add_arguments` and `run`, which returns its JSON document, or the exit code where it printed everything.
COMMANDS: dict[str, tuple[Any, str]] = {
    "saturate": (saturate, "`make benchmark`: every engine up to saturation, beside its ceiling"),
    "load": (load, "one load by Locust on one model"),
    "tune": (tune, "find a model's settings for this machine"),
    "baselines": (baselines, "beside PyTorch, and beside a rerank server"),
    "echo": (echo, "what the client costs"),
    "gpu": (gpu, "TensorRT plans beside PyTorch FP16"),
}


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0, 1 failed (says why), 2 usage, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("demo", help="the whole way on real parts", allow_abbrev=False)
    for name, (module, text) in COMMANDS.items():
        module.add_arguments(
            commands.add_parser(
                name,
                help=text,
                description=module.__doc__,
                formatter_class=argparse.RawDescriptionHelpFormatter,
                allow_abbrev=False,
            )
        )
    options = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup asks to live on
            signal.signal(number, signal.default_int_handler)  # as Ctrl-C: the server that this started ends, too
    try:
        if options.command == "demo":
            print(json.dumps(demo.run(), ensure_ascii=False))
            return 0
        outcome = COMMANDS[options.command][0].run(options)
        if isinstance(outcome, int):
            return outcome
        print(json.dumps(outcome, ensure_ascii=False))
    except EXPECTED as exc:
        print(f"{options.command}: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{options.command}: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
