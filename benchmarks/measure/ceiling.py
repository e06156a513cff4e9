"""The engine's own ceiling: the published graph called in process, without server, client or network.

The same pairs as the load's, packed and cut before the clock starts, and the best of the ways to use the cores and
of some chunk sizes. A server on the same cores has more to do; what it can save is that it cuts requests together.

Not known here: how the server cuts and schedules.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import Any

import numpy as np
import onnxruntime

from clickbert.tokenization import PackedPairs
from export.graph.packing import add_longest
from export.tensorrt.runtime import LoadedPlan, load_tensorrt
from release.hardware import keep_products_whole
from release.names import COUNT_INPUTS, LOGITS, MODEL_FILE, PLAN_FILE, REQUEST_INPUTS
from serving.backends.onnxruntime.chunks import Array, Arrays, cut
from serving.backends.onnxruntime.workers import start_workers, usable_cores

BUDGETS = (256, 512, 1024, None)  # `segments x longest` of a chunk; None: a request as it comes
QUICK = 10  # requests on which the layouts are tried first
FINALISTS = 2
ROUND_SECONDS = 2.5  # at least; one turn may take longer
LENGTHS = REQUEST_INPUTS[-1]
Turn = Callable[[Sequence[PackedPairs]], float]  # computes requests; returns pairs per second


@dataclass(frozen=True)
class Layout:
    """A way to use the cores: so many chunks at a time, so many threads each; requests cut to chunks of `budget`."""

    workers: int
    threads: int
    budget: int | None

    def __str__(self) -> str:
        chunks = "whole requests" if self.budget is None else f"chunks of {self.budget}"
        return f"{self.workers} at a time, {self.threads} threads each, {chunks}"


@dataclass(frozen=True)
class Merged:
    """A way to use a GPU: so many requests at a time."""

    requests: int

    def __str__(self) -> str:
        return f"{self.requests} requests at a time"


@dataclass
class Ceiling:
    """A published version in process, by the best layout; measured a round at a time, between the loads.

    Attributes:
        layout: the best one.
        tried: pairs per second of all that were tried.
        turn: computes the requests once; returns pairs per second.
        rounds: what `measure` found.
    """

    layout: Layout | Merged
    tried: dict[str, float]
    turn: Callable[[], float]
    rounds: list[float] = field(default_factory=list)

    def measure(self) -> None:
        """One more round: turns until ROUND_SECONDS have passed."""
        began, speeds = time.perf_counter(), [self.turn()]
        while time.perf_counter() - began < ROUND_SECONDS:
            speeds.append(self.turn())
        self.rounds.append(harmonic_mean(speeds))  # all pairs / all seconds, since each turn has the same pairs

    def facts(self) -> dict[str, Any]:
        """For a result file: the rounds and their mean, the layout in words, whether it is on the CPU."""
        return {
            "pairs_per_second": fmean(self.rounds) if self.rounds else None,
            "layout": str(self.layout),
            "rounds": self.rounds,
            "tried": self.tried,
            "on_cpu": isinstance(self.layout, Layout),
        }


MERGED = (Merged(1), Merged(4), Merged(8))


def find_ceiling(version: Path, packed: Sequence[PackedPairs]) -> Ceiling:
    """The fastest way to compute given requests with a published version.

    All layouts take one turn on the first QUICK of the requests, and the FINALISTS fastest then one on all.

    Args:
        version: its folder, with an ONNX graph or a TensorRT plan.
        packed: the requests.

    Raises:
        PlanError: a plan cannot be run here.
    """
    ways: dict[Layout | Merged, Turn]
    if (version / PLAN_FILE).exists():
        ways = {layout: partial(run_plan, version / PLAN_FILE, layout) for layout in MERGED}
    else:
        cores = usable_cores()
        ways = {}
        for workers, threads in dict.fromkeys(((1, cores), (cores, 1))):
            run = open_graph(version / MODEL_FILE, threads)
            layouts = [Layout(workers, threads, budget) for budget in BUDGETS]
            ways |= {layout: partial(run_graph, run, layout) for layout in layouts}
            ways[layouts[0]](packed[:3])  # memory, caches
    tried = {layout: turn(packed[:QUICK]) for layout, turn in ways.items()}
    finalists = sorted(ways, key=lambda layout: -tried[layout])[:FINALISTS]
    best = max(finalists, key=lambda layout: ways[layout](packed))
    return Ceiling(best, {str(layout): speed for layout, speed in tried.items()}, partial(ways[best], packed))


def run_graph(run: Callable[[Arrays], Array], layout: Layout, requests: Sequence[PackedPairs]) -> float:
    """Pairs per second of a graph on requests."""
    feeds = cut_requests(requests, layout.budget)
    return pairs(requests) / drain(run, layout.workers, feeds)


def run_plan(plan: Path, layout: Merged, requests: Sequence[PackedPairs]) -> float:
    """Pairs per second of a TensorRT plan on requests."""
    starts = range(0, len(requests), layout.requests)
    feeds = [add_longest(to_feed(to_requests(requests[start : start + layout.requests]))) for start in starts]
    with LoadedPlan(load_tensorrt(), plan.read_bytes()) as engine:
        engine.run(feeds[0])
        began = time.perf_counter()
        for feed in feeds:
            engine.run(feed)
        return pairs(requests) / (time.perf_counter() - began)


def pairs(requests: Sequence[PackedPairs]) -> int:
    """How many pairs requests have."""
    return sum(len(each.lengths) for each in requests)


def open_graph(graph: Path, threads: int) -> Callable[[Arrays], Array]:
    """A graph as a function of one feed, with so many threads within an operator."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    keep_products_whole(options)
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])

    def run(feed: Arrays) -> Array:
        logits: Array = session.run([LOGITS], feed)[0]
        return logits

    return run


def drain(run: Callable[[Arrays], Array], workers: int, feeds: Sequence[Arrays]) -> float:
    """Seconds that one worker, or one on each core, needs for all feeds, each taking the next one that is left."""
    with start_workers(0 if workers > 1 else 1) as pool:
        began = time.perf_counter()
        list(pool.map(run, feeds))
        return time.perf_counter() - began


def cut_requests(packed: Sequence[PackedPairs], budget: int | None) -> list[Arrays]:
    """The graph's feeds: a chunk each, or a request each if there is no budget."""
    requests = to_requests(packed)
    if budget is None:
        return [to_feed([request]) for request in requests]
    chunks = [chunk for request in requests for chunk in cut([request], LENGTHS, budget)]
    return [to_feed([part.inputs for part in chunk]) for chunk in chunks]


def to_requests(packed: Sequence[PackedPairs]) -> list[Arrays]:
    """The inputs of each request as the client sends them, [1, elements] each."""
    return [
        dict(
            zip(
                REQUEST_INPUTS,
                (each.input_ids[np.newaxis], each.token_type_ids[np.newaxis], each.lengths[np.newaxis]),
                strict=True,
            )
        )
        for each in packed
    ]


def to_feed(parts: Sequence[Arrays]) -> Arrays:
    """Requests as Triton merges them: inputs end to end, and how many elements each request brought."""
    feed = {name: np.concatenate([part[name].reshape(-1) for part in parts]) for name in parts[0]}
    for count, name in zip(COUNT_INPUTS, REQUEST_INPUTS, strict=True):
        feed[count] = np.array([part[name].size for part in parts], np.int32)
    return feed
