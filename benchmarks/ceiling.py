"""The engine's own ceiling: the published graph called in process, without server, client or network.

The same pairs as the load's, packed and cut before the clock starts, and the best of every way to use the cores and
every chunk size. A server on the same cores has more to do; what it can save is that it cuts requests together.

Not known here: how the server cuts and schedules.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from clickbert.tokenization import PackedPairs
from export.cuda import LoadedPlan, load_tensorrt
from export.names import COUNT_INPUTS, LOGITS, MODEL_FILE, PLAN_FILE, REQUEST_INPUTS
from export.packing import add_longest
from serving.backends.onnxruntime.chunks import Array, Arrays, cut
from serving.backends.onnxruntime.workers import start_workers, usable_cores

BUDGETS = (256, 512, 1024, None)  # `segments x longest` of a chunk; None: a request as it comes
QUICK, MOST = 20, 100  # requests on which the layouts are tried first; that are computed of a long click log
FINALISTS = 2
LENGTHS = REQUEST_INPUTS[-1]


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


@dataclass(frozen=True)
class Ceiling:
    """The best layout, its speed, and all that were tried."""

    pairs_per_second: float
    layout: Layout | Merged
    rounds: list[float]  # the best layout's pairs per second, a round each
    tried: dict[str, float]

    def joined(self, later: Ceiling) -> Ceiling:
        """This one with the rounds of a later measurement of the same layout."""
        rounds = [*self.rounds, *later.rounds]
        return replace(self, pairs_per_second=max(rounds), rounds=rounds)

    def facts(self) -> dict[str, Any]:
        """For a result file; the layout in words."""
        return asdict(self) | {"layout": str(self.layout), "on_cpu": isinstance(self.layout, Layout)}


MERGED = (Merged(1), Merged(4), Merged(8))


def measure_ceiling(version: Path, packed: Sequence[PackedPairs], only: Layout | Merged | None = None) -> Ceiling:
    """Pairs per second of a published version on given requests.

    All layouts take one turn on the first QUICK of the requests, and the FINALISTS fastest then one on the first MOST.

    Args:
        version: its folder, with an ONNX graph or a TensorRT plan.
        packed: the requests, the first MOST of which have the mix of all (`workload.spread`).
        only: the layout that an earlier measurement found; no other is tried.

    Raises:
        PlanError: a plan cannot be run here.
    """
    if (version / PLAN_FILE).exists():
        return measure_plan(version / PLAN_FILE, packed, [only] if isinstance(only, Merged) else MERGED)
    cores = usable_cores()
    ways = dict.fromkeys(((1, cores), (cores, 1)))
    layouts = [Layout(workers, threads, budget) for workers, threads in ways for budget in BUDGETS]
    if isinstance(only, Layout):
        layouts = [only]
    runs = {threads: open_graph(version / MODEL_FILE, threads) for threads in {layout.threads for layout in layouts}}

    def take_turn(layout: Layout, requests: Sequence[PackedPairs]) -> float:
        feeds = cut_requests(requests, layout.budget)
        took = drain(runs[layout.threads], layout.workers, feeds)
        return sum(len(each.lengths) for each in requests) / took

    for layout in (layouts[0], layouts[-1]):
        take_turn(layout, packed[:3])  # memory, caches
    tried = {layout: take_turn(layout, packed[:QUICK]) for layout in layouts}
    finalists = sorted(layouts, key=lambda layout: -tried[layout])[:FINALISTS]
    speeds = {layout: take_turn(layout, packed[:MOST]) for layout in finalists}
    best = max(finalists, key=speeds.__getitem__)
    return Ceiling(speeds[best], best, [speeds[best]], {str(layout): speed for layout, speed in tried.items()})


def measure_plan(plan: Path, packed: Sequence[PackedPairs], layouts: Sequence[Merged]) -> Ceiling:
    """The same of a TensorRT plan, which takes so many requests at a time. (It has not run on a GPU yet.)"""
    packed = packed[:MOST]
    pairs = sum(len(each.lengths) for each in packed)
    speeds: dict[Merged, float] = {}
    with LoadedPlan(load_tensorrt(), plan.read_bytes()) as engine:
        for layout in layouts:
            starts = range(0, len(packed), layout.requests)
            feeds = [add_longest(to_feed(to_requests(packed[start : start + layout.requests]))) for start in starts]
            engine.run(feeds[0])
            began = time.perf_counter()
            for feed in feeds:
                engine.run(feed)
            speeds[layout] = pairs / (time.perf_counter() - began)
    best = max(speeds, key=speeds.__getitem__)
    return Ceiling(speeds[best], best, [speeds[best]], {str(layout): speed for layout, speed in speeds.items()})


def open_graph(graph: Path, threads: int) -> Callable[[Arrays], Array]:
    """A graph as a function of one feed, with so many threads within an operator."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
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
