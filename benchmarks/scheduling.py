"""What the scheduler is for: small requests beside large ones, overload, and calls that were given up.

    python -m benchmarks scheduling
    python -m benchmarks scheduling --model clickbert_onnx --url localhost:8001

The requests are a click log's own. They are packed before they are sent, and go out through one gRPC connection, so
that the sender costs little. Measured one after another:

- alone: each request by itself. What a class of size takes alone is the median of its requests.
- saturation: 8 callers, each with its next request as soon as the last one is answered.
- 70 % of saturation: requests at random moments.
- five times saturation: the same, for callers who wait one second; and the memory of the server's processes.
- cancelled: saturation once more, with three of ten calls given up midway: at half of what they took without that.

The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import psutil

from benchmarks import say
from benchmarks.load_gen import target, workload
from benchmarks.load_gen.metrics import total
from benchmarks.load_gen.target import Target
from benchmarks.load_gen.workload import size_classes
from benchmarks.measure.environment import find_environment
from benchmarks.measure.recording import LARGEST, SMALL
from benchmarks.measure.schema import Environment, dump
from benchmarks.saturation.tokens import pack, published_tokenizer
from clickbert import ClickBertError
from clickbert.wire.protocol import LOGITS, InferRequest
from clickbert.wire.transport import AsyncGrpcTransport
from release.names import REQUEST_INPUTS

EXPECTED = target.EXPECTED
CALLERS, SHARE, EXCESS = 8, 0.7, 5.0
PATIENT, DEADLINE = 30.0, 1.0  # seconds that callers wait
CANCELLED = 0.3
SEED = 1


@dataclass(frozen=True)
class Call:
    """One request and how it fared; times in seconds."""

    number: int  # of the request among all that are distinct
    latency: float  # from the moment at which it was to start
    delay: float  # from that moment to the actual start
    error: str | None


@dataclass(frozen=True)
class Calls:
    """The calls of a phase of so many seconds."""

    seconds: float
    calls: list[Call] = field(default_factory=list)

    def latencies(self, numbers: set[int] | None = None) -> list[float]:
        """Of the answered calls, of all requests or of some."""
        return [c.latency for c in self.calls if c.error is None and (numbers is None or c.number in numbers)]


@dataclass(frozen=True)
class Load:
    """A class of requests at a share of saturation: milliseconds, and how many times as long as it takes alone."""

    calls: int
    p50: float
    p99: float
    p99_by_p50_alone: float


@dataclass(frozen=True)
class Overload:
    """Five times saturation. Goodput is answers within the deadline, a second; milliseconds; MB."""

    offered: float
    goodput: float
    goodput_pairs: float
    by_saturation: float
    pairs_by_saturation: float
    refused: int
    refusal_p50: float
    refusal_p99: float
    late: int
    memory_before: float | None
    memory_after: float | None


@dataclass(frozen=True)
class SchedulingResult:
    """The JSON document."""

    model: str
    environment: Environment
    alone_p50: dict[str, float]
    saturation_requests: float
    saturation_pairs: float
    open_loop: dict[str, Load]
    overload: Overload
    cancelled_work_saved: float | None


class Sender:
    """Sends packed requests to a model, and takes the time.

    Args:
        server: where to.
        model: its name.
        inputs: the distinct requests, by number.
    """

    def __init__(self, server: Target, model: str, inputs: Sequence[dict[str, np.ndarray]]) -> None:
        self.model, self.inputs = model, inputs
        self.transport = AsyncGrpcTransport(server.connection)

    async def call(self, number: int, start: float, timeout: float, patience: float | None = None) -> Call:
        """Sends a request that was to start at `start`; gives it up after `patience` seconds."""
        request = InferRequest(self.model, "", self.inputs[number], (LOGITS,))
        begun, error = time.perf_counter(), None
        try:
            async with asyncio.timeout(patience):
                await self.transport.infer(request, timeout=timeout)
        except (ClickBertError, TimeoutError) as exc:
            error = type(exc).__name__
        return Call(number, time.perf_counter() - start, begun - start, error)

    async def closed(
        self, callers: int, seconds: float, patience: Callable[[int], float | None] = lambda _: None
    ) -> Calls:
        """So many callers, each with its next request as soon as the last one is answered."""
        turns, end, done = itertools.cycle(range(len(self.inputs))), time.perf_counter() + seconds, Calls(seconds)

        async def caller() -> None:
            while (now := time.perf_counter()) < end:
                number = next(turns)
                call = await self.call(number, now, PATIENT, patience(number))
                if time.perf_counter() < end:
                    done.calls.append(call)

        await asyncio.gather(*(caller() for _ in range(callers)))
        return done

    async def open(self, rate: float, seconds: float, timeout: float) -> Calls:
        """Requests at random moments, `rate` a second, whatever is answered."""
        chance, first = random.Random(SEED), time.perf_counter()
        moments = sorted(chance.uniform(0, seconds) for _ in range(round(rate * seconds)))
        tasks = []
        for moment in moments:
            number = chance.randrange(len(self.inputs))
            await asyncio.sleep(max(0.0, first + moment - time.perf_counter()))
            tasks.append(asyncio.create_task(self.call(number, first + moment, timeout)))
        return Calls(seconds, await asyncio.gather(*tasks))


def run(options: argparse.Namespace, seconds: float = 30, overload_seconds: float = 60) -> int:
    """Measures and prints.

    Raises:
        EXPECTED: there are no figures.
    """
    requests = workload.from_arguments(options).read()
    packed = pack(published_tokenizer(options.repository), requests)
    sizes = size_classes(requests)
    classes = {"all": set(range(len(requests)))}
    for name in (SMALL, LARGEST):
        classes[name] = {number for number, request in enumerate(requests) if sizes[request] == name}
    inputs = [{name: getattr(each, name)[np.newaxis] for name in REQUEST_INPUTS} for each in packed]
    pairs = [len(each.lengths) for each in packed]
    with target.log_folder() as folder, target.open_target(options, folder) as server:
        server.try_out(options.model, requests[0])
        result = asyncio.run(measure(server, options.model, inputs, pairs, classes, seconds, overload_seconds))
    print(f"{show(result)}\n{dump(result)}")
    return 0


async def measure(
    server: Target,
    model: str,
    inputs: Sequence[dict[str, np.ndarray]],
    pairs: Sequence[int],
    classes: dict[str, set[int]],
    seconds: float,
    overload_seconds: float,
) -> SchedulingResult:
    """All phases, one after another."""
    sender = Sender(server, model, inputs)
    say("scheduling", "each request alone")
    alone = [await sender.call(number, time.perf_counter(), PATIENT) for number in [*range(len(inputs))] * 2]
    usual = {number: float(np.median([c.latency for c in alone if c.number == number])) for number in classes["all"]}
    alone_p50 = {name: float(np.median([usual[number] for number in numbers])) for name, numbers in classes.items()}
    say("scheduling", f"{CALLERS} callers for {seconds:g} s")
    saturation = await sender.closed(CALLERS, seconds)
    most = len(saturation.latencies()) / seconds
    most_pairs = sum(pairs[c.number] for c in saturation.calls if c.error is None) / seconds
    say("scheduling", f"{most * SHARE:.1f} requests/s for {seconds:g} s")
    calm = await sender.open(most * SHARE, seconds, PATIENT)
    loads = {name: to_load(calm.latencies(numbers), alone_p50[name]) for name, numbers in classes.items()}
    say("scheduling", f"{CALLERS} callers for {seconds:g} s, {CANCELLED:.0%} of the calls given up midway")
    saved = await cancel(server, sender, model, seconds, saturation, inputs)
    say("scheduling", f"{most * EXCESS:.1f} requests/s for {overload_seconds:g} s, deadline {DEADLINE:g} s")
    before = memory(server)
    flood = await sender.open(most * EXCESS, overload_seconds, DEADLINE)
    in_time = [c for c in flood.calls if c.error is None and c.latency <= DEADLINE]
    refused = [c for c in flood.calls if c.error == "ServerOverloadedError"]
    quick = [(c.latency - c.delay) * 1000 for c in refused]
    goodput = len(in_time) / overload_seconds
    goodput_pairs = sum(pairs[c.number] for c in in_time) / overload_seconds
    overload = Overload(
        offered=most * EXCESS,
        goodput=goodput,
        goodput_pairs=goodput_pairs,
        by_saturation=goodput / most,
        pairs_by_saturation=goodput_pairs / most_pairs,
        refused=len(refused),
        refusal_p50=percentile(quick, 50),
        refusal_p99=percentile(quick, 99),
        late=len(flood.calls) - len(in_time) - len(refused),
        memory_before=before,
        memory_after=memory(server),
    )
    await sender.transport.close()
    return SchedulingResult(
        model,
        find_environment(),
        {name: value * 1000 for name, value in alone_p50.items()},
        most,
        most_pairs,
        loads,
        overload,
        saved,
    )


async def cancel(
    server: Target, sender: Sender, model: str, seconds: float, usual: Calls, inputs: Sequence[dict[str, np.ndarray]]
) -> float | None:
    """The share of the work of calls given up midway that was not done; None if the server's figures are not at hand.

    All of a call's work counts, also what was done before it was given up: it is a lower bound of what was saved.
    """
    took: dict[int, list[float]] = {}
    for call in usual.calls:
        took.setdefault(call.number, []).append(call.latency)
    chance = random.Random(SEED)

    def patience(number: int) -> float | None:
        return float(np.median(took[number])) / 2 if number in took and chance.random() < CANCELLED else None

    before = server.metrics()
    calls = await sender.closed(CALLERS, seconds, patience)
    given_up = sum(inputs[c.number]["input_ids"].size for c in calls.calls if c.error == "TimeoutError")
    await asyncio.sleep(1)  # the figures are published a few times a second
    after = server.metrics()
    if before is None or after is None or not given_up:
        return None
    labels = {"model": model, "outcome": "cancelled"}
    saved = [total(text, "clickbert_elements_dropped_total", **labels) for text in (before, after)]
    return (saved[1] - saved[0]) / given_up


def memory(server: Target) -> float | None:
    """MB that the server's processes have to themselves, and their share of what they share."""
    if server.server is None:
        return None
    root = psutil.Process(server.server.running().pid)
    return sum(each.memory_full_info().pss for each in [root, *root.children(recursive=True)]) / 1e6


