"""Sends packed requests from one asyncio loop: callers in turns, or at random moments; with deadlines, some given up.

Locust's users (load_gen) tokenize and wait as an application does. Here a request costs its sender as little as it can,
so that one process can offer several times what a server takes.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from benchmarks.load_gen.workload import random_moments
from benchmarks.measure.recording import Sample
from benchmarks.measure.schema import GeneratorUse, Step
from benchmarks.measure.stats import summarize
from clickbert import ClickBertError
from clickbert.connection import Connection
from clickbert.wire.protocol import INPUT_IDS, LENGTHS, LOGITS, InferRequest
from clickbert.wire.transport import AsyncGrpcTransport
from serving.backends.packed_cpu.segments import Arrays

GIVEN_UP = "given up"  # in place of an error's class
PATIENT = 30.0  # seconds that a caller waits who does not say: longer than any server works on a request
PAUSE_AFTER_ERROR = 0.1  # seconds; callers of a server that is gone would only compete for the processor
SEED = 1


@dataclass(frozen=True)
class Ready:
    """A request, packed, and its class of size."""

    inputs: Arrays
    size: str

    @property
    def pairs(self) -> int:
        """How many pairs."""
        return int(self.inputs[LENGTHS].size)

    @property
    def tokens(self) -> int:
        """How many tokens."""
        return int(self.inputs[INPUT_IDS].size)


class Call(NamedTuple):
    """How one request fared, and which one it was of those that are distinct."""

    number: int
    sample: Sample


class Phase:
    """The calls of so many seconds, from now on, and what they cost their sender."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds
        self.calls: list[Call] = []
        self.first_messages: dict[str, str] = {}
        self.clocks = time.perf_counter(), time.thread_time(), time.process_time()
        self.use: GeneratorUse

    @property
    def began(self) -> float:
        """On the clock of `time.perf_counter`."""
        return self.clocks[0]

    def end(self) -> None:
        """Stops the clocks."""
        ended = time.perf_counter(), time.thread_time(), time.process_time()
        lasted, thread, process = (end - begin for begin, end in zip(self.clocks, ended, strict=True))
        self.use = GeneratorUse(1, thread / lasted, process / lasted, self.first_messages)

    def step(self, *, users: int | None = None, rate: float | None = None, cycle: int | None = None) -> Step:
        """The figures, without each single latency. `cycle`: how many requests take turns, if they do."""
        samples = [call.sample for call in self.calls]
        step = summarize(samples, 0, self.seconds, users=users, rate=rate, generator=self.use, cycle=cycle)
        return replace(step, latencies_ms=())


class Sender:
    """One connection to a server, and the requests for one of its models."""

    def __init__(self, connection: Connection, model: str, requests: Sequence[Ready]) -> None:
        self.model, self.requests = model, requests
        self.transport = AsyncGrpcTransport(connection)

    async def call(
        self, phase: Phase, number: int, start: float, timeout: float = PATIENT, patience: float | None = None
    ) -> str | None:
        """Makes a call that was to start at `start`. Returns its error's class, if it has one.

        Args:
            phase: takes note of it.
            number: of the request.
            start: on the clock of `time.perf_counter`.
            timeout: seconds, which the server is told, too.
            patience: seconds after which it is given up, which the server is not told; None: it is not.
        """
        ready, error = self.requests[number], None
        begun = time.perf_counter()
        try:
            async with asyncio.timeout(patience):
                await self.transport.infer(InferRequest(self.model, "", ready.inputs, (LOGITS,)), timeout=timeout)
        except TimeoutError:
            error = GIVEN_UP
        except ClickBertError as exc:
            error = type(exc).__name__
            phase.first_messages.setdefault(error, str(exc))
        latency = time.perf_counter() - start
        phase.calls.append(
            Call(number, Sample(start - phase.began, begun - start, latency, ready.pairs, error, ready.size))
        )
        return error

    async def alone(self, turns: int) -> Phase:
        """Each request by itself, so many times."""
        phase = Phase(0)
        for number in [*range(len(self.requests))] * turns:
            await self.call(phase, number, time.perf_counter())
        phase.end()
        phase.seconds = int(time.perf_counter() - phase.began) + 1
        return phase

    async def closed(
        self, callers: int, seconds: int, patience: Callable[[int], float | None] = lambda _: None
    ) -> Phase:
        """So many callers, each with its next request as soon as the last one is answered.

        Args:
            callers: how many.
            seconds: in which calls begin; all are waited for.
            patience: of a request's number: `call`.
        """
        phase, turns = Phase(seconds), itertools.cycle(range(len(self.requests)))

        async def caller() -> None:
            while (now := time.perf_counter()) < phase.began + seconds:
                number = next(turns)
                error = await self.call(phase, number, now, patience=patience(number))
                if error not in (None, GIVEN_UP):
                    await asyncio.sleep(PAUSE_AFTER_ERROR)

        await asyncio.gather(*(caller() for _ in range(callers)))
        phase.end()
        return phase

    async def open(self, rate: float, seconds: int, timeout: float = PATIENT) -> Phase:
        """Calls at random moments, `rate` a second, whatever is answered; each waits for `timeout` seconds."""
        chance = random.Random(SEED)
        # In plain random order: spreading the sizes would keep apart large ones that chance brings together.
        turns = itertools.cycle(chance.sample(range(len(self.requests)), len(self.requests)))
        moments = random_moments(rate, [seconds], chance)
        phase = Phase(seconds)
        async with asyncio.TaskGroup() as calls:
            for moment in moments:
                start = phase.began + moment
                await asyncio.sleep(max(0.0, start - time.perf_counter()))
                calls.create_task(self.call(phase, next(turns), start, timeout))
        phase.end()
        return phase
