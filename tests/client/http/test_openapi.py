"""openapi.json is complete and true: every route, every answer and every refusal that the app gives."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from clickbert import Connection
from clickbert.http.app import make_app
from clickbert.http.settings import Settings
from tests.client.fake_model import MODEL
from tests.client.http.schemas import faults
from tests.client.http.test_failures import FAILURES, fail
from tests.client.http.test_forms import RERANKS

CLIENT = Path(__file__).parents[3] / "client"
API = json.loads((CLIENT / "clickbert/http/pages/openapi.json").read_text(encoding="utf-8"))


def check(answer) -> int:
    """Fail if the answer is not as it is described; returns its status."""
    operation = API["paths"][answer.request.url.path][answer.request.method.lower()]
    described = operation["responses"][str(answer.status_code)]
    assert set(described.get("headers", {})) == {"Retry-After"} & {name.title() for name in answer.headers}
    ((media, content),) = described["content"].items()
    assert answer.headers["content-type"].partition(";")[0] == media
    if media == "application/json":
        assert not faults(answer.json(), content["schema"], API)
    return answer.status_code


def test_every_route_is_described_and_nothing_else():
    app = make_app(Settings(Connection("localhost:8001")))
    routes = {route.path: route.methods - {"HEAD"} for route in app.routes}
    assert {path: {method.upper() for method in item} for path, item in API["paths"].items()} == routes
    released = tomllib.loads((CLIENT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert API["info"]["version"] == released


def test_every_reference_is_there_and_every_schema_is_used():
    used = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(API)))
    assert used == set(API["components"]["schemas"])


def test_the_examples_are_requests_that_are_answered(http):
    examples = [
        (path, media["schema"], example["value"])
        for path, item in API["paths"].items()
        for operation in item.values()
        for media in operation.get("requestBody", {"content": {}})["content"].values()
        for example in media["examples"].values()
    ]
    assert {path for path, *_ in examples} == set(RERANKS)
    for path, schema, example in examples:
        assert not faults(example, schema, API)
        assert check(http.post(path, json=example)) == 200


@pytest.mark.parametrize("path", [path for path, item in API["paths"].items() if "get" in item])
def test_what_is_read(http, path):
    assert check(http.get(path)) == 200


def test_every_answer_and_refusal(start, server):
    http, guarded = start(max_documents=3, max_bytes=3000, models=(MODEL,)), start(token="s3cret")
    for path in RERANKS:
        described = {int(status) for status in API["paths"][path]["post"]["responses"]}
        seen = {408}  # of a real connection: see test_serving
        for field in ("texts", "documents"):
            if path != "/rerank" and field == "texts":
                continue
            good = {"query": "tea", field: ["a bar", {"text": "a bank"}]}
            for more in ({}, {"raw_scores": True}, {"return_text": True, "return_documents": True, "top_n": 1}):
                seen.add(check(http.post(path, json={**good, **more})))
            for bad in ({"model": "x"}, {"query": 7}, {field: ["a"] * 4}, {field: ["a" * 4000]}):
                seen.add(check(http.post(path, json={**good, **bad})))
            seen.add(check(http.post(path, json=good, headers={"x-request-timeout": "no"})))
            seen.add(check(http.post(path, content=b"no")))
            seen.add(check(guarded.post(path, json=good)))
            for failure in FAILURES:
                fail(server, *failure)
                seen.add(check(http.post(path, json=good)))
            server.before_infer = lambda request: 1 / 0
            seen.add(check(http.post(path, json=good)))
            server.before_infer = lambda request: None
        assert seen == described


def test_refusals_of_what_is_read(start, server):
    http, guarded = start(models=("other",)), start(token="s3cret")
    assert check(http.get("/health")) == 503
    assert check(guarded.get("/info")) == check(guarded.get("/v1/models")) == 401
    assert check(http.get("/info", headers={"x-request-timeout": "0"})) == 400
    assert check(http.get("/info")) == 503
