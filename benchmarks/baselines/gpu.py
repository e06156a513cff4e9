"""Compares the published TensorRT plans with PyTorch in FP16, on this GPU: latency and pairs/s at 1, 32 and 256 pairs.

    python -m benchmarks gpu
    python -m benchmarks gpu --checkpoint checkpoints/mine --evaluation my-clicks/test.jsonl

PyTorch pads each batch to its longest pair, eager and compiled; the plans get it packed. Every figure includes the
copies to the GPU and back, and is the median of 50 runs after 10 that do not count. If this Python has no TensorRT, or
its PyTorch no GPU, the other side is measured alone, and the output says so: two Pythons of one machine can take turns.
The last line of the output is one JSON document, with what it was measured on. Figures of a GPU: docs/tensorrt.md.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from benchmarks.measure.schema import Latency, dump
from benchmarks.measure.stats import summarize_latency
from benchmarks.report.tables import make_table, percentile_columns
from export.graph.packing import Logits, Pair, add_longest, pack
from export.plan import newest_versions
from export.tensorrt.runtime import LoadedPlan, load_tensorrt
from finetune.checkpoint.attention import attended, user_tokens
from finetune.checkpoint.load import CheckpointError, load_checkpoint
from finetune.data.clicklog import ClickLogError, read_click_log
from finetune.evaluation.metrics import group_rows
from finetune.evaluation.scoring import pad, tokenize_pairs
from release.names import LOGITS, PLAN_FILE
from release.stamp import PlanError, find_machine

SIZES = (1, 32, 256)
PAIRS_A_REQUEST = 32  # config.pbtxt's limit
WARM_UP, RUNS = 10, 50
EXPECTED = (PlanError, CheckpointError, ClickLogError)

Contender = Callable[[Sequence[Pair]], Logits]


@dataclass(frozen=True)
class Timed:
    """One contender on batches of one size."""

    pairs: int
    contender: str
    latency: Latency
    pairs_per_second: float  # of the median


@dataclass(frozen=True)
class GpuResult:
    """The JSON document; `left_out` says why a side was not measured."""

    machine: str
    torch: str
    left_out: dict[str, str]
    figures: tuple[Timed, ...]


def run(options: argparse.Namespace, runs: int = RUNS) -> int:
    """Measures plans and PyTorch, and prints the figures.

    Raises:
        PlanError: there is no GPU, or nothing to measure on it.
    """
    model, tokenizer, max_length = load_checkpoint(options.checkpoint)
    kept, rows = user_tokens(model.config), read_click_log(options.evaluation)
    pairs = tokenize_pairs(tokenizer, rows, max_length, kept)
    groups = [[pairs[index] for index in members] for members in group_rows(rows)]
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
            contenders |= open_plans(trt, options.repository, stack, once=kept is not None)
        for side, reason in left_out.items():
            print(f"gpu: {side} left out: {reason}", file=sys.stderr)
        if not contenders:
            raise PlanError("there is nothing to measure here; run this on a GPU, with published plans")
        machine = find_machine(tensorrt)
        figures = measure(contenders, groups, SIZES, runs)
    print(show_times(figures))
    print(dump(GpuResult(str(machine), torch.__version__, left_out, figures)))
    return 0


def open_plans(trt: Any, repository: Path, stack: ExitStack, *, once: bool) -> dict[str, Contender]:
    """The newest published plans, by their models' names; `stack` gives their memory back.

    `once`: they compute a user text once.

    Raises:
        PlanError: there is none, or one cannot be run here.
    """
    plans: dict[str, Contender] = {}
    for name, version in newest_versions(repository, None).items():
        if not (version / PLAN_FILE).exists():
            raise PlanError(f"{version} has no plan; build it with `python -m export plan`")
        plans[name] = packed(stack.enter_context(LoadedPlan(trt, (version / PLAN_FILE).read_bytes())), once=once)
    if not plans:
        raise PlanError(f"{repository} holds no published model for TensorRT; publish one with `python -m export`")
    return plans


def padded(model: Any, tokenizer: PreTrainedTokenizerFast) -> Contender:
    """A Hugging Face model on pairs that are padded to the longest of them."""
    device = next(model.parameters()).device

    def compute(pairs: Sequence[Pair]) -> Logits:
        with torch.inference_mode():
            padded = {name: values.to(device) for name, values in pad(tokenizer, pairs).items()}
            batch = attended(model.config, padded)
            if batch["attention_mask"].is_floating_point():
                batch["attention_mask"] = batch["attention_mask"].to(model.dtype)
            logits: Logits = model(**batch).logits.float().cpu().numpy()
        return logits

    return compute


def packed(engine: LoadedPlan, *, once: bool = False) -> Contender:
    """A plan on pairs that are laid end to end, as Triton would merge requests of 32.

    `once`: the plan computes a user text once.
    """

    def compute(pairs: Sequence[Pair]) -> Logits:
        starts = range(0, len(pairs), PAIRS_A_REQUEST)
        requests = [pairs[start : start + PAIRS_A_REQUEST] for start in starts]
        return engine.run(add_longest(pack(requests, once=once)))[LOGITS]

    return compute


def draw(groups: Sequence[Sequence[Pair]], size: int, chance: random.Random) -> list[Pair]:
    """So many pairs of groups that are drawn whole, but for the last one: pairs of a user stand side by side."""
    drawn: list[Pair] = []
    while len(drawn) < size:
        drawn += chance.choice(groups)
    return drawn[:size]


def measure(
    contenders: Mapping[str, Contender], groups: Sequence[Sequence[Pair]], sizes: Sequence[int], runs: int
) -> tuple[Timed, ...]:
    """Each contender at each size, in turn; the same pairs for all, drawn anew for every run."""
    figures = []
    for size in sizes:
        chance = random.Random(size)
        batches = [draw(groups, size, chance) for _ in range(runs)]
        for name, compute in contenders.items():
            for batch in batches[:WARM_UP]:
                compute(batch)
            durations = []
            for batch in batches:
                began = time.perf_counter()
                compute(batch)  # returns when the logits are here
                durations.append(time.perf_counter() - began)
            if latency := summarize_latency(durations):
                figures.append(Timed(size, name, latency, size / median(durations)))
    return tuple(figures)


def show_times(figures: Sequence[Timed]) -> str:
    """A line for each size and contender."""
    columns: dict[str, Callable[[Timed], str]] = {
        "contender": lambda one: one.contender,
        "pairs": lambda one: str(one.pairs),
        "pairs/s": lambda one: f"{one.pairs_per_second:.0f}",
        **percentile_columns(lambda one: one.latency, digits=2),
    }
    return make_table(columns, figures).text()
