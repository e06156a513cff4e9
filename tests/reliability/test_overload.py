"""More load than the server can take: what it refuses, what it still answers, and what it does not compute.

The sender is the benchmarks' own: requests are packed beforehand, so that one process can offer several times what two
cores compute of a model as large as MiniLM-L6.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest

from benchmarks.load_gen.metrics import total
from benchmarks.load_gen.target import Target
from benchmarks.load_gen.workload import Selection
from benchmarks.measure.schema import Step
from benchmarks.scheduling.phases import flood, make_ready
from benchmarks.scheduling.sender import Phase, Ready, Sender
from clickbert import Connection, ServerOverloadedError, ServerTimeoutError
from release.names import ONNX_MODEL
from serving.backends.packed_cpu.figures import DROPPED, ELEMENTS, PERIOD, REQUESTS
from serving.server import Server
from tests.figures import Figures
from tests.integration.scores import PATIENCE
from tests.published import publish, serve
from tests.serving.busy_cores import busy_cores, needs_bound_cores, waiting_in_the_schedule
from tests.tiny import make_checkpoint
from tests.waiting import eventually

MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536, "num_attention_heads": 12}
CALLERS, EXCESS = 8, 5.0
DEADLINE = 10.0  # seconds: `deadline_seconds` of the config
REFUSED = {ServerOverloadedError.__name__}
LATE = {ServerTimeoutError.__name__}


@pytest.fixture(scope="module")
def heavy_server(published_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("heavy")
    # Weights as small as BERT's: with the tiny model's this one would compute nonsense.
    checkpoint = make_checkpoint(folder / "checkpoint", initializer_range=0.02, **MINILM)
    publish(checkpoint, folder / "repository", published_log)
    with serve(folder / "repository") as server:
        yield Target(Connection(server.addresses.grpc), folder / "repository", server)


def requests_of(log: Path, repository: Path) -> list[Ready]:
    return make_ready(argparse.Namespace(repository=repository), Selection(log).read())


def send(url: str, requests: Sequence[Ready], run: Callable[[Sender], Coroutine[Any, Any, Any]]) -> Any:
    """What `run` returns of a sender of these requests, which it may use as long as it runs."""

    async def main() -> Any:
        sender = Sender(Connection(url), ONNX_MODEL, requests)
        try:
            return await run(sender)
        finally:
            await sender.transport.close()

    return asyncio.run(main())


async def peak(sender: Sender, seconds: int) -> Step:
    """What the server answers to CALLERS who never pause."""
    phase = await sender.closed(CALLERS, seconds)
    assert not errors_of(phase), phase.first_messages
    return phase.step(users=CALLERS, cycle=len(sender.requests))


def errors_of(phase: Phase) -> Counter[str]:
    return Counter(call.sample.error for call in phase.calls if call.sample.error)


@pytest.mark.reliability
def test_the_queue_is_bounded_and_what_is_over_it_is_refused_at_once(
    heavy_server: Target, published_log: Path, figures: Figures
) -> None:
    """Callers more patient than the model: what waits is bounded by `deadline_seconds` of work.

    By twice that, since small requests go first: as many of them may come before large ones that were taken already.
    """
    server = heavy_server.server
    assert server
    assert heavy_server.repository
    waits: list[float] = []

    async def look() -> None:
        while True:
            text = await asyncio.to_thread(server.metrics)
            waits.append(total(text, "clickbert_waiting_seconds", model=ONNX_MODEL))
            await asyncio.sleep(PERIOD)

    async def run(sender: Sender) -> Phase:
        most = (await peak(sender, 5)).requests_per_second
        looking = asyncio.create_task(look())
        phase = await sender.open(EXCESS * most, 12, timeout=3 * DEADLINE)
        looking.cancel()
        return phase

    phase = send(server.addresses.grpc, requests_of(published_log, heavy_server.repository), run)
    errors = errors_of(phase)
    answered = [call.sample.latency for call in phase.calls if not call.sample.error]
    refusals = [call.sample.latency - call.sample.start_delay for call in phase.calls if call.sample.error in REFUSED]
    figures.only_told(1, "accepted of five times the load, patient callers", len(phase.calls) - len(refusals), "calls")
    figures.only_told(1, "refused", len(refusals), "calls")
    figures.at_most(1, "errors that are neither an overload nor a timeout", (errors - classified(errors)).total(), 0)
    figures.at_most(1, "the longest work that waited", max(waits), 2 * DEADLINE, "s")
    figures.at_most(1, "the longest wait for an answer", max(answered), DEADLINE + 1, "s")
    figures.at_most(1, "p99 of the refusals", float(np.percentile(refusals, 99)) * 1000, 100, "ms")
    assert len(refusals) > len(answered)


def classified(errors: Counter[str]) -> Counter[str]:
    return Counter({kind: count for kind, count in errors.items() if kind in REFUSED | LATE})


@pytest.mark.reliability
def test_five_times_the_load_costs_no_goodput_and_no_memory(
    heavy_server: Target, published_log: Path, figures: Figures
) -> None:
    """A minute of it. The peak is measured before and after: other work on the machine moves it."""

    async def run(sender: Sender) -> tuple[list[Step], Any]:
        peaks = [await peak(sender, 10)]
        overload = await flood(heavy_server, sender, EXCESS * peaks[0].requests_per_second, 60)
        return [*peaks, await peak(sender, 10)], overload

    assert heavy_server.repository
    requests = requests_of(published_log, heavy_server.repository)
    peaks, overload = send(heavy_server.connection.url, requests, run)
    best = mean(step.requests_per_second for step in peaks)
    figures.only_told(2, "requests answered at the peak", best, "/s")
    figures.at_least(2, "of it in time at five times the load", 100 * overload.requests_in_time / best, 90, "%")
    best_pairs = mean(step.pairs_per_second for step in peaks)
    figures.only_told(2, "the same in pairs", 100 * overload.pairs_in_time / best_pairs, "%")
    figures.at_most(2, "memory, last quarter by the first one", overload.memory_growth, 1.05)
    others = overload.step.error_kinds.keys() - REFUSED - LATE
    figures.at_most(2, "kinds of errors beside overload and timeout", len(others), 0)


class Counts:
    """The backend's own counters, from now on."""

    def __init__(self, server: Server) -> None:
        self.server = server
        time.sleep(3 * PERIOD)  # what was asked before is counted by then
        self.before = self.now()

    def now(self) -> dict[str, float]:
        text = self.server.metrics()
        outcomes = {
            outcome: total(text, REQUESTS, model=ONNX_MODEL, outcome=outcome)
            for outcome in ("answered", "expired", "cancelled")
        }
        dropped = total(text, DROPPED, model=ONNX_MODEL)
        return outcomes | {"computed": total(text, ELEMENTS, model=ONNX_MODEL), "dropped": dropped}

    def since(self, name: str) -> int:
        return int(self.now()[name] - self.before[name])


