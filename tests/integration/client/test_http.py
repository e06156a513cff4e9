"""Rerank over HTTP in front of the real Triton: its scores, deadlines, callers that hang up, many at once, the end."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from clickbert import Connection, Ranker
from clickbert.http.app import make_app
from clickbert.http.settings import Settings
from release.names import ONNX_MODEL
from serving.server import Server
from tests.client.http.running import in_a_process, on_a_port
from tests.integration.scores import PATIENCE
from tests.integration.test_scheduling import INT8_MODEL, chunks_of, outcomes
from tests.serving.busy_cores import busy_cores, needs_bound_cores, waiting_in_the_schedule
from tests.waiting import eventually

QUERY = "w1 w2"
TEXTS = [f"w{number} w{number * 7 % 150} " * (number % 5) for number in range(100)]
BODY = {"query": QUERY, "texts": TEXTS[:4]}


@pytest.fixture(scope="module")
def address(published_server: Server) -> Iterator[str]:
    settings = Settings(Connection(published_server.addresses.grpc), (ONNX_MODEL, INT8_MODEL), timeout=PATIENCE)
    with on_a_port(make_app(settings)) as address:
        yield address


@pytest.fixture
def http(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=2 * PATIENCE) as client:
        yield client


@pytest.mark.parametrize("model", [ONNX_MODEL, INT8_MODEL])
@pytest.mark.parametrize("raw", [False, True], ids=["probabilities", "logits"])
def test_the_ranking_is_that_of_the_ranker(published_server: Server, http: httpx.Client, model: str, raw: bool) -> None:
    with Ranker(published_server.addresses.grpc, model, timeout=PATIENCE) as ranker:
        expected = ranker.rank(QUERY, TEXTS, raw_scores=raw)
    asked = {"query": QUERY, "model": model, "raw_scores": raw}
    ranking = http.post("/rerank", json={**asked, "texts": TEXTS, "return_text": True}).json()
    # A document's score may differ in its last digits from call to call: it depends on what shares its chunk.
    assert {each["index"]: each["score"] for each in ranking} == pytest.approx(
        {each.index: each.score for each in expected}, abs=1e-5
    )
    assert [each["score"] for each in ranking] == sorted((each["score"] for each in ranking), reverse=True)
    assert all(each["text"] == TEXTS[each["index"]] for each in ranking)
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        best = http.post(path, json={**asked, "documents": TEXTS, "top_n": 3}).json()
        assert best["model"] == model and best["usage"]["total_tokens"] > 0
        scores = [each["relevance_score"] for each in best["results"]]
        assert scores == pytest.approx([each.score for each in expected[:3]], abs=1e-5)


def test_it_is_healthy_and_says_what_is_served(published_server: Server, http: httpx.Client) -> None:
    assert http.get("/health").status_code == 200
    with Ranker(published_server.addresses.grpc, timeout=PATIENCE) as ranker:
        ranker.rank(QUERY, TEXTS[:1])
        release = ranker._session.releases.find(None)
    assert release
    info = http.get("/info").json()
    assert (info["model_version"], info["max_input_length"]) == (release.version, release.tokenizer.max_length)
    missing = Settings(Connection(published_server.addresses.grpc), (ONNX_MODEL, "clickbert_nowhere"))
    with on_a_port(make_app(missing)) as other:
        assert httpx.get(f"{other}/health").json()["models"] == {"clickbert_nowhere": "ModelNotFoundError"}


@needs_bound_cores
def test_the_deadline_reaches_triton(published_server: Server, http: httpx.Client) -> None:
    assert http.post("/rerank", json=BODY).status_code == 200  # the tokenizer is fetched
    chunks = chunks_of(published_server)
    expired = outcomes(published_server, "expired")
    with busy_cores(published_server):
        assert http.post("/rerank", json=BODY, headers={"x-request-timeout": "1"}).status_code == 504
        eventually(lambda: outcomes(published_server, "expired") == expired + 1)
    assert chunks_of(published_server) == chunks, "it is not computed"


@needs_bound_cores
def test_a_caller_that_hangs_up_cancels_its_request_at_triton(
    published_server: Server, http: httpx.Client, address: str
) -> None:
    assert http.post("/rerank", json=BODY).status_code == 200
    chunks = chunks_of(published_server)
    cancelled = outcomes(published_server, "cancelled")
    content = json.dumps(BODY).encode()
    where = urlsplit(address)
    with busy_cores(published_server):
        with socket.create_connection((where.hostname, where.port)) as connection:
            head = f"POST /rerank HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n"
            connection.sendall(head.encode() + content)
            eventually(lambda: waiting_in_the_schedule(published_server, ONNX_MODEL) == 1)
        eventually(lambda: 'path="/rerank",status="499"' in http.get("/metrics").text)
    eventually(lambda: outcomes(published_server, "cancelled") == cancelled + 1)
    assert chunks_of(published_server) == chunks, "it is not computed"


def test_two_hundred_calls_at_once_lose_nothing(published_server: Server, address: str) -> None:
    calls = [(f"w{number % 150}", TEXTS[number % 90 : number % 90 + 1 + number % 7]) for number in range(200)]

    async def ask() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=len(calls))
        async with httpx.AsyncClient(base_url=address, limits=limits, timeout=2 * PATIENCE) as asking:
            posts = [asking.post("/rerank", json={"query": query, "texts": texts}) for query, texts in calls]
            return await asyncio.gather(*posts)

    answers = asyncio.run(ask())
    with Ranker(published_server.addresses.grpc, timeout=PATIENCE) as ranker:
        for answer, (query, texts) in zip(answers, calls, strict=True):
            assert answer.status_code == 200
            expected = {each.index: each.score for each in ranker.rank(query, texts)}
            assert {each["index"]: each["score"] for each in answer.json()} == pytest.approx(expected, abs=1e-5)


@needs_bound_cores
def test_what_was_accepted_is_answered_at_the_end(published_server: Server, tmp_path: Path) -> None:
    url, patience = published_server.addresses.grpc, str(PATIENCE)
    command = ("clickbert", "serve", "--url", url, "--port", "0", "--timeout", patience)
    with in_a_process(tmp_path / "serve.log", *command) as running, ThreadPoolExecutor(20) as pool:
        path = f"{running.address}/rerank"
        assert httpx.post(path, json=BODY, timeout=PATIENCE).status_code == 200
        with busy_cores(published_server):
            answers = [pool.submit(httpx.post, path, json=BODY, timeout=2 * PATIENCE) for _ in range(20)]
            eventually(lambda: waiting_in_the_schedule(published_server, ONNX_MODEL) == 20)
            running.process.terminate()
            eventually(lambda: "Shutting down" in running.output)
        assert [answer.result().status_code for answer in answers] == [200] * 20
        assert running.process.wait(PATIENCE) == 0
