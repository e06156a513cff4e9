"""Versions that change while clients run: no score may come from a tokenizer that is not its model's.

Every test here runs for `Ranker` and for `AsyncRanker`.
"""

import asyncio
from dataclasses import replace

import pytest

from clickbert import AsyncRanker, ModelNotFoundError, ProtocolError, Ranker, ServerError
from clickbert.wire.protocol import CALL_HEADER
from tests.client.fake_model import WORDS, FakeStatusError, Published, tokenizer_json
from tests.client.fakes import AsyncFakeTransport, FakeTransport, FakeTriton, publish_after

OTHER = tokenizer_json(list(reversed(WORDS)))  # same words, other ids
SMALLER = tokenizer_json(WORDS[:2])  # ids of the old one are beyond its vocabulary
PAIRS = [("coffee near me", f"a cheap cafe {number} of the city") for number in range(150)]


class Blocking:
    """`Ranker.score_pairs`, over the in-memory transport."""

    def __init__(self, server: FakeTriton) -> None:
        self.ranker = Ranker("localhost:8001", transport=FakeTransport(server))

    def score(self, pairs=PAIRS):
        return self.ranker.score_pairs(pairs)


class Awaited:
    """`AsyncRanker.score_pairs`, each call in one event loop that stays."""

    def __init__(self, server: FakeTriton) -> None:
        self.runner = asyncio.Runner()
        self.ranker = AsyncRanker("localhost:8001", transport=AsyncFakeTransport(server))

    def score(self, pairs=PAIRS):
        return self.runner.run(self.ranker.score_pairs(pairs))


@pytest.fixture(params=[Blocking, Awaited])
def kind(request):
    return request.param


def from_version(server: FakeTriton, version: int, pairs=PAIRS):
    return pytest.approx([server.published[version].expected(*pair) for pair in pairs], abs=1e-6)