def to_load(latencies: Sequence[float], alone: float) -> Load:
    """The figures of a class, in milliseconds; `alone` in seconds."""
    p50, p99 = percentile(latencies, 50) * 1000, percentile(latencies, 99) * 1000
    return Load(len(latencies), p50, p99, p99 / 1000 / alone)


def percentile(values: Sequence[float], which: float) -> float:
    """A percentile; 0 of no values."""
    return float(np.percentile(values, which)) if len(values) else 0.0


def show(result: SchedulingResult) -> str:
    """The figures, for the screen."""
    over = result.overload
    lines = [f"saturation: {result.saturation_requests:.1f} requests/s, {result.saturation_pairs:.0f} pairs/s"]
    lines += [
        f"{SHARE:.0%} of it, {name}: p50 {load.p50:.0f} ms, p99 {load.p99:.0f} ms, "
        f"{load.p99_by_p50_alone:.1f} times the {result.alone_p50[name]:.0f} ms alone ({load.calls} calls)"
        for name, load in result.open_loop.items()
    ]
    lines.append(
        f"{EXCESS:g} times it: {over.goodput:.1f} requests/s in time ({over.by_saturation:.0%}), "
        f"{over.goodput_pairs:.0f} pairs/s ({over.pairs_by_saturation:.0%}); {over.refused} refused within "
        f"{over.refusal_p50:.0f} ms (p50), {over.refusal_p99:.0f} ms (p99); {over.late} late"
    )
    if over.memory_before and over.memory_after:
        lines.append(f"memory: {over.memory_before:.0f} MB before, {over.memory_after:.0f} MB after")
    if result.cancelled_work_saved is not None:
        lines.append(f"cancelled: {result.cancelled_work_saved:.0%} of the work saved")
    return "\n".join(lines)
