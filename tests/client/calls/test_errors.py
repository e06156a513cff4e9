"""Failures of the server and of the network, and the errors they become. The messages are those of Triton 2.51."""

import http.server
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import count

import grpc
import numpy as np
import pytest

import clickbert
from clickbert import Ranker
from clickbert.errors import from_status
from tests.client.calls.test_retries import ENVOYS
from tests.client.fake_model import FakeStatusError, Published
from tests.client.fakes import FakeTransport, FakeTriton, held, rank_once

STATUSES = [
    ("UNAVAILABLE", "Exceeds maximum queue size", "ServerOverloadedError", "later"),
    ("UNAVAILABLE", "Request timeout expired", "ServerTimeoutError", "busy"),
    (
        "UNAVAILABLE",
        "This protocol is restricted, expecting header 'k'",
        "AuthenticationError",
        "triton-grpc-protocol-clickbert-token",
    ),
    ("UNAUTHENTICATED", "Invalid token", "AuthenticationError", "CLICKBERT_TOKEN"),
    ("PERMISSION_DENIED", "no", "PermissionDeniedError", "a token that allows"),
    # A name or a number that is wrong, and stays so.
    ("NOT_FOUND", "Request for unknown model: 'x' is not found", "ModelNotFoundError", "name"),
    ("NOT_FOUND", "Request for unknown model: 'x' version 3 is not found", "ModelNotFoundError", "name"),
    # After SIGTERM, after an unload, and until a load is through. (tests/integration has the real ones.)
    ("NOT_FOUND", "Request for unknown model: 'x' has no available versions", "ServerUnavailableError", "later"),
    (
        "UNAVAILABLE",
        "Request for unknown model: 'x' version 1 is not at ready state",
        "ServerUnavailableError",
        "later",
    ),
    # A request that was waiting in a queue when SIGTERM came, and a call that the end of the server cut off.
    (
        "UNAVAILABLE",
        "Server is stopping, scheduler for model has stopped accepting new inference requests",
        "ServerUnavailableError",
        "another server",
    ),
    ("UNAVAILABLE", "Server not ready", "ServerUnavailableError", "later"),
    ("CANCELLED", "CANCELLED", "ServerUnavailableError", "later"),
    ("CANCELLED", "upstream channel reset", "ServerUnavailableError", "later"),
    ("UNAVAILABLE", "no healthy upstream", "ServerUnavailableError", "another server"),
    # Envoy 1.40's: of a server that is gone, of a circuit breaker, of a rate limit, and of its own timeout.
    ("UNAVAILABLE", f"{ENVOYS} remote connection failure", "ServerUnavailableError", "another server"),
    ("UNAVAILABLE", f"{ENVOYS} overflow", "ServerOverloadedError", "later"),
    ("UNAVAILABLE", "local_rate_limited", "ServerOverloadedError", "later"),
    ("UNAVAILABLE", "upstream request timeout", "ServerTimeoutError", "busy"),
    ("INVALID_ARGUMENT", "unexpected inference input 'lengths' for model 'x'", "ProtocolError", "ClickBERT"),
    ("UNIMPLEMENTED", "Method not found!", "ProtocolError", "not a Triton"),
    ("RESOURCE_EXHAUSTED", "Received message larger than max (5 vs. 4)", "ProtocolError", "larger"),
    ("RESOURCE_EXHAUSTED", "rate limit", "ServerOverloadedError", "later"),
    ("DEADLINE_EXCEEDED", "Deadline Exceeded", "ServerTimeoutError", "timeout"),
    ("UNAVAILABLE", "Socket closed", "ConnectionFailedError", "8001"),
    (
        "UNAVAILABLE",
        "failed to connect to all addresses; last error: UNKNOWN: ipv6:%5B::1%5D:8001: Failed to connect to remote"
        " host: Connection refused",
        "ConnectionFailedError",
        "write 127.0.0.1 in place of localhost",
    ),
    ("INTERNAL", "onnx runtime error 2", "ServerError", "log"),
]


@pytest.mark.parametrize("status, message, name, hint", STATUSES)
def test_each_status_becomes_its_own_error(server, url, blocking, status, message, name, hint):
    def fail(request):
        if request.model == "clickbert_onnx":
            raise FakeStatusError(status, message)

    server.before_infer = fail
    with pytest.raises(clickbert.ClickBertError) as caught:
        rank_once(url, blocking)
    assert type(caught.value).__name__ == name
    for part in (message, url, "clickbert_onnx", hint):
        assert part in str(caught.value)
    assert caught.value.__cause__ is not None


def test_an_unknown_model_is_named(url, blocking):
    with pytest.raises(clickbert.ModelNotFoundError, match=r"clickbert_trt at 127\.0\.0\.1:\d+"):
        rank_once(url, blocking, model="clickbert_trt")


def test_nothing_listens(blocking):
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused, and nobody else gets the port
        with pytest.raises(clickbert.ConnectionFailedError, match="check that the server runs"):
            rank_once(f"127.0.0.1:{taken.getsockname()[1]}", blocking)


def test_an_unknown_host(blocking):
    with pytest.raises((clickbert.ConnectionFailedError, clickbert.ServerTimeoutError), match="no-such-host"):
        rank_once("no-such-host.invalid:8001", blocking, timeout=3.0)


def test_a_port_that_never_answers(blocking):
    silent = socket.create_server(("127.0.0.1", 0))
    with closing(silent), pytest.raises(clickbert.ServerTimeoutError, match="gRPC port"):
        rank_once(f"127.0.0.1:{silent.getsockname()[1]}", blocking, timeout=0.3)


