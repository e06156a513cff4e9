"""Uses the whole: the demo of the whole way, load on a served model, and the candidates for INT8 on CPUs.

    python -m benchmarks demo
    python -m benchmarks load
    python -m benchmarks load --url localhost:8001 --users 16 --duration 60
    python -m benchmarks candidates
    python -m benchmarks gpu

The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys

from benchmarks import candidates, demo, gpu, load
from clickbert import ClickBertError
from export.calibration import CalibrationError
from export.stamp import PlanError
from finetune.clicklog import ClickLogError
from finetune.metrics import MetricError
from finetune.scoring import CheckpointError
from serving.triton import ServingError

EXPECTED = (
    demo.DemoError, ServingError, PlanError, CalibrationError, CheckpointError, ClickBertError, ClickLogError,
    MetricError, OSError,
)  # fmt: skip


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
    load.add_arguments(commands.add_parser("load", help="measure under load by Locust", allow_abbrev=False))
    candidates.add_arguments(commands.add_parser("candidates", help="ways to compute in INT8", allow_abbrev=False))
    gpu.add_arguments(commands.add_parser("gpu", help="TensorRT plans beside PyTorch FP16", allow_abbrev=False))
    options = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup asks to live on
            signal.signal(number, signal.default_int_handler)  # as Ctrl-C: the server that this started ends, too
    try:
        if options.command == "load":
            return load.run(options)
        measured = {"candidates": candidates.run, "gpu": gpu.run}.get(options.command, lambda _: demo.run())(options)
        print(json.dumps(measured, ensure_ascii=False))
    except EXPECTED as exc:
        print(f"{options.command}: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{options.command}: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
