"""Requests that are sent again: which errors, how often, and how much that adds to the load."""

import time
from types import SimpleNamespace

import pytest

import clickbert
from clickbert import AsyncRanker, Ranker
from clickbert.calls import retries
from clickbert.calls.retries import Retries, RetryBudget
from clickbert.errors import from_status
from tests.client.fake_model import FakeStatusError
from tests.client.fakes import FakeTriton, call_once, calls

LOST = ("UNAVAILABLE", "Socket closed")
ENVOYS = "upstream connect error or disconnect/reset before headers. reset reason:"
PASSING = [
    LOST,
    ("UNAVAILABLE", "failed to connect to all addresses; last error: UNKNOWN: Connection refused"),
    ("UNAVAILABLE", "recvmsg:Connection reset by peer"),
    ("UNAVAILABLE", "keepalive watchdog timeout"),
    ("UNAVAILABLE", "DNS resolution failed for x:1"),  # of several addresses, the next one is asked
    ("CANCELLED", "CANCELLED"),
    ("NOT_FOUND", "Request for unknown model: 'x' has no available versions"),
    ("UNAVAILABLE", "Server is stopping, scheduler for model has stopped accepting new inference requests"),
    ("UNAVAILABLE", "no healthy upstream"),
    ("UNAVAILABLE", f"{ENVOYS} remote connection failure"),
    ("INTERNAL", "Stub process 'clickbert_onnx_0_0' is not healthy."),
]
LASTING = [
    ("UNAVAILABLE", "Exceeds maximum queue size"),
    ("UNAVAILABLE", "overloaded: the answer would take 3.00 s"),
    ("RESOURCE_EXHAUSTED", "rate limit"),
    ("UNAVAILABLE", f"{ENVOYS} overflow"),
    ("UNAVAILABLE", "local_rate_limited"),
    ("UNAVAILABLE", "upstream request timeout"),
    ("UNAVAILABLE", "Request timeout expired"),
    ("DEADLINE_EXCEEDED", "Deadline Exceeded"),
    ("UNAVAILABLE", "This protocol is restricted, expecting header 'k'"),
    ("UNAUTHENTICATED", "Invalid token"),
    ("PERMISSION_DENIED", "no"),
    ("NOT_FOUND", "Request for unknown model: 'x' is not found"),
    ("UNAVAILABLE", "Ssl handshake failed: CERTIFICATE_VERIFY_FAILED"),
    ("UNAVAILABLE", "HTTP proxy returned response code 403"),
    ("UNAVAILABLE", "Trying to connect an http1.x server"),
    ("INVALID_ARGUMENT", "unexpected inference input"),
    ("UNIMPLEMENTED", "Method not found!"),
    ("INTERNAL", "onnx runtime error 2"),
]


class Failing:
    """Fails the click model's requests with a status, the first so many of them."""

    def __init__(self, server: FakeTriton, status: tuple[str, str], times: int = 10**6) -> None:
        self.status, self.times, self.attempts = status, times, 0
        server.before_infer = self

    def __call__(self, request) -> None:
        if request.model == "clickbert_onnx":
            self.attempts += 1
            if self.attempts <= self.times:
                raise FakeStatusError(*self.status)


@pytest.mark.parametrize("status", PASSING, ids=[message for _, message in PASSING])
def test_what_passes_is_sent_again(server, blocking, status):
    failing = Failing(server, status, times=2)
    with calls(server, blocking) as call:
        assert len(call("rank", "tea", ["a bar"])) == 1
    assert failing.attempts == 3
    assert from_status(*status, where="m at u").is_retryable


@pytest.mark.parametrize("status", LASTING, ids=[message for _, message in LASTING])
def test_what_lasts_is_not(server, blocking, status):
    failing = Failing(server, status)
    with calls(server, blocking) as call, pytest.raises(clickbert.ServerError) as caught:
        call("rank", "tea", ["a bar"])
    assert failing.attempts == 1
    assert not caught.value.is_retryable


def test_the_third_failure_is_the_callers(server, blocking):
    failing = Failing(server, LOST)
    with calls(server, blocking) as call, pytest.raises(clickbert.ConnectionFailedError):
        call("rank", "tea", ["a bar"])
    assert failing.attempts == 3


def test_retries_can_be_switched_off(server, url, blocking):
    failing = Failing(server, LOST)
    with pytest.raises(clickbert.ConnectionFailedError):
        call_once(url, blocking, "rank", "tea", ["a bar"], ranker={"retries": 0})
    assert failing.attempts == 1


@pytest.mark.parametrize("number", [-1, 1.5, True, None, "2"])
def test_a_wrong_number_of_retries_is_refused(number):
    for kind in (Ranker, AsyncRanker):
        with pytest.raises(clickbert.InvalidInputError, match="retries is"):
            kind("localhost:8001", retries=number)


def test_the_question_about_the_model_is_sent_again_too(server, blocking, monkeypatch):
    describe, times = server.describe, []

    def fail_once(model):
        times.append(model)
        if len(times) == 1:
            raise FakeStatusError(*LOST)
        return describe(model)

    monkeypatch.setattr(server, "describe", fail_once)
    with calls(server, blocking) as call:
        assert len(call("rank", "tea", ["a bar"])) == 1


def test_no_retry_begins_after_the_deadline(server, blocking, monkeypatch):
    """The pause would be longer than what is left of the call."""
    monkeypatch.setattr(retries, "random", SimpleNamespace(uniform=lambda low, high: 7.0))
    failing = Failing(server, LOST)
    began = time.monotonic()
    with calls(server, blocking) as call, pytest.raises(clickbert.ConnectionFailedError):
        call("rank", "tea", ["a bar"], timeout=5.0)
    assert failing.attempts == 1
    assert time.monotonic() - began < 5


def test_when_everything_fails_a_tenth_is_added(server):
    failing = Failing(server, LOST)
    with calls(server, blocking=True) as call:
        for _ in range(300):
            with pytest.raises(clickbert.ConnectionFailedError):
                call("rank", "tea", ["a bar"], timeout=30.0)
    # Two retries for a request, until three are used up; then one for every tenth request, the tokenizer's among them.
    assert 300 * 1.08 < failing.attempts <= 300 * 1.1 + 1


def test_a_quiet_time_saves_ten_retries_at_most():
    budget = RetryBudget()
    for _ in range(10_000):
        budget.note_request()
    assert sum(budget.take_one() for _ in range(100)) == 10


def test_a_client_that_just_began_has_three():
    budget = RetryBudget()
    budget.note_request()
    assert sum(budget.take_one() for _ in range(100)) == 3
    for _ in range(29):
        budget.note_request()
    assert not budget.take_one(), "the three were those of the first thirty requests"


def test_pauses_are_drawn_from_up_to_twice_as_much_each_time(monkeypatch):
    bounds = []

    def uniform(low, high):
        bounds.append((low, high))
        return 0.0

    monkeypatch.setattr(retries, "random", SimpleNamespace(uniform=uniform))
    budget = RetryBudget()
    for _ in range(1000):
        budget.note_request()
    one = Retries(7, budget)
    error = from_status(*LOST, where="m at u")
    assert [one.pause_after(error, 10.0) for _ in range(8)] == [0.0] * 7 + [None]
    assert bounds == [(0, high) for high in (0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0)]
