"""Turns a fine-tuned click model into published versions, and proves that each keeps the ranking.

The checkpoint becomes the packed (padding-free) ONNX graph, and the graph becomes the engines. Before anything is
published, each engine's logits, metrics and order are compared with the checkpoint's in PyTorch, on the evaluation
file. If a gate fails, nothing is published, and the report says why.

    python -m export
    python -m export --checkpoint checkpoints/demo --engine onnx --engine onnx_int8
    python -m export --checkpoint my-bert --evaluation my-clicks/test.jsonl.gz --calibration my-clicks/train.jsonl.gz
    python -m export --engine onnx_int8 --sensitivity
    python -m export --engine onnx_int8 --keep-fp32 layers.5,pooler
    python -m export plan                       builds TensorRT plans on this GPU, of what was published

Without --engine, every engine is built that this machine can build: those for TensorRT need TensorRT and a GPU. The
last line of the output is one JSON document: the version, and each model's parity, comparison, gate, size and speed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from export.engines import find_engines, find_gates
from export.verify.gates import COMMON_LIMITS, Limit


def main(arguments: list[str]) -> int:
    """The command. Returns the exit code: 0 published, 1 refused (says why), 2 usage, 130 interrupted."""
    options = parse(arguments)
    try:
        # PyTorch, Transformers and ONNX Runtime take seconds to import, which `--help` need not wait for.
        from export.pipeline import REFUSALS, ExportRequest, export_checkpoint  # noqa: PLC0415

        known = find_engines()
        chosen = dict.fromkeys(options.engine or [name for name, one in known.items() if one.missing() is None])
        request = ExportRequest(
            checkpoint=options.checkpoint,
            repository=options.repository,
            evaluation=options.evaluation,
            engines=tuple(known[name] for name in chosen),
            calibration=options.calibration,
            limits={limit.name: getattr(options, limit.name) for limit in find_limits()},
            keep_fp32=options.keep_fp32,
            click_label=options.click_label,
            sensitivity=options.sensitivity,
            report=options.report,
            command=shlex.join(["python", "-m", "export", *arguments]),
        )
        try:
            published = export_checkpoint(request, say)
        except REFUSALS as exc:
            print(f"export: {exc}\nexport: nothing was published", file=sys.stderr)
            return 1
    except KeyboardInterrupt:
        print("export: interrupted; a version is published whole or not at all", file=sys.stderr)
        return 130
    print(json.dumps(asdict(published)))
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the options; ends with code 2 on a wrong one."""
    parser = argparse.ArgumentParser(
        prog="python -m export", description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, default=Path("checkpoints/demo"), help="Hugging Face folder, safetensors")
    add("--repository", type=Path, default=Path("model_repository"), help="Triton model repository")
    add("--engine", action="append", choices=list(find_engines()), help="what to publish; repeatable")
    add("--evaluation", type=Path, default=Path("data/sample/test.jsonl"), help="click log for the gates (.jsonl[.gz])")
    add("--calibration", type=Path, help="click log that INT8 is fitted to (default: train.jsonl[.gz] beside it)")
    add("--click-label", metavar="LABEL", help="the label that means a click: its name or its index")
    add(
        "--keep-fp32",
        type=names,
        default=(),
        metavar="LAYER,...",
        help="layers that stay in float32, or what their names begin with",
    )
    add("--sensitivity", action="store_true", help="show which layers cost most: keep each in float32 in turn")
    add("--report", type=Path, default=Path("export/report.html"), help="where to write the page with pictures")
    for limit in find_limits():
        option = f"--{limit.name.replace('_', '-')}"
        add(option, type=number, default=limit.default, help=f"{limit.help} (default %(default)g)")
    return parser.parse_args(arguments)


def find_limits() -> list[Limit]:
    """Every limit that the user can choose: those of all engines' gates, and those that no engine owns."""
    return list({limit.name: limit for limit in (*find_gates(), *COMMON_LIMITS)}.values())


def names(text: str) -> tuple[str, ...]:
    """Comma-separated names."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def number(text: str) -> float:
    """A finite number, 0 or more: every comparison with NaN would pass."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of 0 or more")
    return value


def say(step: str) -> None:
    """Progress, on stderr: stdout carries the result."""
    print(f"export: {step}", file=sys.stderr, flush=True)
