"""`/health` and `/metrics`."""

import socket
from contextlib import closing

from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from clickbert import Connection
from clickbert.http.app import make_app
from clickbert.http.settings import Settings
from tests.client.fake_model import MODEL, FakeStatusError, Published
from tests.client.fakes import FakeTriton, grpc_server


def figure(http, name):
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def test_it_is_healthy_only_if_every_model_is(start):
    assert start().get("/health").json() == {"status": "ok"}
    answer = start(models=(MODEL, "other")).get("/health")
    assert answer.status_code == 503 and answer.headers["retry-after"]
    assert answer.json() == {"status": "unavailable", "models": {"other": "ModelNotFoundError"}}


def test_it_is_not_healthy_while_triton_is_away(http, server):
    def away(model):
        raise FakeStatusError("UNAVAILABLE", "connection refused")

    server.describe, describe = away, server.describe
    assert http.get("/health").json()["models"] == {MODEL: "ConnectionFailedError"}
    server.describe = describe
    assert http.get("/health").status_code == 200


def test_it_is_not_healthy_without_the_models_tokenizer(http, server):
    """Nothing can be ranked then. It is asked for once."""

    def refuse(request):
        if request.model == "clickbert_tokenizer":
            raise FakeStatusError("NOT_FOUND", "Request for unknown model: 'clickbert_tokenizer' is not found")

    server.before_infer = refuse
    assert http.get("/health").json()["models"] == {MODEL: "ModelNotFoundError"}
    server.before_infer = lambda request: None
    for _ in range(3):
        assert http.get("/health").status_code == 200
    assert [model for model, _ in server.asked].count("clickbert_tokenizer") == 2


def test_it_is_healthy_while_its_servers_have_different_versions():
    """As when a release is rolled out: the tokenizer of one's version is asked for at the other one."""
    with grpc_server(FakeTriton({3: Published()})) as one, grpc_server(FakeTriton({4: Published()})) as other:
        with TestClient(make_app(Settings(Connection([one, other])))) as http:
            for _ in range(4):
                assert http.get("/health").status_code == 200


def test_it_is_healthy_while_one_of_its_servers_is(server):
    with closing(socket.socket()) as taken, grpc_server(server) as url:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        dead = f"127.0.0.1:{taken.getsockname()[1]}"
        with TestClient(make_app(Settings(Connection([dead, url])))) as http:
            for _ in range(4):
                assert http.get("/health").status_code == http.get("/info").status_code == 200
        with TestClient(make_app(Settings(Connection([dead, dead.replace("127.0.0.1", "localhost")])))) as http:
            assert http.get("/health").status_code == 503


def test_requests_are_counted_by_path_and_status(http):
    body = {"query": "tea", "texts": ["a bar", "a bank"]}
    for _ in range(3):
        http.post("/rerank", json=body)
    http.post("/rerank", content=b"no")
    http.get("/zqcanary")
    http.request("ZQCANARY", "/rerank")
    count = "clickbert_http_requests_total"
    assert figure(http, f'{count}{{method="POST",path="/rerank",status="200"}}') == 3
    assert figure(http, f'{count}{{method="POST",path="/rerank",status="400"}}') == 1
    assert figure(http, f'{count}{{method="GET",path="other",status="404"}}') == 1
    assert figure(http, 'clickbert_http_request_seconds_count{path="/rerank"}') == 5
    assert figure(http, "clickbert_http_requests_in_flight") == 1, "the one that asks"
    assert figure(http, f'clickbert_client_calls_total{{call="rank",model="{MODEL}",outcome="ok"}}') == 3
    assert figure(http, f'clickbert_client_texts_total{{call="rank",model="{MODEL}"}}') == 6
    assert "ZQCANARY" not in http.get("/metrics").text.upper(), "a caller must not make labels"


def test_two_apps_of_a_process_count_apart(start):
    first, second = start(), start()
    first.post("/rerank", json={"query": "tea", "texts": ["a bar"]})
    assert figure(second, "clickbert_client_calls_total") == 0 < figure(first, "clickbert_client_calls_total")


def test_an_app_that_is_mounted_in_another_one(transport):
    inner = make_app(Settings(Connection("localhost:8001")), transport)
    outer = Starlette(routes=[Mount("/ranking", inner)], lifespan=inner.router.lifespan_context)
    with TestClient(outer) as http:
        for body in ({"texts": ["a bar"]}, {"documents": ["a bar"]}):
            assert http.post("/ranking/rerank", json={"query": "tea", **body}).status_code == 200
        assert "error_type" in http.post("/ranking/rerank", content=b"no").json()
        counted = http.get("/ranking/metrics").text
        assert 'clickbert_http_requests_total{method="POST",path="/rerank",status="200"} 2.0' in counted
