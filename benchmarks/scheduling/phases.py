"""What a scheduler is for: small requests beside large ones, more load than the server can take, calls given up.

    python -m benchmarks scheduling --model clickbert_onnx_int8
    python -m benchmarks scheduling --url localhost:8001 --repository model_repository

The requests are a click log's own. They are packed before they are sent, and go out through one connection, so that
their sender costs little. Measured one after another:

- alone: each request by itself, three times. The smaller half is held against its median, the
  largest against their own p99: some of them are several times as large as the others.
- saturation: 8 callers, each with its next request as soon as the last one is answered.
- 70 % of saturation: requests at random moments.
- given up: saturation once more; three of ten calls are given up after half of the time that they took before.
- five times saturation, at random moments, for callers who wait one second; and the memory of the server's processes.

Each figure stands beside what it must be. To compare two servers start both, and give their addresses in turns; then
--repository says where the tokenizer is. Memory and the work that was saved are only known of a server that is started
here. The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from statistics import median

import psutil

from benchmarks import BenchmarkError, say
from benchmarks.load_gen import target, workload
from benchmarks.load_gen.metrics import total
from benchmarks.load_gen.target import Target, count_chunks
from benchmarks.load_gen.workload import Request, size_classes
from benchmarks.measure.environment import find_environment
from benchmarks.measure.schema import Step, dump
from benchmarks.measure.stats import summarize_latency
from benchmarks.saturation.ceiling import to_requests
from benchmarks.saturation.tokens import pack, published_tokenizer
from benchmarks.scheduling.result import (
    DEADLINE,
    EXCESS,
    SHARE,
    Overload,
    SavedWork,
    SchedulingResult,
    in_time,
    show,
)
from benchmarks.scheduling.sender import GIVEN_UP, SEED, Call, Phase, Ready, Sender
from clickbert import ServerOverloadedError
from serving.backends.packed_cpu import figures

EXPECTED = target.EXPECTED
TURNS_ALONE = 3
CALLERS = 8
IMPATIENT = 0.3  # the share of calls that are given up


def run(options: argparse.Namespace, seconds: int = 30, overload_seconds: int = 60) -> int:
    """Measures in phases of so many seconds, and prints.

    Raises:
        EXPECTED: there are no figures.
    """
    requests = workload.from_arguments(options).read()
    ready = make_ready(options, requests)
    with target.log_folder() as folder, target.open_target(options, folder) as server:
        server.try_out(options.model, requests[0])
        result = asyncio.run(measure(server, options.model, ready, seconds, overload_seconds))
    print(f"{show(result)}\n{dump(result)}")
    return 0


def make_ready(options: argparse.Namespace, requests: Sequence[Request]) -> list[Ready]:
    """The requests as they are sent."""
    sizes = size_classes(requests)
    inputs = to_requests(pack(published_tokenizer(options.repository), requests))
    return [Ready(each, sizes[request]) for each, request in zip(inputs, requests, strict=True)]


async def measure(
    server: Target, model: str, requests: Sequence[Ready], seconds: int, overload_seconds: int
) -> SchedulingResult:
    """All phases, one after another. Raises BenchmarkError if one has no answers."""
    sender = Sender(server.connection, model, requests)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(sender.transport.close)
        say("scheduling", f"each of {len(requests)} requests alone, {TURNS_ALONE} times")
        await sender.alone(1)  # the connection is opened, and memory taken
        alone = (await sender.alone(TURNS_ALONE)).step(users=1)
        check_answers(alone, model)
        say("scheduling", f"{CALLERS} callers for {seconds} s")
        saturation = await sender.closed(CALLERS, seconds)
        saturated = saturation.step(users=CALLERS, cycle=len(requests))
        check_answers(saturated, model)
        most = saturated.requests_per_second
        say("scheduling", f"{SHARE * most:.1f} requests/s for {seconds} s")
        shared = (await sender.open(SHARE * most, seconds)).step(rate=SHARE * most)
        say("scheduling", f"{CALLERS} callers for {seconds} s, who give up {IMPATIENT:.0%} of their calls")
        given_up, saved = await give_up(server, sender, saturation)
        say("scheduling", f"{EXCESS * most:.1f} requests/s for {overload_seconds} s, deadline {DEADLINE:g} s")
        overload = await flood(server, sender, EXCESS * most, overload_seconds)
    return SchedulingResult(
        model,
        server.info(),
        find_environment(),
        alone,
        saturated,
        shared,
        given_up.step(users=CALLERS),
        saved,
        overload,
    )


def check_answers(step: Step, model: str) -> None:
    """Raises BenchmarkError, with the first error of each kind, if nothing was answered."""
    if not step.requests_per_second:
        messages = "; ".join(f"{kind}: {text}" for kind, text in step.generator.first_messages.items())
        raise BenchmarkError(f"{model} answered nothing within {step.duration} s ({messages or 'without an error'})")


async def give_up(server: Target, sender: Sender, usual: Phase) -> tuple[Phase, SavedWork | None]:
    """A phase like `usual`, of whose calls some are given up after half of the time that they took in that one."""
    took: dict[int, list[float]] = {}
    for number, sample in usual.calls:
        if sample.error is None:
            took.setdefault(number, []).append(sample.latency)
    midway = {number: median(latencies) / 2 for number, latencies in took.items()}
    chance = random.Random(SEED)
    before = await asyncio.to_thread(settled_metrics, server, sender.model)
    phase = await sender.closed(
        CALLERS, usual.seconds, lambda number: midway.get(number) if chance.random() < IMPATIENT else None
    )
    server.check_alive()
    after = await asyncio.to_thread(settled_metrics, server, sender.model)
    calls = [call for call in phase.calls if call.sample.error == GIVEN_UP]
    if before is None or after is None or not count_chunks(after, sender.model).chunks:
        return phase, None
    tokens = [sender.requests[call.number].tokens for call in calls]
    return phase, SavedWork(
        len(calls),
        sum(tokens),
        sum(left_of(call, count, before, after, sender.model) for call, count in zip(calls, tokens, strict=True)),
        sum(
            sign * total(text, figures.DROPPED, model=sender.model, outcome="cancelled")
            for text, sign in ((after, 1), (before, -1))
        ),
    )


def settled_metrics(server: Target, model: str) -> str | None:
    """The metrics, once they have all that has ended."""
    server.settled_counts(model)
    return server.metrics()


def left_of(call: Call, tokens: int, before: str, after: str, model: str) -> float:
    """How many of a call's tokens were not computed yet when it was given up: an estimate.

    The server does not say how far a single request is. But it says how long the answered ones of its size waited on
    average for their first chunk, and how long it then took to their answer; in between the work goes on evenly.
    """
    size = figures.size_class(tokens)
    answered = count_chunks(after, model, up_to=size) - count_chunks(before, model, up_to=size)
    if not answered.compute:
        return tokens
    computed = (call.sample.latency * answered.requests - answered.queue) / answered.compute
    return tokens * (1 - min(1.0, max(0.0, computed)))


async def flood(server: Target, sender: Sender, rate: float, seconds: int) -> Overload:
    """Requests at random moments, more than the server can answer, for callers who wait for DEADLINE."""
    memory_before = memory(server)
    async with sampled_memory(server) as found:
        phase = await sender.open(rate, seconds, DEADLINE)
    server.check_alive()
    samples = [call.sample for call in phase.calls]
    refused = [each.latency - each.start_delay for each in samples if each.error == ServerOverloadedError.__name__]
    return Overload(
        phase.step(rate=rate), *in_time(samples, seconds), summarize_latency(refused), memory_before, tuple(found)
    )


@contextlib.asynccontextmanager
async def sampled_memory(server: Target) -> AsyncIterator[list[float]]:
    """The memory of a server that was started here, once a second until the end of the block."""
    found: list[float] = []

    async def sample() -> None:
        while (now := await asyncio.to_thread(memory, server)) is not None:
            found.append(now)
            await asyncio.sleep(1)

    sampling = asyncio.create_task(sample())
    try:
        yield found
    finally:
        sampling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sampling


def memory(server: Target) -> float | None:
    """MB that a server's processes have to themselves, and their share of what they share; None: it is elsewhere."""
    if server.server is None:
        return None
    found = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):  # the server ended meanwhile, which others will say
        root = psutil.Process(server.server.running().pid)
        for process in [root, *root.children(recursive=True)]:
            found += process.memory_full_info().pss
    return found / 1e6
