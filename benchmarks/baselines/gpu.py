"""The published TensorRT plans beside PyTorch in FP16, on this GPU: latency and pairs/s at 1, 32 and 256 pairs.

    python -m benchmarks gpu
    python -m benchmarks gpu --checkpoint checkpoints/mine --evaluation my-clicks/test.jsonl

PyTorch pads each batch to its longest pair, eager and compiled; the plans get it packed. Every figure includes the
copies to the GPU and back, and is the median of 50 runs after 10 that do not count. Where this Python has no TensorRT,
or its PyTorch no GPU, the other side is measured alone, and it says so: two Pythons of one machine can take turns. The
last line of the output is one JSON document, with what it was measured on. What was seen on a GPU: docs/tensorrt.md.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from export.graph.packing import Logits, Pair, add_longest, pack
from export.tensorrt.command import newest_versions
from export.tensorrt.runtime import LoadedPlan, load_tensorrt
from finetune.checkpoint.load import load_checkpoint
from finetune.data.clicklog import read_click_log
from finetune.scoring import pad, tokenize_pairs
from release.names import PLAN_FILE
from release.stamp import PlanError, find_machine

SIZES = (1, 32, 256)
PAIRS_A_REQUEST = 32  # config.pbtxt's limit
WARM_UP, RUNS = 10, 50

Contender = Callable[[Sequence[Pair]], Logits]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/demo"), help="Hugging Face folder")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="with the plans of it")
    parser.add_argument("--evaluation", type=Path, default=Path("data/sample/test.jsonl"), help="click log")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measures plans and PyTorch, and returns the figures.

    Raises:
        PlanError: there is no GPU, or nothing to measure on it.
    """
    model, tokenizer, max_length = load_checkpoint(options.checkpoint)
    pairs = tokenize_pairs(tokenizer, read_click_log(options.evaluation), max_length)
    left_out = {}
    contenders: dict[str, Contender] = {}
    if torch.cuda.is_available():
        model = model.half().to("cuda")  # type: ignore[no-untyped-call]
        contenders["PyTorch FP16, eager"] = padded(model, tokenizer)
        contenders["PyTorch FP16, compiled"] = padded(torch.compile(model, dynamic=True), tokenizer)
    else:
        left_out["PyTorch"] = f"PyTorch {torch.__version__} finds no GPU"
    with ExitStack() as stack:
        try:
            trt = load_tensorrt()
        except PlanError as exc:
            left_out["plans"], tensorrt = str(exc), "not used"
        else:
            tensorrt = str(trt.__version__)
            contenders |= open_plans(trt, options.repository, stack)
        for side, reason in left_out.items():
            print(f"gpu: {side} left out: {reason}", file=sys.stderr)
        if not contenders:
            raise PlanError("there is nothing to measure here; run this on a GPU, with published plans")
        machine = find_machine(tensorrt)
        figures = measure(contenders, pairs, SIZES)
    print(table(figures))
    return {"machine": str(machine), "torch": torch.__version__, "left_out": left_out, "figures": figures}


def open_plans(trt: Any, repository: Path, stack: ExitStack) -> dict[str, Contender]:
    """The newest published plans, by their models' names; `stack` gives their memory back.

    Raises:
        PlanError: there is none, or one cannot be run here.
    """
    plans: dict[str, Contender] = {}
    for name, version in newest_versions(repository, None).items():
        if not (version / PLAN_FILE).exists():
            raise PlanError(f"{version} has no plan; build it with `python -m export plan`")
        plans[name] = packed(stack.enter_context(LoadedPlan(trt, (version / PLAN_FILE).read_bytes())))
    if not plans:
        raise PlanError(f"{repository} holds no published model for TensorRT; publish one with `python -m export`")
    return plans


def padded(model: Any, tokenizer: PreTrainedTokenizerFast) -> Contender:
    """A Hugging Face model on pairs that are padded to the longest of them."""
    device = next(model.parameters()).device

    def compute(pairs: Sequence[Pair]) -> Logits:
        with torch.inference_mode():
            batch = {name: values.to(device) for name, values in pad(tokenizer, pairs).items()}
            logits: Logits = model(**batch).logits.float().cpu().numpy()
        return logits

    return compute


def packed(engine: LoadedPlan) -> Contender:
    """A plan on pairs that are laid end to end, as Triton would merge requests of 32."""

    def compute(pairs: Sequence[Pair]) -> Logits:
        return engine.run(add_longest(pack(requests(pairs))))

    return compute


def requests(pairs: Sequence[Pair]) -> list[Sequence[Pair]]:
    """Pairs as requests of the largest size."""
    return [pairs[start : start + PAIRS_A_REQUEST] for start in range(0, len(pairs), PAIRS_A_REQUEST)]


def measure(
    contenders: Mapping[str, Contender], pairs: Sequence[Pair], sizes: Sequence[int]
) -> dict[int, dict[str, dict[str, float]]]:
    """Each contender's figures at each size, in turn; the same pairs for all, drawn anew for every run.

    Returns:
        By size and contender: "median_ms", "p99_ms", "pairs_per_second" (of the median).
    """
    figures: dict[int, dict[str, dict[str, float]]] = {}
    for size in sizes:
        chance = random.Random(size)
        batches = [chance.choices(pairs, k=size) for _ in range(RUNS)]
        figures[size] = {}
        for name, compute in contenders.items():
            for batch in batches[:WARM_UP]:
                compute(batch)
            took = []
            for batch in batches:
                began = time.perf_counter()
                compute(batch)  # returns when the logits are here
                took.append(time.perf_counter() - began)
            median = float(np.median(took))
            figures[size][name] = {
                "median_ms": 1000 * median,
                "p99_ms": 1000 * float(np.percentile(took, 99)),
                "pairs_per_second": size / median,
            }
    return figures


def table(figures: dict[int, dict[str, dict[str, float]]]) -> str:
    """A line for each size and contender."""
    lines = [f"{'pairs':>6}  {'contender':<24}{'median ms':>12}{'p99 ms':>12}{'pairs/s':>12}"]
    lines += [
        f"{size:>6}  {name:<24}{one['median_ms']:>12.2f}{one['p99_ms']:>12.2f}{one['pairs_per_second']:>12.0f}"
        for size, found in figures.items()
        for name, one in found.items()
    ]
    return "\n".join(lines)