@contextmanager
def http_port():
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield http_server.server_port
        http_server.shutdown()


def test_an_http_port_is_told_from_a_grpc_port(blocking):
    with http_port() as port, pytest.raises(clickbert.ConnectionFailedError, match="not HTTP"):
        rank_once(f"127.0.0.1:{port}", blocking)


def test_the_message_of_tritons_own_http_port():
    text = "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:8000: Socket closed"
    error = from_status("StatusCode.UNAVAILABLE", text, where="m at u")
    assert isinstance(error, clickbert.ConnectionFailedError) and "not HTTP (8000)" in str(error)


def test_a_grpc_server_that_is_no_triton(blocking):
    other = grpc.server(ThreadPoolExecutor(1))
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    try:
        with pytest.raises(clickbert.ProtocolError, match="not a Triton server"):
            rank_once(f"127.0.0.1:{port}", blocking)
    finally:
        other.stop(0).wait()


def test_a_slow_answer_is_a_timeout(server, url, blocking):
    with held(server), pytest.raises(clickbert.ServerTimeoutError, match="timeout"):
        rank_once(url, blocking, timeout=0.3)


def test_a_server_that_comes_back_is_used_again(server, url):
    with Ranker(url) as ranker:
        server.before_infer = lambda request: (_ for _ in ()).throw(FakeStatusError("UNAVAILABLE", "Socket closed"))
        with pytest.raises(clickbert.ConnectionFailedError):
            ranker.rank("tea", ["a bar"])
        server.before_infer = lambda request: None
        assert len(ranker.rank("tea", ["a bar"])) == 1


def published(**changes) -> FakeTriton:
    return FakeTriton({1: replace(Published(), **changes)})


def spoiled(name: str, array: np.ndarray | None) -> FakeTriton:
    """A server that answers with `array` in place of the output `name`, or leaves it out."""
    server = FakeTriton()

    def spoil(answer):
        outputs = dict(answer.outputs)
        if name in outputs:
            outputs |= {name: array}
            if array is None:
                del outputs[name]
        return replace(answer, outputs=outputs)

    server.after_infer = spoil
    return server


nan, inf = np.float32("nan"), np.float32("inf")
BROKEN = [
    (published(sha256="0" * 64), "damaged"),
    (published(tokenizer=b"{}"), "not a usable tokenizer.json"),
    (published(tokenizer=b"\xff\xfe"), "not a usable tokenizer.json"),
    (published(max_length=2), "max_length is 2"),
    (published(click_label=1), "click_label is 1"),
    (published(labels=()), "list of names"),
    (spoiled("logits", np.array([[[nan]]])), "1 of 1 pairs are not finite"),
    (spoiled("logits", np.array([[[inf]]])), "not finite"),
    (spoiled("logits", np.zeros((1, 2, 1), np.float32)), r"float32\[1, 2, 1\], expected float32\[1, 1, 1\]"),
    (spoiled("logits", np.zeros((1, 1, 2), np.float32)), r"\[1, 1, 2\]"),
    (spoiled("logits", np.zeros((1, 1, 1), np.float64)), "float64"),
    (spoiled("logits", None), "no 'logits'"),
    (spoiled("tokenizer_json", np.zeros(0, np.uint8)), "tokenizer_json"),
    (spoiled("max_length", np.zeros(1, np.int64)), "int64"),
    (spoiled("labels_json", np.frombuffer(b"[click", np.uint8)), "not JSON"),
    (spoiled("labels_json", np.frombuffer(b'"\xff"', np.uint8)), "not UTF-8"),
]


@pytest.mark.parametrize("server, message", BROKEN, ids=[message for _, message in BROKEN])
def test_a_broken_contract_is_a_protocol_error(server, message):
    ranker = Ranker("localhost:8001", transport=FakeTransport(server))
    with pytest.raises(clickbert.ProtocolError, match=message):
        ranker.rank("tea", ["a bar"])


@pytest.mark.parametrize("value", ["", "0", "-1", "many"])
def test_a_broken_limit_is_a_protocol_error(server, value):
    server.parameters = {"max_elements.lengths": value}
    with pytest.raises(clickbert.ProtocolError, match=r"max_elements\.lengths"):
        Ranker("localhost:8001", transport=FakeTransport(server)).rank("tea", ["a bar"])


def test_zero_bytes_with_status_ok_are_a_protocol_error(server, url, blocking):
    """The server of the wheel does that where its environment has numpy 2."""

    class NoBytes(np.ndarray):
        def tobytes(self, order="C"):
            return b""

    def empty(answer):
        outputs = {name: array.view(NoBytes) if name == "logits" else array for name, array in answer.outputs.items()}
        return replace(answer, outputs=outputs)

    server.after_infer = empty
    with pytest.raises(clickbert.ProtocolError, match="too few or too many bytes"):
        rank_once(url, blocking)


def test_one_failed_request_fails_the_call_and_the_rest_is_not_sent(server):
    numbers = count()

    def fail_second(request):
        if request.model == "clickbert_onnx" and next(numbers) == 1:
            raise FakeStatusError("UNAVAILABLE", "Exceeds maximum queue size")

    server.before_infer = fail_second
    server.parameters = {"max_elements.lengths": "1"}
    ranker = Ranker("localhost:8001", transport=FakeTransport(server))
    with pytest.raises(clickbert.ServerOverloadedError):
        ranker.rank("tea", [f"bar {number}" for number in range(1000)])
    assert next(numbers) < 900
