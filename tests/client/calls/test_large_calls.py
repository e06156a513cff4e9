"""Calls of more documents than a request may have: how they are divided, and when they are tokenized.

Every test here runs for `Ranker` and for `AsyncRanker`.
"""

import asyncio
import random
import threading
import time
from itertools import pairwise

import pytest

from clickbert import AsyncRanker, Ranker, ServerTimeoutError
from clickbert.calls.session import MAX_IN_FLIGHT
from clickbert.wire.tokenization import PairTokenizer
from tests.client.fakes import FakeTriton, calls, grpc_server

DOCUMENTS = ["a " * length + "bar" for length in random.Random(0).sample(range(1, 25), 24)]


def rank(url: str, blocking: bool, documents: list[str]):
    if blocking:
        with Ranker(url) as ranker:
            return ranker.rank("coffee near me", documents)

    async def call():
        async with AsyncRanker(url) as ranker:
            return await ranker.rank("coffee near me", documents)

    return asyncio.run(call())


def small_requests(pairs: int) -> FakeTriton:
    server = FakeTriton()
    server.parameters = {"max_elements.lengths": str(pairs)}
    return server


def test_a_request_holds_documents_of_similar_length(blocking):
    server = small_requests(5)
    with grpc_server(server) as url:
        ranked = rank(url, blocking, DOCUMENTS)
    sent = [request.inputs["lengths"][0].tolist() for request in server.requests if "lengths" in request.inputs]
    assert sorted(map(len, sent)) == [4, 5, 5, 5, 5]
    ends = sorted((min(lengths), max(lengths)) for lengths in sent)
    assert all(longest <= shortest for (_, longest), (shortest, _) in pairwise(ends))
    for item in ranked:
        assert item.text == DOCUMENTS[item.index]
        expected = server.published[1].expected("coffee near me", item.text)
        assert item.score == pytest.approx(expected, abs=1e-6)


@pytest.fixture
def tokenized(monkeypatch) -> list[list[str]]:
    """The texts of each call of the tokenizers library, in order."""
    calls: list[list[str]] = []
    encode = PairTokenizer._encode

    def record(self, texts):
        calls.append(list(texts))
        return encode(self, texts)

    monkeypatch.setattr(PairTokenizer, "_encode", record)
    return calls


def test_texts_are_tokenized_while_other_requests_are_on_their_way(blocking, tokenized):
    server = small_requests(1)
    sent, lock = 0, threading.Lock()
    ahead: list[int] = []

    def done() -> int:
        return sum(any("bar" in text for text in texts) for texts in list(tokenized))

    def answer_slowly(request):
        nonlocal sent
        if request.model == "clickbert_onnx":
            with lock:
                sent += 1
                ahead.append(done() - sent)
                first = sent == 1
            deadline = time.monotonic() + (10 if first else 0.005)
            while time.monotonic() < deadline and not (first and done() == MAX_IN_FLIGHT):
                time.sleep(0.001)
            if first:  # which nobody has answered yet
                ahead_of_the_first.append(done())

    ahead_of_the_first: list[int] = []
    server.before_infer = answer_slowly
    with grpc_server(server) as url:
        rank(url, blocking, DOCUMENTS)
    assert sent == len(DOCUMENTS)
    assert ahead_of_the_first[0] >= MAX_IN_FLIGHT, "the others waited for the first answer"
    assert max(ahead) < MAX_IN_FLIGHT, "a request is tokenized only when it is about to be sent"


def test_the_query_is_tokenized_once_a_request(blocking, tokenized):
    server = small_requests(6)
    with grpc_server(server) as url:
        rank(url, blocking, DOCUMENTS)
    assert sum(texts.count("coffee near me") for texts in tokenized) == 4


LATE = 0.5  # seconds


def test_after_the_deadline_a_call_neither_waits_for_a_mask_nor_tokenizes(server, blocking, tokenized):
    def mask(text: str) -> str:
        if text == "slow":
            time.sleep(LATE)
        return text

    with calls(server, blocking, mask=mask) as call:
        call("rank", "tea", ["a bar"])
        del tokenized[:]
        began = time.monotonic()
        with pytest.raises(ServerTimeoutError, match="no result within"):
            call("rank", "tea", ["slow"], timeout=0.1)
        took = time.monotonic() - began
    assert tokenized == []
    assert (took < LATE) == (not blocking), "a blocking call finishes the text"


def test_after_the_deadline_a_call_does_not_wait_for_the_tokenizer(server, blocking, monkeypatch):
    encode = PairTokenizer._encode

    def slow(self, texts):
        if "slow" in texts:
            time.sleep(LATE)
        return encode(self, texts)

    monkeypatch.setattr(PairTokenizer, "_encode", slow)
    with calls(server, blocking) as call:
        call("rank", "tea", ["a bar"])
        asked = len(server.requests)
        began = time.monotonic()
        with pytest.raises(ServerTimeoutError, match="no result within"):
            call("rank", "tea", ["slow"], timeout=0.1)
        took = time.monotonic() - began
    assert len(server.requests) == asked
    assert (took < LATE) == (not blocking), "a blocking call finishes the text"
