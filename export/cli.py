"""Turns a fine-tuned click model into published versions, and proves that each keeps the ranking.

The checkpoint becomes the packed (padding-free) ONNX graph, and that the engines. Before anything is published, each
engine's logits, metrics and order are held against the checkpoint in PyTorch on the evaluation file. A failed gate
publishes nothing; the table and the report show what failed, and by how much.

    python -m export
    python -m export --checkpoint checkpoints/demo --engine onnx --engine onnx_int8
    python -m export --checkpoint my-bert --evaluation my-clicks/test.jsonl.gz --calibration my-clicks/train.jsonl.gz
    python -m export --engine onnx_int8 --sensitivity
    python -m export --engine onnx_int8 --keep-fp32 layers.5,pooler
    python -m export plan                       builds TensorRT plans on this GPU, from what was published

Without --engine: onnx and onnx_int8, and the TensorRT engines where TensorRT and a GPU are. The last line of the output
is one JSON document: version, and for each model its parity, comparison, gate, size and speed.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path

from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors

from export.engines.base import ENGINES
from export.graph.lint import LintError
from export.graph.onnx_export import GraphError
from export.graph.packed_bert import UnsupportedModelError
from export.pipeline import ExportRequest, export_checkpoint
from export.publish import PublishError
from export.quantize.calibration import CalibrationError
from export.quantize.linears import LayerNameError
from export.tensorrt.command import say
from export.tensorrt.runtime import load_tensorrt
from export.tensorrt.typed_graph import TypingError
from export.verify.gates import GateError, Limits
from export.verify.parity import ParityError
from finetune.checkpoint.load import CheckpointError
from finetune.data.clicklog import ClickLogError
from finetune.metrics import MetricError
from release.stamp import PlanError, find_machine

# What can be wrong with what was given; each says so itself.
EXPECTED = (
    CalibrationError, CheckpointError, ClickLogError, GateError, GraphError, LayerNameError, LintError, MetricError,
    ParityError, PlanError, PublishError, TypingError, UnsupportedModelError, OSError,
    *(getattr(onnxruntime_errors, name) for name in ("Fail", "InvalidArgument", "InvalidGraph", "RuntimeException")),
)  # fmt: skip


def main(arguments: list[str]) -> int:
    """The command. Returns the exit code: 0 published, 1 refused (says why), 2 usage, 130 interrupted."""
    options = parse(arguments)
    try:
        engines = tuple(dict.fromkeys(options.engine or possible_engines()))
        order = ExportRequest(
            checkpoint=options.checkpoint,
            repository=options.repository,
            evaluation=options.evaluation,
            calibration=options.calibration,
            engines=tuple(ENGINES[name] for name in engines),
            limits=Limits(**{field.name: getattr(options, field.name) for field in fields(Limits)}),
            keep_fp32=options.keep_fp32,
            sensitivity=options.sensitivity,
            report=options.report,
        )
        result = export_checkpoint(order, say)
    except EXPECTED as exc:
        print(f"export: {exc}\nexport: nothing was published", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("export: interrupted; nothing was published", file=sys.stderr)
        return 130
    print(json.dumps(result))
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the options; ends with code 2 on a wrong one."""
    parser = argparse.ArgumentParser(
        prog="python -m export", description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, default=Path("checkpoints/demo"), help="Hugging Face folder, safetensors")
    add("--repository", type=Path, default=Path("model_repository"), help="Triton model repository")
    add("--engine", action="append", choices=list(ENGINES), help="what to publish; repeatable")
    add("--evaluation", type=Path, default=Path("data/sample/test.jsonl"), help="click log for the gates (.jsonl[.gz])")
    add("--calibration", type=Path, help="click log that INT8 is fitted to (default: train.jsonl[.gz] beside it)")
    add(
        "--keep-fp32",
        type=names,
        default=(),
        metavar="LAYER,...",
        help="layers to spare from INT8 and FP16 (and embeddings.word_embeddings)",
    )
    add("--sensitivity", action="store_true", help="tell which layers cost most, each keep_fp32 in turn")
    add("--report", type=Path, default=Path("export/report.html"), help="where the page with pictures goes")
    for field in fields(Limits):
        option = f"--{field.name.replace('_', '-')}"
        kind = positive if field.name != "tie" else not_negative
        add(option, type=kind, default=field.default, help=f"{field.metadata['help']} (default %(default)g)")
    return parser.parse_args(arguments)


def possible_engines() -> list[str]:
    """What this machine can build: the TensorRT engines only where a plan can be built, too."""
    try:
        find_machine(str(load_tensorrt().__version__))
    except PlanError:
        return ["onnx", "onnx_int8"]
    return list(ENGINES)


def names(text: str) -> tuple[str, ...]:
    """Names with commas between."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def positive(text: str) -> float:
    """A finite number over 0: NaN would let every comparison pass."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number over 0")
    return value


def not_negative(text: str) -> float:
    """0, or a finite number over it."""
    return 0.0 if float(text) == 0 else positive(text)
