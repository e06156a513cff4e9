"""A batch gets its scores whatever the server does meanwhile, or the job stops and says why."""

import asyncio
import itertools

import pytest

from clickbert import (
    AsyncRanker,
    AuthenticationError,
    ConnectionFailedError,
    InvalidInputError,
    ModelNotFoundError,
    ProtocolError,
    ServerError,
    ServerOverloadedError,
    ServerTimeoutError,
    ServerUnavailableError,
)
from clickbert.bulk import sending
from clickbert.bulk.rows import JobError
from clickbert.bulk.sending import Sender, VersionObserver
from clickbert.bulk.window import MOST, Window
from tests.client.bulk.stubs import StubRanker, score_of
from tests.client.fakes import AsyncFakeTransport, FakeTriton

PAIRS = [(f"q{n // 3}", f"d{n}") for n in range(20)]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(sending, "_FIRST_PAUSE", 1e-4)
    monkeypatch.setattr(sending, "_LONGEST_PAUSE", 1e-3)


def send(ranker, pairs=PAIRS, patience=60.0, said=None):
    return asyncio.run(Sender(ranker, {}, patience, (said or []).append).score(pairs))


def raising(errors, at=lambda pairs: True):
    """Raises the errors, one a call that `at` is true of; then nothing."""
    left = iter(errors)

    def before(pairs):
        if at(pairs) and (error := next(left, None)):
            raise error

    return before


@pytest.mark.parametrize("kind", [ServerOverloadedError, ServerUnavailableError, ServerTimeoutError])
def test_what_passes_is_waited_for(kind):
    ranker = StubRanker(raising([kind("busy")] * 9))
    assert send(ranker).scores == [score_of(*pair) for pair in PAIRS]
    assert ranker.asked == PAIRS, "each pair is answered once, in order"


def test_a_server_that_goes_away_later_is_waited_for_and_that_is_said():
    said = []

    calls = itertools.count()
    errors = iter([ConnectionFailedError("gone")] * 9)

    def before(pairs):
        if next(calls) and (error := next(errors, None)):
            raise error

    async def score():
        sender = Sender(StubRanker(before), {}, 60.0, said.append)
        return await sender.score(PAIRS) + await sender.score(PAIRS)

    assert len(asyncio.run(score()).scores) == 40
    assert said == ["waiting for the server: gone"]


def test_a_wrong_address_is_not_waited_for():
    with pytest.raises(ConnectionFailedError):
        send(StubRanker(raising([ConnectionFailedError("nothing there")])))


def test_patience_ends():
    with pytest.raises(JobError, match=r"nothing was answered for 0.01 s: drained"):
        send(StubRanker(raising(itertools.repeat(ServerUnavailableError("drained")))), patience=0.01)


def test_a_batch_that_takes_too_long_is_divided():
    sizes = []

    def before(pairs):
        sizes.append(len(pairs))
        if len(pairs) > 5:
            raise ServerTimeoutError("late")

    assert send(StubRanker(before)).scores == [score_of(*pair) for pair in PAIRS]
    assert sizes == [20, 10, 5, 5, 10, 5, 5]


@pytest.mark.parametrize("kind", [InvalidInputError, ProtocolError, ServerError])
def test_a_row_that_the_model_refuses_is_found(kind):
    def before(pairs):
        if {("q2", "d7"), ("q6", "d18")} & set(pairs):
            raise kind("refused")

    found = send(StubRanker(before))
    assert found.scores == ["refused" if number in (7, 18) else score_of(*pair) for number, pair in enumerate(PAIRS)]
    assert found.versions == {"1": 18}


@pytest.mark.parametrize(
    "kind", [InvalidInputError, ProtocolError, ServerError, AuthenticationError, ModelNotFoundError]
)
def test_what_every_pair_meets_stops_the_job_at_once(kind):
    calls = []

    def before(pairs):
        calls.append(pairs)
        raise kind("wrong")

    with pytest.raises(kind):
        send(StubRanker(before))
    assert len(calls) <= 2


def test_the_version_is_that_of_the_call():
    server = FakeTriton()
    transport = AsyncFakeTransport(server)

    async def score():
        async with AsyncRanker("localhost:8001", transport=transport, observers=[VersionObserver()]) as ranker:
            sender = Sender(ranker, {}, 5.0, print)
            return await asyncio.gather(*(sender.score(PAIRS[n : n + 5]) for n in range(0, 20, 5)))

    assert [found.versions for found in asyncio.run(score())] == [{"1": 5}] * 4


def test_the_window_grows_by_one_a_round_and_halves_once_for_calls_refused_together():
    async def use():
        window = Window()
        sizes = [window.size]
        for _ in range(200):
            async with window.call() as call:
                call.answered()
            sizes.append(window.size)
        assert sizes == sorted(sizes) and sizes[-1] == MOST and sizes[2] <= 3 + 1e-9
        calls = [window.call() for _ in range(MOST)]
        for call in calls:
            await call.__aenter__()
        late = window.call()
        waiting = asyncio.create_task(late.__aenter__())
        await asyncio.sleep(0)
        assert not waiting.done(), "no more than the window"
        for call in calls:
            call.refused()
            await call.__aexit__(None, None, None)
        assert (window.size, window.setbacks) == (MOST / 2, 1)
        await waiting
        await late.__aexit__(None, None, None)
        for _ in range(9):
            async with window.call() as call:
                call.refused()
        assert (window.size, window.setbacks) == (1.0, 10), "never less than one"

    asyncio.run(use())


def test_refusals_keep_the_calls_in_flight_near_what_the_server_takes():
    """A server that takes two calls at a time and refuses more: nothing is lost, and few calls are refused."""
    now = most = refused = 0

    def before(pairs):
        nonlocal now, most, refused
        if now == 2:
            refused += 1
            raise ServerOverloadedError("full")
        now += 1
        most = max(most, now)
        return answer()

    async def answer():
        nonlocal now
        await asyncio.sleep(0.001)
        now -= 1

    ranker = StubRanker(before)

    async def score():
        sender = Sender(ranker, {}, 60.0, print)
        return await asyncio.gather(*(sender.score([pair]) for pair in PAIRS * 10))

    found = asyncio.run(score())
    assert [one.scores[0] for one in found] == [score_of(*pair) for pair in PAIRS * 10]
    assert len(ranker.asked) == 200 and most == 2 and 0 < refused < 200
