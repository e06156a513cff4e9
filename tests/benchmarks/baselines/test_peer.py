"""A rerank server of somebody else, asked over HTTP: one that is made here."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks import BenchmarkError
from benchmarks.baselines.cpu import Contender
from benchmarks.baselines.peer import Peer
from benchmarks.load_gen.workload import Request

REQUEST = Request("tea", ("a pot", "green tea", "a"))


class Reranker(ThreadingHTTPServer):
    """Scores a document by its length, and answers the best first, as Infinity does."""

    status, content = 200, ""  # in place of the scores, if it is there

    def __init__(self) -> None:
        self.asked: list[dict] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked | {"path": self.path})
        results = [
            {"index": place, "relevance_score": len(text) / 10, "document": None}
            for place, text in enumerate(asked["documents"])
        ]
        results.sort(key=lambda result: -result["relevance_score"])
        content = (self.server.content or json.dumps({"object": "rerank", "results": results})).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def reranker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reranker]:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody is there, and nobody is to be asked
    with Reranker() as server:
        threading.Thread(target=server.serve_forever).start()
        yield server
        server.shutdown()


def test_scores_are_in_the_candidates_order(reranker: Reranker) -> None:
    assert Peer(reranker.url).score(REQUEST) == [0.5, 0.9, 0.1]
    assert Peer(f"{reranker.url}/v1/").score(REQUEST) == [0.5, 0.9, 0.1]
    assert [asked["path"] for asked in reranker.asked] == ["/rerank", "/v1/rerank"]
    assert (reranker.asked[0]["query"], reranker.asked[0]["documents"]) == ("tea", list(REQUEST.documents))


def test_any_number_of_callers_ask_at_once(reranker: Reranker) -> None:
    assert Contender(Peer(reranker.url).score).take_turn([REQUEST] * 20) > 0
    assert len(reranker.asked) == 20


@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        (400, "no such model", r"answered 400: b'no such model'"),
        (200, "[]", "did not answer in the form of a rerank server"),
        (200, "<html>", "did not answer in the form of a rerank server"),
        (200, '{"results": [{"index": 0}]}', "did not answer in the form of a rerank server"),
    ],
)
def test_another_answer_is_an_error(reranker: Reranker, status: int, content: str, message: str) -> None:
    reranker.status, reranker.content = status, content
    with pytest.raises(BenchmarkError, match=message):
        Peer(reranker.url).score(REQUEST)


def test_no_answer_is_an_error() -> None:
    with pytest.raises(
        BenchmarkError, match=r"http://127.0.0.1:1 does not answer: .* check that the rerank server runs"
    ):
        Peer("http://127.0.0.1:1").score(REQUEST)


@pytest.mark.parametrize("url", ["127.0.0.1:7997", "grpc://127.0.0.1:1", "http://", "http://a:b"])
def test_what_is_no_url_is_an_error(url: str) -> None:
    with pytest.raises(BenchmarkError, match="is not the URL of a rerank server, like http:"):
        Peer(url)
