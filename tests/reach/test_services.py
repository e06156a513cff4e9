"""The web services of examples/ on the real server: every call is answered, and nothing runs on for nobody."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from clickbert import Ranker
from release.names import ONNX_MODEL
from serving.addresses import LOOPBACK, free_ports
from serving.server import Server
from tests.client.fakes import FakeTriton, grpc_server, held
from tests.integration.scores import PATIENCE
from tests.processes import children, paused
from tests.reach.questions import Question
from tests.reach.services import COMMANDS, Service, running
from tests.serving.busy_cores import busy_cores, needs_bound_cores, waiting_in_the_schedule
from tests.waiting import eventually

pytestmark = pytest.mark.reach
EXACT = 1e-6  # of a score; a request is computed in other chunks when others are there
# How many of 50 calls a service has at the server at once, at least. Flask has 16 threads in each of two processes, and
# one of these may accept all calls.
AT_ONCE = {"fastapi": 50, "flask": 16, "gevent": 50, "gevent preloaded": 50}


@pytest.fixture(scope="module", params=COMMANDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def service(kind: str, published_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(kind, published_server.addresses.grpc, tmp_path_factory.mktemp("service")) as service:
        yield service


def asked(question: Question, **more: Any) -> dict[str, Any]:
    return {"query": question[0], "documents": question[1], "timeout": PATIENCE, **more}


def waiting(server: Server) -> int:
    return waiting_in_the_schedule(server, ONNX_MODEL)


@needs_bound_cores
def test_fifty_calls_at_once_are_all_at_the_server_and_get_what_the_ranker_says(
    kind: str, service: Service, published_server: Server, questions: list[Question]
) -> None:
    with Ranker(published_server.addresses.grpc, timeout=PATIENCE) as ranker:
        wanted = [ranker.rank(*question) for question in questions]
    with ThreadPoolExecutor(len(questions)) as pool:
        with busy_cores(published_server):
            answers = [pool.submit(service.search, asked(question)) for question in questions]
            eventually(lambda: waiting(published_server) >= AT_ONCE[kind])
        for answer, ranking in zip(answers, wanted, strict=True):
            status, body, _ = answer.result()
            assert status == 200
            assert [each["index"] for each in body["results"]] == [each.index for each in ranking]
            assert [each["text"] for each in body["results"]] == [each.text for each in ranking]
            scores = [each["score"] for each in body["results"]]
            assert scores == pytest.approx([each.score for each in ranking], abs=EXACT)


@pytest.mark.parametrize("kind", ["flask", "gevent preloaded"])
def test_each_forked_process_ranks(kind: str, published_server: Server, tmp_path: Path) -> None:
    with running(kind, published_server.addresses.grpc, tmp_path) as service:
        eventually(lambda: len(children(service.process.pid)) == 2)
        for each in children(service.process.pid):
            with paused([each]):  # so the other one answers
                assert service.search(asked(("w1", ["w2", "w3"])))[0] == 200


def test_top_k_is_the_ranker_s(service: Service) -> None:
    status, body, _ = service.search(asked(("w1", ["w2", "w3", "w4"]), top_k=2))
    assert (status, len(body["results"])) == (200, 2)


SECRET = "s3cret words"
WRONG = {
    "no JSON": b"{",
    "not UTF-8": b'{"query": "\xff", "documents": []}',
    "no object": [SECRET],
    "deep": b"[" * 100_000,
    "no documents": {"query": SECRET},
    "documents of other types": {"query": SECRET, "documents": [1, None]},
    "one text for documents": {"query": SECRET, "documents": SECRET},
    "too many": {"query": SECRET, "documents": [SECRET] * 1001},
    "a lone surrogate": {"query": f"{SECRET} \ud800", "documents": ["w1"]},
    "NaN": {"query": SECRET, "documents": ["w1"], "timeout": float("nan")},
    "a number without end": b'{"query": "w1", "documents": ["w1"], "top_k": %s}' % (b"9" * 10_000),
    "no time": {"query": SECRET, "documents": ["w1"], "timeout": 0},
    "a negative top_k": {"query": SECRET, "documents": ["w1"], "top_k": -1},
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG)
def test_a_wrong_body_is_the_caller_s_fault_and_its_text_is_in_no_log(service: Service, body: object) -> None:
    status, _, _ = service.search(body)
    assert 400 <= status < 500
    assert not service.said("Traceback")
    assert not service.said(SECRET)


def test_a_server_that_is_not_there_is_503_and_says_when_to_come_back(kind: str, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with running(kind, f"{LOOPBACK}:{port}", tmp_path) as service:
        status, body, headers = service.search(asked(("w1", [SECRET])))
        assert (status, headers["Retry-After"]) == (503, "1")
        assert b"ConnectionFailedError" in body
        assert service.said("search failed: ConnectionFailedError")
        assert not service.said(SECRET)


@needs_bound_cores
def test_a_search_has_a_deadline(service: Service, published_server: Server) -> None:
    with busy_cores(published_server):
        status, body, _ = service.search(asked(("w1", ["w2"]), timeout=0.5))
    assert status == 504
    assert b"ServerTimeoutError" in body


class Ends(grpc.ServerInterceptor):
    """Counts the calls that have ended: answered or cancelled."""

    def __init__(self) -> None:
        self.count = 0

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            context.add_callback(self.note)
            return handler.unary_unary(request, context)

        return handler._replace(unary_unary=answer)

    def note(self) -> None:
        self.count += 1


def test_a_caller_that_hangs_up_cancels_its_search_at_the_server(tmp_path: Path) -> None:
    """By a server that answers nothing until the call has ended without an answer."""
    triton, ends = FakeTriton(), Ends()
    with grpc_server(triton, ends) as url, running("fastapi", url, tmp_path) as service:
        assert service.search(asked(("tea", ["a bar"])))[0] == 200
        before = ends.count
        with held(triton) as calls:
            host, port = service.address.split(":")
            body = json.dumps(asked(("tea", ["a bar"])))
            with socket.create_connection((host, int(port))) as connection:
                lines = ("POST /search HTTP/1.1", f"Host: {host}", "Content-Type: application/json")
                connection.sendall("\r\n".join([*lines, f"Content-Length: {len(body)}", "", body]).encode())
                calls.wait_until_reached()
            eventually(lambda: ends.count == before + 1)
        assert service.search(asked(("tea", ["a bar"])))[0] == 200
        assert not service.said("Traceback")


ENDING = {"fastapi": "Shutting down", "flask": "Handling signal: term", "gevent": "Handling signal: term"}


@needs_bound_cores
@pytest.mark.parametrize(("kind", "words"), ENDING.items())
def test_what_is_under_way_is_answered_before_the_end(
    kind: str, words: str, published_server: Server, tmp_path: Path
) -> None:
    with running(kind, published_server.addresses.grpc, tmp_path) as service, ThreadPoolExecutor(8) as pool:
        with busy_cores(published_server):
            answers = [pool.submit(service.search, asked(("w1", ["w2", f"w{n}"]))) for n in range(8)]
            eventually(lambda: waiting(published_server) == 8)
            service.process.terminate()
            eventually(lambda: service.said(words))
        assert [answer.result()[0] for answer in answers] == [200] * 8
        service.process.wait(60)
        assert not service.said("Traceback")


@pytest.mark.parametrize("kind", ["flask", "gevent"])
def test_a_reload_loses_no_call(kind: str, published_server: Server, tmp_path: Path) -> None:
    ends: Counter[int] = Counter()
    stop = threading.Event()

    def call(service: Service) -> None:
        while not stop.is_set():
            ends[service.search(asked(("w1", ["w2", "w3"])))[0]] += 1

    with running(kind, published_server.addresses.grpc, tmp_path) as service, ThreadPoolExecutor(8) as pool:
        try:
            calls = [pool.submit(call, service) for _ in range(8)]
            for _ in range(3):
                former, answered = set(children(service.process.pid)), ends.total()
                service.process.send_signal(signal.SIGHUP)
                eventually(lambda former=former: not former & set(children(service.process.pid)))  # type: ignore[misc]
                eventually(lambda answered=answered: ends.total() > answered + 20)  # type: ignore[misc]
        finally:
            stop.set()
        for each in calls:
            each.result()  # raises what broke a connection
    assert set(ends) == {200}
