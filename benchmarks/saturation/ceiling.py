"""The engine's own ceiling: the published graph called in process, without server, client or network.

It computes the load's own pairs, packed and cut before the clock starts, with the fastest of a few layouts. A server
on the same cores has more to do; what it can save is that it cuts several requests together.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import harmonic_mean

import numpy as np
import onnxruntime

from benchmarks.measure.schema import CeilingResult
from benchmarks.saturation.tokens import count_pairs
from clickbert.wire.packing import Packed, PackedUsers
from export.graph.packing import add_longest
from export.tensorrt.runtime import LoadedPlan, load_tensorrt
from release.hardware import keep_products_whole
from release.names import (
    COUNT_INPUTS,
    KEPT,
    KEPT_EARLIER,
    KEPT_PREFIXES,
    LOGITS,
    MODEL_FILE,
    ONCE_COUNT_INPUTS,
    ONCE_REQUEST_INPUTS,
    PLAN_FILE,
    REQUEST_INPUTS,
)
from serving.backends.packed_cpu.cores import start_workers, usable_cores
from serving.backends.packed_cpu.segments import Array, Arrays, Names, cut

BUDGETS = (256, 512, 1024, None)  # `segments x longest` of a chunk; None: a request as it comes
LENGTHS = REQUEST_INPUTS[-1]
COUNTS = dict(zip((*REQUEST_INPUTS, *ONCE_REQUEST_INPUTS), (*COUNT_INPUTS, *ONCE_COUNT_INPUTS), strict=True))
# Feeds that are computed one after another; the first keeps its user text for the others.
Feeds = tuple[Arrays, ...]
Speed = Callable[[Sequence[Packed]], float]  # computes requests; returns pairs per second


@dataclass(frozen=True)
class CoreLayout:
    """A way to use the cores: `workers` chunks at a time, `threads` each; requests are cut to chunks of `budget`."""

    workers: int
    threads: int
    budget: int | None

    def __str__(self) -> str:
        chunks = "whole requests" if self.budget is None else f"chunks of {self.budget}"
        return f"{self.workers} at a time, {self.threads} threads each, {chunks}"


@dataclass(frozen=True)
class MergedLayout:
    """A way to use a GPU: this many requests at a time."""

    requests: int

    def __str__(self) -> str:
        return f"{self.requests} requests at a time"


AnyLayout = CoreLayout | MergedLayout
MERGED = (MergedLayout(1), MergedLayout(4), MergedLayout(8))


@dataclass
class Ceiling:
    """A published version in process, in its fastest layout; measured a round at a time, between the loads."""

    layout: AnyLayout
    tried: Mapping[AnyLayout, float]  # pairs per second of every layout
    turn: Callable[[], float]  # computes the requests once; returns pairs per second
    rounds: list[float] = field(default_factory=list)

    def measure(self, seconds: float) -> None:
        """One more round: turns until this many seconds have passed."""
        began, speeds = time.perf_counter(), [self.turn()]
        while time.perf_counter() - began < seconds:
            speeds.append(self.turn())
        self.rounds.append(harmonic_mean(speeds))  # all pairs / all seconds, since each turn has the same pairs

    def result(self, last: int = 0) -> CeilingResult:
        """All rounds, or the `last` ones."""
        tried = {str(layout): speed for layout, speed in self.tried.items()}
        on_cpu = isinstance(self.layout, CoreLayout)
        return CeilingResult(str(self.layout), on_cpu, tuple(self.rounds[-last:]), tried)


@contextlib.contextmanager
def open_ceiling(version: Path, packed: Sequence[Packed], *, quick: int = 10, finalists: int = 2) -> Iterator[Ceiling]:
    """The fastest way to compute given requests with a published version; what it loaded is freed after the block.

    Every layout takes one turn on the first `quick` requests, and the fastest, the `finalists`, take one on all.

    Raises:
        PlanError: a plan cannot be run here.
    """
    with contextlib.ExitStack() as loaded:
        if (version / PLAN_FILE).exists():
            plan = loaded.enter_context(LoadedPlan(load_tensorrt(), (version / PLAN_FILE).read_bytes()))
            ways: dict[AnyLayout, Speed] = {layout: partial(plan_speed, plan, layout) for layout in MERGED}
        else:
            ways = core_layouts(version / MODEL_FILE)
        for speed in ways.values():
            speed(packed[:1])  # memory, caches
        tried = {layout: speed(packed[:quick]) for layout, speed in ways.items()}
        best = sorted(ways, key=lambda layout: -tried[layout])[:finalists]
        layout = max(best, key=lambda layout: ways[layout](packed))
        yield Ceiling(layout, tried, partial(ways[layout], packed))


def core_layouts(graph: Path) -> dict[AnyLayout, Speed]:
    """The ways to compute a graph on all cores."""
    cores = usable_cores()
    ways: dict[AnyLayout, Speed] = {}
    for workers, threads in dict.fromkeys(((1, cores), (cores, 1))):
        run = open_graph(graph, threads)
        for budget in BUDGETS:
            layout = CoreLayout(workers, threads, budget)
            ways[layout] = partial(graph_speed, run, layout)
    return ways


def graph_speed(run: Callable[[Feeds], Array], layout: CoreLayout, requests: Sequence[Packed]) -> float:
    """Pairs per second of a graph on requests."""
    feeds = cut_requests(requests, layout.budget)
    return count_pairs(requests) / drain(run, layout.workers, feeds)


def plan_speed(plan: LoadedPlan, layout: MergedLayout, requests: Sequence[Packed]) -> float:
    """Pairs per second of a plan on requests."""
    starts = range(0, len(requests), layout.requests)
    feeds = [add_longest(to_feed(to_requests(requests[start : start + layout.requests]))) for start in starts]
    began = time.perf_counter()
    for feed in feeds:
        plan.run(feed)
    return count_pairs(requests) / (time.perf_counter() - began)


def open_graph(graph: Path, threads: int) -> Callable[[Feeds], Array]:
    """A graph as a function of feeds, with this many threads within an operator."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # it warns of inputs that have defaults
    keep_products_whole(options)
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])

    def run(feeds: Feeds) -> Array:
        first, *others = feeds
        logits, *kept = session.run([LOGITS, KEPT] if others else [LOGITS], first)
        further = {KEPT_EARLIER: kept[0], KEPT_PREFIXES: np.array([1], np.int32)} if others else {}
        return np.concatenate([logits, *(session.run([LOGITS], feed | further)[0] for feed in others)])

    return run


