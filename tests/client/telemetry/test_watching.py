"""Observers: what they are told of a call, the headers that they add, and that they cannot harm it."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from clickbert import Connection, InvalidInputError, ServerOverloadedError
from clickbert.calls import retries
from clickbert.telemetry.observer import Call
from tests.client.fake_model import FakeStatusError
from tests.client.fakes import Guard, calls, grpc_server, held


class Witness:
    """Keeps what it saw of each call, at its beginning and at its end."""

    def __init__(self, **headers: str) -> None:
        self.sent = headers
        self.calls: list[Call] = []
        self.began: list[Call] = []
        self.ended: list[Call] = []

    @contextmanager
    def observe(self, call: Call) -> Iterator[None]:
        self.calls.append(call)
        self.began.append(replace(call))
        yield
        self.ended.append(replace(call))

    def headers(self) -> Mapping[str, str]:
        assert len(self.began) == len(self.ended) + 1, "asked inside observe"
        return self.sent


def test_a_call_is_told_with_its_counts(server, blocking):
    server.parameters = {"max_elements.lengths": "10"}
    witness = Witness()
    with calls(server, blocking, observers=[witness]) as call:
        call("rank", "tea", [f"bar {number}" for number in range(25)])
        call("score_pairs", [("tea", "a bar")])
    assert witness.began[0] == Call("rank", "clickbert_onnx", 25)
    # The model's description, its tokenizer, and three requests.
    assert [replace(ended, scores=()) for ended in witness.ended] == [
        Call("rank", "clickbert_onnx", 25, requests=5, version="1"),
        Call("score_pairs", "clickbert_onnx", 1, requests=1, version="1"),
    ]
    assert [len(ended.scores) for ended in witness.ended] == [25, 1]


def test_retries_are_told(server, blocking):
    failures = iter([FakeStatusError("UNAVAILABLE", "Socket closed")])

    def fail_once(request):
        if request.model == "clickbert_onnx":
            for failure in failures:
                raise failure

    witness = Witness()
    with calls(server, blocking, observers=[witness]) as call:
        call("rank", "tea", ["a bar"])
        server.before_infer = fail_once
        call("rank", "tea", ["a bar"])
    assert replace(witness.ended[1], scores=()) == Call("rank", "clickbert_onnx", 1, requests=2, retries=1, version="1")


def test_after_its_error_a_call_sends_nothing_more_and_its_counts_stay(server, monkeypatch):
    """Its other requests would go on in threads of their own."""
    monkeypatch.setattr(retries, "random", SimpleNamespace(uniform=lambda low, high: 0.5))
    server.parameters = {"max_elements.lengths": "1"}

    def fail(request):
        if request.model == "clickbert_onnx":
            is_first = request.inputs["lengths"].item() == len(["[CLS]", "tea", "[SEP]", "a", "[SEP]"])
            raise FakeStatusError("UNAVAILABLE", "Exceeds maximum queue size" if is_first else "Socket closed")

    witness = Witness()
    with calls(server, True, observers=[witness]) as call:
        server.before_infer = fail
        with pytest.raises(ServerOverloadedError):
            call("rank", "tea", ["a", "a b", "a b c", "a b c d"])
        time.sleep(0.2)  # a request that was being sent may still arrive
        sent = len(server.requests)
        time.sleep(0.7)
    assert len(server.requests) == sent
    assert witness.calls == witness.ended


def test_errors_and_fallbacks_are_told(server, blocking):
    def refuse(request):
        raise FakeStatusError("UNAVAILABLE", "Exceeds maximum queue size")

    witness = Witness()
    with calls(server, blocking, observers=[witness]) as call:
        with pytest.raises(InvalidInputError):
            call("embed", ["a bar"])
        server.before_infer = refuse
        with pytest.raises(ServerOverloadedError):
            call("rank", "tea", ["a bar"])
        call("rank", "tea", ["a bar"], fallback=True)
    told = [(each.name, each.error, each.is_fallback) for each in witness.ended]
    assert told == [
        ("embed", "InvalidInputError", False),
        ("rank", "ServerOverloadedError", False),
        ("rank", "ServerOverloadedError", True),
    ]


def test_no_text_is_told(server, blocking):
    witness = Witness()
    with calls(server, blocking, observers=[witness]) as call:
        call("rank", "qanarytext", ["danarytext"])
    assert "anarytext" not in str(asdict(witness.ended[0]))


def test_headers_go_with_every_request_and_not_over_the_connections_own(server, blocking):
    guard = Guard("traceparent", "00-trace-span-01")
    tokens = Guard("authorization", "Bearer t0ken")
    witness = Witness(traceparent="00-trace-span-01", authorization="Bearer of the observer")
    with grpc_server(server, guard, tokens) as url:
        with calls(Connection(url, token="t0ken"), blocking, observers=[witness]) as call:
            call("rank", "tea", ["a bar"])
    assert [name for name, _ in guard.calls] == ["ModelMetadata", "ModelConfig", "ModelInfer", "ModelInfer"]


HEADERS = {"a wrong header": {"Bad Header": "\n"}, "a number": {"tries": 5}, "a text as bytes": {"trace-bin": "x"}}


class Broken:
    """Fails where it is told to."""

    def __init__(self, where: str) -> None:
        self.where = where

    def fail(self, where: str) -> None:
        if where == self.where:
            raise RuntimeError(f"broken in {where}")

    @contextmanager
    def around(self) -> Iterator[None]:
        self.fail("enter")
        yield
        self.fail("exit")

    def observe(self, call: Call):
        self.fail("observe")
        return self.around()

    def headers(self) -> Mapping[str, str]:
        self.fail("headers")
        return HEADERS.get(self.where, {})


@pytest.mark.parametrize("where", ["observe", "enter", "headers", "exit", *HEADERS])
def test_one_that_fails_is_logged_once_and_harms_nobody(server, url, blocking, caplog, where):
    witness = Witness()
    with caplog.at_level(logging.DEBUG, "clickbert"), calls(url, blocking, observers=[Broken(where), witness]) as call:
        for _ in range(3):
            assert len(call("rank", "tea", ["a bar"])) == 1
    assert len(witness.ended) == 3
    assert len([each for each in caplog.records if each.name == "clickbert"]) == 1
    assert "Broken failed" in caplog.text


def test_a_cancelled_call_is_told(server, url):
    import asyncio

    from clickbert import AsyncRanker

    witness = Witness()

    async def scenario():
        async with AsyncRanker(url, observers=[witness]) as ranker:
            with held(server) as requests:
                call = asyncio.create_task(ranker.rank("tea", ["a bar"]))
                await asyncio.to_thread(requests.wait_until_reached)
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)

    asyncio.run(scenario())
    assert [each.error for each in witness.ended] == ["CancelledError"]
