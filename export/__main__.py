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
from typing import Any

ENGINE_NAMES = ("onnx", "onnx_int8", "trt_fp16", "trt_int8")


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0 published, 1 refused (says why), 2 usage, 130 interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["plan"]:
        # In the serving container there is neither PyTorch nor ONNX Runtime.
        from export.plan_command import main as plan  # noqa: PLC0415

        return plan(given[1:])
    return export(given)


def export(arguments: list[str]) -> int:
    """`python -m export` without a subcommand."""
    from export.engines import ENGINES  # noqa: PLC0415 (see main)
    from export.gates import Limits  # noqa: PLC0415
    from export.pipeline import Order, export_checkpoint  # noqa: PLC0415

    options = parse(arguments, Limits)
    try:
        engines = tuple(dict.fromkeys(options.engine or possible_engines()))
        order = Order(
            checkpoint=options.checkpoint,
            repository=options.repository,
            evaluation=options.evaluation,
            calibration=options.calibration or beside(options.evaluation),
            engines=tuple(ENGINES[name] for name in engines),
            limits=Limits(**{field.name: getattr(options, field.name) for field in fields(Limits)}),
            spared=options.keep_fp32,
            sensitivity=options.sensitivity,
            report=options.report,
        )
        result = export_checkpoint(order, say)
    except expected_errors() as exc:
        print(f"export: {exc}\nexport: nothing was published", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("export: interrupted; nothing was published", file=sys.stderr)
        return 130
    print(json.dumps(result))
    return 0


def parse(arguments: list[str], limits: Any) -> argparse.Namespace:
    """Reads the options; ends with code 2 on a wrong one."""
    parser = argparse.ArgumentParser(
        prog="python -m export", description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, default=Path("checkpoints/demo"), help="Hugging Face folder, safetensors")
    add("--repository", type=Path, default=Path("model_repository"), help="Triton model repository")
    add("--engine", action="append", choices=ENGINE_NAMES, help="what to publish; repeatable")
    add("--evaluation", type=Path, default=Path("data/sample/test.jsonl"), help="click log for the gates (.jsonl[.gz])")
    add("--calibration", type=Path, help="click log that INT8 is fitted to (default: train.jsonl[.gz] beside it)")
    add(
        "--keep-fp32",
        type=names,
        default=(),
        metavar="LAYER,...",
        help="layers to spare from INT8 and FP16 (and embeddings.word_embeddings)",
    )
    add("--sensitivity", action="store_true", help="tell which layers cost most, each spared in turn")
    add("--report", type=Path, default=Path("export/report.html"), help="where the page with pictures goes")
    for field in fields(limits):
        option = f"--{field.name.replace('_', '-')}"
        kind = positive if field.name != "tie" else not_negative
        add(option, type=kind, default=field.default, help=f"{field.metadata['help']} (default %(default)g)")
    return parser.parse_args(arguments)


def beside(evaluation: Path) -> Path:
    """The training part of the click log that the evaluation file belongs to."""
    plain, packed = evaluation.with_name("train.jsonl"), evaluation.with_name("train.jsonl.gz")
    return packed if packed.exists() and not plain.exists() else plain


def possible_engines() -> list[str]:
    """What this machine can build: the TensorRT engines only where a plan can be built, too."""
    from export.cuda import load_tensorrt  # noqa: PLC0415
    from export.stamp import PlanError, find_machine  # noqa: PLC0415

    try:
        find_machine(str(load_tensorrt().__version__))
    except PlanError:
        return ["onnx", "onnx_int8"]
    return list(ENGINE_NAMES)


def expected_errors() -> tuple[type[Exception], ...]:
    """What can be wrong with what was given; each says so itself."""
    from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors  # noqa: PLC0415

    from export.calibration import CalibrationError  # noqa: PLC0415
    from export.gates import GateError  # noqa: PLC0415
    from export.graph import GraphError  # noqa: PLC0415
    from export.linears import LayerNameError  # noqa: PLC0415
    from export.lint import LintError  # noqa: PLC0415
    from export.packed import UnsupportedModelError  # noqa: PLC0415
    from export.parity import ParityError  # noqa: PLC0415
    from export.publish import PublishError  # noqa: PLC0415
    from export.stamp import PlanError  # noqa: PLC0415
    from export.typed import TypingError  # noqa: PLC0415
    from finetune.clicklog import ClickLogError  # noqa: PLC0415
    from finetune.metrics import MetricError  # noqa: PLC0415
    from finetune.scoring import CheckpointError  # noqa: PLC0415

    names = ("Fail", "InvalidArgument", "InvalidGraph", "RuntimeException")
    return (
        CalibrationError, CheckpointError, ClickLogError, GateError, GraphError, LayerNameError, LintError, MetricError,
        ParityError, PlanError, PublishError, TypingError, UnsupportedModelError, OSError,
        *(getattr(onnxruntime_errors, name) for name in names),
    )  # fmt: skip


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


def say(step: str) -> None:
    """Progress, on stderr: stdout carries the result."""
    print(f"export: {step}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