@needs_bound_cores
def test_expired_work_is_not_executed(
    published_server: Server, published_repository: Path, published_log: Path, figures: Figures
) -> None:
    """Forty callers with two seconds, ten with patience; no core is free for longer than the forty have."""
    requests = requests_of(published_log, published_repository)[:50]
    patient, impatient = requests[:10], requests[10:]

    async def run(sender: Sender) -> tuple[Phase, Counts]:
        for _ in range(2):
            await sender.alone(1)  # the pace is known, by chunks that waited for nobody
        counts, phase = await asyncio.to_thread(Counts, published_server), Phase(0)
        with busy_cores(published_server):
            calls = [
                asyncio.create_task(
                    sender.call(phase, number, time.perf_counter(), PATIENCE if number < len(patient) else 2.0)
                )
                for number in range(len(requests))
            ]
            while len(phase.calls) < len(impatient):
                await asyncio.sleep(0.05)
            left = waiting_in_the_schedule
            await asyncio.to_thread(eventually, lambda: left(published_server, ONNX_MODEL) == len(patient))
        await asyncio.gather(*calls)
        return phase, counts

    phase, counts = send(published_server.addresses.grpc, requests, run)
    assert errors_of(phase) == Counter({kind: len(impatient) for kind in LATE})
    eventually(lambda: counts.since("answered") == len(patient))
    eventually(lambda: counts.since("expired") + counts.since("cancelled") >= len(impatient))
    ended = counts.since("expired") + counts.since("cancelled")
    figures.exactly(5, "expired calls that the backend dropped, of 40", ended, len(impatient), "calls")
    figures.exactly(
        5, "tokens of theirs computed", counts.since("computed") - sum(each.tokens for each in patient), 0, "tokens"
    )
    figures.exactly(
        5, "tokens of theirs not dropped", sum(each.tokens for each in impatient) - counts.since("dropped"), 0, "tokens"
    )
