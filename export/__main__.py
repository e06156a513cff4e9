"""Turns a fine-tuned click model into a published version of the model repository, and proves that it kept the ranking.

The checkpoint becomes the packed (padding-free) ONNX graph. Before anything is published, its logits and its order are
held against Hugging Face's own padded forward on every pair of the evaluation file. A failed proof publishes nothing.

    python -m export
    python -m export --checkpoint checkpoints/demo --repository model_repository --evaluation data/sample/test.jsonl
    python -m export --checkpoint my-bert --evaluation my-clicks.jsonl.gz --tolerance 1e-5

The last line of the output is one JSON document: model, version, parity, metrics.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors

from export.graph import GraphError
from export.packed import UnsupportedModelError
from export.parity import ParityError
from export.pipeline import export_checkpoint
from export.publish import PublishError
from finetune.clicklog import ClickLogError
from finetune.metrics import MetricError
from finetune.scoring import CheckpointError

EXPECTED = (
    CheckpointError,
    ClickLogError,
    MetricError,
    UnsupportedModelError,
    GraphError,
    ParityError,
    PublishError,
    OSError,
    *(getattr(onnxruntime_errors, name) for name in ("Fail", "InvalidArgument", "InvalidGraph", "RuntimeException")),
)


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0 published, 1 refused (says why), 2 usage, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m export", description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("checkpoints/demo"), help="Hugging Face folder, safetensors"
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="Triton model repository")
    parser.add_argument(
        "--evaluation", type=Path, default=Path("data/sample/test.jsonl"), help="click log (.jsonl[.gz])"
    )
    parser.add_argument("--tolerance", type=positive, default=1e-4, help="largest difference of a logit (default 1e-4)")
    options = parser.parse_args(arguments)
    try:
        result = export_checkpoint(options.checkpoint, options.repository, options.evaluation, options.tolerance, say)
    except EXPECTED as exc:
        print(f"export: {exc}\nexport: nothing was published", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("export: interrupted; nothing was published", file=sys.stderr)
        return 130
    print(json.dumps(result))
    return 0


def positive(text: str) -> float:
    """A finite number over 0: NaN would let every comparison pass."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number over 0")
    return value


def say(step: str) -> None:
    """Progress, on stderr: stdout carries the result."""
    print(f"export: {step}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
