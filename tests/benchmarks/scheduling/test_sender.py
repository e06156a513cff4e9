"""How requests are sent: to a transport in this process that counts, and answers when it is told to."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import numpy as np
import pytest

from benchmarks.measure.recording import LARGEST, SMALL
from benchmarks.scheduling.sender import GIVEN_UP, Call, Ready, Sender
from clickbert import ServerOverloadedError
from clickbert.connection import Connection
from clickbert.wire.protocol import LENGTHS, InferRequest


class Counted:
    """Answers after the other tasks have had a turn; or never, or with an error."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, float]] = []  # tokens and timeout
        self.flying = self.most = 0
        self.never: set[int] = set()  # tokens of requests that are not answered
        self.fails: set[int] = set()

    async def infer(self, request: InferRequest, *, timeout: float) -> None:
        tokens = int(request.inputs[LENGTHS].sum())
        self.sent.append((tokens, timeout))
        self.flying += 1
        self.most = max(self.most, self.flying)
        try:
            await asyncio.sleep(60 if tokens in self.never else 0.001)
            if tokens in self.fails:
                raise ServerOverloadedError("full")
        finally:
            self.flying -= 1


@pytest.fixture
def transport() -> Counted:
    return Counted()


@pytest.fixture
def sender(transport: Counted) -> Sender:
    lengths = [[3], [2, 2], [5]]
    requests = [Ready({LENGTHS: np.array([each], np.int32)}, LARGEST if sum(each) == 5 else SMALL) for each in lengths]
    made: Any = Sender(Connection("127.0.0.1:1"), "m", requests)
    made.transport = transport
    return made


def numbers(calls: list[Call]) -> list[int]:
    return [call.number for call in calls]


def test_alone_is_one_after_another(sender: Sender, transport: Counted) -> None:
    phase = asyncio.run(sender.alone(2))
    assert numbers(phase.calls) == [0, 1, 2, 0, 1, 2]
    assert transport.most == 1
    assert [call.sample.pairs for call in phase.calls[:3]] == [1, 2, 1]
    step = phase.step(users=1)
    assert (step.users, step.requests, step.errors, step.latencies_ms) == (1, 6, 0, ())
    assert step.latency and step.latency_by_size[SMALL] and step.latency_by_size[LARGEST]


def test_callers_have_one_request_each_and_take_turns(sender: Sender, transport: Counted) -> None:
    phase = asyncio.run(sender.closed(2, 1))
    assert transport.most == 2
    assert transport.flying == 0
    assert len(phase.calls) == len(transport.sent)
    counts = Counter(numbers(phase.calls))
    assert max(counts.values()) - min(counts.values()) <= 1
    assert all(call.sample.intended_start < 1 for call in phase.calls)
    assert phase.step(users=2, cycle=3).requests_per_second > 0


def test_a_call_that_is_given_up_is_no_longer_under_way(sender: Sender, transport: Counted) -> None:
    transport.never = {5}
    phase = asyncio.run(sender.closed(1, 1, lambda number: 0.01 if number == 2 else None))
    errors = {(call.number, call.sample.error) for call in phase.calls}
    assert errors == {(0, None), (1, None), (2, GIVEN_UP)}
    assert transport.flying == 0
    assert phase.step(users=1).error_kinds[GIVEN_UP] == numbers(phase.calls).count(2)


def test_random_moments_do_not_wait_for_answers(sender: Sender, transport: Counted) -> None:
    transport.fails = {4}
    phase = asyncio.run(sender.open(60.0, 1, timeout=0.5))
    assert len(phase.calls) == 60
    assert Counter(numbers(phase.calls)) == {0: 20, 1: 20, 2: 20}
    assert {timeout for _, timeout in transport.sent} == {0.5}
    assert all(0 <= call.sample.start_delay <= call.sample.latency for call in phase.calls)
    assert phase.first_messages == {"ServerOverloadedError": "full"}
    assert {call.number for call in phase.calls if call.sample.error} == {1}
    again = asyncio.run(sender.open(60.0, 1))
    moments = [sorted(call.sample.intended_start for call in each.calls) for each in (phase, again)]
    assert moments[0] == pytest.approx(moments[1])