CHANGES = {
    "same tokenizer": Published(shift=0.5),
    "other tokenizer": Published(OTHER, shift=0.5),
    "smaller vocabulary": Published(SMALLER, shift=0.5),
    "shorter limit": Published(max_length=9, shift=0.5),
    "other label": Published(labels=("click", "no"), shift=0.5),
    "swapped labels": Published(labels=("no", "click"), click_label=1, shift=0.5),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("requests_before", [0, 1, 2, 3])
def test_a_version_published_at_any_moment_is_noticed(kind, name, requests_before):
    server = FakeTriton({1: Published()})
    client = kind(server)
    assert client.score() == from_version(server, 1)
    server.published[2] = CHANGES[name]
    publish_after(server, requests_before, 2)
    expected = from_version(server, 2 if requests_before < 3 else 1)
    assert client.score() == expected
    assert client.score() == from_version(server, 2)
    assert server.asked.count(("clickbert_tokenizer", "2")) == 1


def test_a_version_with_the_same_tokenizer_costs_no_second_answer(kind):
    server = FakeTriton({1: Published()})
    client = kind(server)
    client.score()
    server.published[2], server.serving = Published(shift=0.5), 2
    server.requests.clear()
    client.score()
    assert server.asked == [("clickbert_onnx", "")] * 3 + [("clickbert_tokenizer", "2")]


def test_only_the_answers_of_the_old_version_are_asked_again_where_the_tokenizer_stayed(kind):
    server = FakeTriton({1: Published()})
    client = kind(server)
    client.score()
    server.published[2] = Published(shift=0.5)
    publish_after(server, 1, 2)
    server.requests.clear()
    assert client.score() == from_version(server, 2)
    assert server.asked == [("clickbert_onnx", "")] * 3 + [("clickbert_tokenizer", "2"), ("clickbert_onnx", "2")]


def test_going_back_to_an_older_version_is_noticed_too(kind):
    server = FakeTriton({1: Published(), 2: Published(OTHER, shift=0.5)})
    client = kind(server)
    assert client.score() == from_version(server, 2)
    publish_after(server, 1, 1)
    assert client.score() == from_version(server, 1)
    server.before_infer = lambda request: None
    server.serving = 2
    assert client.score() == from_version(server, 2)
    assert server.asked.count(("clickbert_tokenizer", "2")) == 1, "a known version is not fetched again"


def test_the_version_changes_between_reading_it_and_the_first_request(kind):
    server = FakeTriton({1: Published(), 2: Published(OTHER)})
    server.serving = 1

    publish_after(server, 0, 2)
    assert kind(server).score() == from_version(server, 2)


def test_a_second_change_during_the_second_try_cannot_mix_versions(kind):
    server = FakeTriton({1: Published()})
    client = kind(server)
    client.score()
    server.published |= {2: Published(OTHER), 3: Published()}
    server.serving = 2

    def move_on(request):
        if request.version == "2":
            server.serving = 3

    server.before_infer = move_on
    assert client.score() == from_version(server, 2)


def test_a_version_that_is_gone_at_the_second_try_is_an_error_not_a_mix(kind):
    server = FakeTriton({1: Published()})
    client = kind(server)
    client.score()
    server.published[2], server.serving = Published(OTHER), 2

    def retire(request):
        if request.model == "clickbert_onnx" and request.version == "2":
            del server.published[2]

    server.before_infer = retire
    with pytest.raises(ModelNotFoundError, match="version 2"):
        client.score(PAIRS[:5])


@pytest.mark.parametrize("model", ["clickbert_tokenizer", "clickbert_onnx"])
def test_a_version_that_is_rolled_back_amid_a_call_has_it_begin_anew(kind, model):
    server = FakeTriton({1: Published()})
    client = kind(server)
    client.score()
    server.published[2], server.serving = Published(OTHER, shift=0.5), 2

    def roll_back(request):
        if (request.model, request.version) == (model, "2"):
            server.published.pop(2, None)
            server.serving = 1

    server.before_infer = roll_back
    assert client.score(PAIRS[:5]) == from_version(server, 1, PAIRS[:5])


def test_the_first_version_listed_is_rolled_back_before_its_tokenizer_is_fetched(kind):
    server = FakeTriton({1: Published(), 2: Published(OTHER, shift=0.5)})

    def roll_back(request):
        server.published.pop(2, None)
        server.serving = 1

    server.before_infer = roll_back
    assert kind(server).score(PAIRS[:5]) == from_version(server, 1, PAIRS[:5])


def test_requests_of_a_call_have_one_number_and_another_call_has_another():
    transport = FakeTransport(FakeTriton())
    ranker = Ranker("localhost:8001", transport=transport)
    numbers = []
    for _ in range(2):
        transport.headers.clear()
        ranker.score_pairs(PAIRS)
        numbers.append({each[CALL_HEADER] for each in transport.headers})
    assert [len(each) for each in numbers] == [1, 1] and numbers[0] != numbers[1]
    assert all(0 <= int(each) < 2**64 for found in numbers for each in found)


def test_a_server_that_ignores_the_pinned_version_is_an_error(kind):
    server = FakeTriton({1: Published()})
    client = kind(server)
    client.score()
    server.published[2], server.serving = Published(OTHER), 2
    answered = iter("23")
    server.after_infer = lambda answer: (
        replace(answer, version=next(answered)) if "logits" in answer.outputs else answer
    )
    with pytest.raises(ProtocolError, match="asked for version 2, but version '3' answered"):
        client.score(PAIRS[:5])


@pytest.mark.parametrize("status", ["INVALID_ARGUMENT", "INTERNAL", "UNKNOWN"])
def test_a_refusal_that_a_stale_tokenizer_caused_is_overcome(kind, status):
    server = FakeTriton({1: Published()})
    client = kind(server)
    client.score()
    server.published[2], server.serving = Published(SMALLER), 2

    def refuse(request):
        if request.model == "clickbert_onnx" and not request.version:
            raise FakeStatusError(status, "token id out of range")

    server.before_infer = refuse
    assert client.score() == from_version(server, 2)


@pytest.mark.parametrize("successor", [None, Published(shift=1.0)])
def test_a_refusal_with_another_cause_is_passed_on_after_one_try(kind, successor):
    server = FakeTriton({1: Published()})
    client = kind(server)
    client.score()
    if successor:
        server.published[2], server.serving = successor, 2

    def refuse(request):
        if request.model == "clickbert_onnx":
            raise FakeStatusError("INTERNAL", "out of memory")

    server.before_infer = refuse
    server.requests.clear()
    with pytest.raises(ServerError, match="out of memory"):
        client.score(PAIRS[:5])
    assert server.asked.count(("clickbert_onnx", "")) == 1


def test_many_versions_do_not_pile_up(kind):
    server = FakeTriton({number: Published(shift=number / 10) for number in range(1, 9)})
    client = kind(server)
    for number in range(1, 9):
        server.serving = number
        assert client.score(PAIRS[:2]) == from_version(server, number, PAIRS[:2])
    assert len(client.ranker._session.releases._known) == 4