def drain(run: Callable[[Feeds], Array], workers: int, feeds: Sequence[Feeds]) -> float:
    """Seconds that one worker, or one on each core, needs for all feeds, each taking the next one that is left."""
    with start_workers(0 if workers > 1 else 1) as pool:
        began = time.perf_counter()
        list(pool.map(run, feeds))
        return time.perf_counter() - began


def cut_requests(packed: Sequence[Packed], budget: int | None) -> list[Feeds]:
    """The graph's feeds: a chunk each, or a request each if there is no budget; what shares a user text, together."""
    found: list[Feeds] = []
    for each, request in zip(packed, to_requests(packed), strict=True):
        names = Names(LENGTHS, *ONCE_REQUEST_INPUTS[1:3]) if isinstance(each, PackedUsers) else Names(LENGTHS)
        parts = [request] if budget is None else cut(request, names, budget)
        feeds = tuple(to_feed([part]) for part in parts)
        found += [feeds] if names.prefix_lengths else [(feed,) for feed in feeds]
    return found


def to_requests(packed: Sequence[Packed]) -> list[Arrays]:
    """The inputs of each request as the client sends them, [1, elements] each."""
    return [{name: array[np.newaxis] for name, array in vars(each).items()} for each in packed]


def to_feed(parts: Sequence[Arrays]) -> Arrays:
    """Requests as Triton merges them: inputs end to end, and how many elements each request brought."""
    feed = {name: np.concatenate([part[name].reshape(-1) for part in parts]) for name in parts[0]}
    counts = {COUNTS[name]: np.array([part[name].size for part in parts], np.int32) for name in parts[0]}
    return feed | counts
