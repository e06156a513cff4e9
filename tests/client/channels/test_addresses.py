"""Several addresses: how they are written, that calls take turns, and pass over those that fail."""

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace

import pytest

import clickbert
from clickbert import AsyncRanker, Connection, InvalidInputError, Ranker
from clickbert.channels import rotation
from clickbert.channels.rotation import Rotation
from clickbert.errors import ConnectionFailedError, ServerOverloadedError, ServerTimeoutError, ServerUnavailableError
from tests.client.fake_model import FakeStatusError
from tests.client.fakes import FakeTriton, calls, grpc_server


@pytest.fixture
def dead() -> Iterator[str]:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused, and nobody else gets the port
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def test_they_are_one_field_however_they_are_written():
    expected = Connection("a.example:1,b.example:2")
    assert expected.targets == ("a.example:1", "b.example:2")
    for url in (["a.example:1", "b.example:2"], ("grpc://a.example:1", "b.example:2"), "a.example:1, b.example:2"):
        assert Connection(url) == expected
        Ranker(url).close()
        AsyncRanker(url)
    assert Connection(["grpcs://a.example:1", "grpcs://b.example:2"]).tls


@pytest.mark.parametrize(
    "url, message",
    [
        ([], "expected the host"),
        (["a.example:1", "b.example"], "'b.example', expected the host"),
        ("a.example:1,", "url is ''"),
        (["a.example:1", 7], "url is 7"),
        (b"a.example:1", "expected the host"),
        ("a.example:1,a.example:1", "twice"),
        ("grpcs://a.example:1,b.example:2", "in front of each"),
        ("dns://a.example:1", "expected the host"),
        ("dns:///a.example", "expected the host"),
    ],
)
def test_wrong_ones_are_refused(url, message):
    with pytest.raises(InvalidInputError, match=message):
        Connection(url)


def test_a_token_leaves_the_machine_with_none_of_them():
    with pytest.raises(InvalidInputError, match="readable"):
        Connection("localhost:1,ranking.example:2", token="t0ken")
    Connection("localhost:1,127.0.0.1:2", token="t0ken")


def test_calls_take_turns(blocking):
    one, other = FakeTriton(), FakeTriton()
    with grpc_server(one) as first, grpc_server(other) as second:
        with calls([first, second], blocking) as call:
            for _ in range(20):
                call("rank", "tea", ["a bar"])
    asked = [server.asked.count(("clickbert_onnx", "")) for server in (one, other)]
    assert sorted(asked) == [10, 10]


def test_one_that_is_down_is_passed_over(server, url, dead, blocking):
    with calls([dead, url], blocking) as call:
        for _ in range(20):
            assert len(call("rank", "tea", ["a bar"])) == 1
    assert server.asked.count(("clickbert_onnx", "")) == 20


def test_one_whose_name_is_gone_is_passed_over(server, url, blocking):
    with calls(["no-such-host.invalid:8001", url], blocking) as call:
        for _ in range(20):
            assert len(call("rank", "tea", ["a bar"])) == 1
    assert server.asked.count(("clickbert_onnx", "")) == 20


def test_one_that_drains_is_passed_over(server, url, blocking):
    draining = FakeTriton()
    draining.before_infer = refuse_with("NOT_FOUND", "Request for unknown model: 'x' has no available versions")
    with grpc_server(draining) as other, calls([other, url], blocking) as call:
        for _ in range(20):
            assert len(call("rank", "tea", ["a bar"])) == 1
    assert len(draining.requests) <= 3, "once, and again when its pause is over"


def test_one_that_is_overloaded_is_not(server, url, blocking):
    busy = FakeTriton()
    with grpc_server(busy) as other, calls([other, url], blocking) as call:
        call("rank", "tea", ["a bar"])
        busy.before_infer = refuse_with("UNAVAILABLE", "Exceeds maximum queue size")
        ended: Counter[str] = Counter()
        for _ in range(20):
            try:
                call("rank", "tea", ["a bar"])
                ended["answered"] += 1
            except clickbert.ServerOverloadedError:
                ended["overloaded"] += 1
    assert ended == {"answered": 10, "overloaded": 10}


def test_an_error_names_the_address_that_it_comes_from(dead, blocking):
    with calls([dead, "localhost:1"], blocking) as call, pytest.raises(ConnectionFailedError) as caught:
        call("rank", "tea", ["a bar"])
    assert (dead in str(caught.value)) != ("localhost:1:" in str(caught.value))


def test_a_name_stands_for_all_its_addresses(server, url, blocking, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # calls to this machine go past it here, too
    port = url.rpartition(":")[2]
    with calls(f"dns:///localhost:{port}", blocking) as call:
        assert len(call("rank", "tea", ["a bar"])) == 1
    options = dict(Connection("dns:///localhost:1").channel_options_for("dns:///localhost:1"))
    assert "round_robin" in str(options["grpc.service_config"])
    assert "grpc.service_config" not in dict(Connection("localhost:1").channel_options_for("localhost:1"))


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(rotation, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_the_pause_grows_with_each_failure_and_ends_with_an_answer(clock):
    turns = Rotation(["a", "b"])
    pauses = []
    for _ in range(8):
        turns.ended("a", ConnectionFailedError("lost"))
        began = clock.seconds
        while "a" not in {turns.next(), turns.next()}:
            clock.seconds += 0.25
        pauses.append(clock.seconds - began)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30]
    turns.ended("a")
    turns.ended("a", ServerUnavailableError("it drains"))
    clock.seconds += 0.5
    assert {turns.next(), turns.next()} == {"a", "b"}


def test_calls_that_fail_together_are_one_failure(clock):
    turns = Rotation(["a", "b"])
    for _ in range(8):
        turns.ended("a", ConnectionFailedError("lost"))
    clock.seconds += 0.5
    assert {turns.next(), turns.next()} == {"a", "b"}


def test_when_all_fail_all_are_used(clock):
    turns = Rotation(["a", "b", "c"])
    for target in "abc":
        turns.ended(target, ConnectionFailedError("lost"))
    assert {turns.next() for _ in range(3)} == {"a", "b", "c"}


@pytest.mark.parametrize("error", [ServerOverloadedError("full"), ServerTimeoutError("late")])
def test_a_busy_server_keeps_its_turn(clock, error):
    turns = Rotation(["a", "b"])
    turns.ended("a", error)
    assert {turns.next(), turns.next()} == {"a", "b"}


def test_a_timeout_does_not_end_a_pause(clock):
    turns = Rotation(["a", "b"])
    turns.ended("a", ConnectionFailedError("lost"))
    turns.ended("a", ServerTimeoutError("late"))
    assert {turns.next(), turns.next()} == {"b"}


def refuse_with(status: str, message: str):
    def refuse(request):
        raise FakeStatusError(status, message)

    return refuse
