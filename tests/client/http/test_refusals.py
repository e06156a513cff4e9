"""What is wrong with a request gets its status, in the form of the peer that it speaks; and never a 500."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from tests.client.http.test_forms import RERANKS

GOOD = {"query": "tea", "documents": ["a bar"], "texts": ["a bar"]}


def message(answer) -> str:
    """The error's text, from wherever the form has it."""
    body = answer.json()
    if answer.request.url.path != "/rerank":
        assert body["message"] == body["detail"] and set(body) == {"message", "detail"}
        return body["message"]
    if answer.status_code == 422 and "detail" in body:
        assert set(body) == {"detail"}
        return body["detail"][0]["msg"]
    if isinstance(body["error"], str):
        assert set(body) == {"error", "error_type"}
        return body["error"]
    assert body["error"]["code"] == answer.status_code != 422
    return body["error"]["message"]


MALFORMED = {
    "nothing": b"",
    "no JSON": b'{"query": tea}',
    "a list": b"[]",
    "a string": b'"tea"',
    "cut off": b'{"query": "tea", "documents": ["a',
    "deep": b'{"documents": ' + b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "NaN": b'{"query": NaN}',
    "Infinity": b'{"top_n": -Infinity}',
    "a number of 5,000 digits": b'{"top_n": ' + b"9" * 5000 + b"}",
    "no UTF-8": b'{"query": "\xff\xfe"}',
    "compressed": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
}


@pytest.mark.parametrize("path", RERANKS)
@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_body(http, path, body):
    answer = http.post(path, content=body)
    assert answer.status_code == 400 and "the body" in message(answer)


WRONG = {
    "no query": {"query": None},
    "a number for the query": {"query": 7},
    "a list for the query": {"query": ["tea"]},
    "half a character": {"query": "tea \ud800"},
    "no documents": {"documents": [], "texts": []},
    "a string for documents": {"documents": "a bar", "texts": "a bar"},
    "a number among documents": {"documents": ["a bar", 7], "texts": ["a bar", 7]},
    "half a character in a document": {"documents": ["\udfff"], "texts": ["\udfff"]},
    "an object without text": {"documents": [{"image": "a bar"}], "texts": [{"image": "a bar"}]},
    "an object with a number": {"documents": [{"text": 7}], "texts": [{"text": 7}]},
    "a number for the model": {"model": 7},
    "yes": {"raw_scores": "yes"},
}
WRONG_COUNTS = {"none": 0, "below none": -1, "half": 1.5, "true": True, "text": "3", "list": [3], "huge": 1e308}


@pytest.mark.parametrize("form", ["texts", "documents", "/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_wrong_field(http, form, change):
    body = GOOD | change
    if form in body:
        body.pop("texts" if form == "documents" else "documents")
    answer = http.post(form if form in RERANKS else "/rerank", content=json.dumps(body))
    assert answer.status_code == 422, answer.text
    assert any(name in message(answer) for name in change)


@pytest.mark.parametrize("top_n", WRONG_COUNTS.values(), ids=WRONG_COUNTS)
def test_a_wrong_top_n(http, top_n):
    for path in RERANKS:
        answer = http.post(path, json={"query": "tea", "documents": ["a bar"], "top_n": top_n})
        assert answer.status_code == 422 and "top_n" in message(answer)


def test_fields_that_are_not_supported_are_refused_and_not_left_out(http):
    assert http.post("/v1/rerank", json={**GOOD, "rank_fields": ["text"]}).status_code == 200
    answer = http.post("/v1/rerank", json={**GOOD, "rank_fields": ["title"]})
    assert answer.status_code == 422 and "rank_fields" in message(answer)
    answer = http.post("/rerank", json={**GOOD, "truncation_direction": "middle"})
    assert answer.status_code == 422 and "truncation_direction" in message(answer)


def test_neither_texts_nor_documents(http):
    answer = http.post("/rerank", json={"query": "tea"})
    assert answer.status_code == 422 and "texts" in message(answer) and "documents" in message(answer)


@pytest.mark.parametrize("path", RERANKS)
def test_an_unknown_model(http, path):
    for body in ({"documents": ["a bar"]}, {"texts": ["a bar"], "documents": ["a bar"]}):
        answer = http.post(path, json={"query": "tea", "model": "rerank-v3.5", **body})
        assert answer.status_code == 404 and "clickbert_onnx" in message(answer)


def test_paths_and_methods(http):
    assert http.get("/nowhere").status_code == http.post("/v1/nowhere").status_code == 404
    assert http.post("/rerank/", json=GOOD).status_code == 404
    for path in RERANKS:
        answer = http.get(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert "POST" in message(answer)
    assert http.post("/health").status_code == 405


def test_a_body_that_is_too_large_is_refused_before_it_is_read(start):
    http = start(max_bytes=1000)
    read = []

    def parts():
        for _ in range(100):
            read.append(1)
            yield b"[" * 100

    announced = http.post("/rerank", content=b"x", headers={"content-length": "1001"})
    assert announced.status_code == 413 and "1,000 bytes" in message(announced)
    assert http.post("/rerank", content=b"x", headers={"content-length": "9" * 100}).status_code == 413
    for path in RERANKS:
        assert http.post(path, content=parts()).status_code == 413
    exact = json.dumps({"query": "tea", "texts": ["a bar"]})
    assert http.post("/rerank", content=exact + " " * (1000 - len(exact))).status_code == 200


def test_a_text_that_is_too_long_for_any_model(http):
    most = "a" * 100_000
    for path in RERANKS:
        for field in ("texts", "documents"):
            if path != "/rerank" and field == "texts":
                continue
            assert http.post(path, json={"query": most, field: [most, {"text": most}]}).status_code == 200
            for name, change in {
                "query": {"query": most + "b"},
                f"{field}[1]": {field: ["a bar", most + "b"]},
                f"{field}[0].text": {field: [{"text": most + "b"}]},
            }.items():
                answer = http.post(path, json={"query": "tea", field: ["a bar"], **change})
                assert answer.status_code == 413 and f"{name} has 100,001 characters" in message(answer)
                assert "ab" not in answer.text


def test_too_many_documents(start, server):
    http = start(max_documents=3)
    for path in RERANKS:
        assert http.post(path, json={"query": "tea", "documents": ["a"] * 3}).status_code == 200
        answer = http.post(path, json={"query": "tea", "documents": ["a"] * 4})
        assert answer.status_code == 413 and "4 entries" in message(answer)
    assert http.get("/info").json()["max_client_batch_size"] == 3


@pytest.mark.parametrize("path", [*RERANKS, "/v1/models", "/info"])
def test_the_token(start, path):
    http = start(token="s3cret")
    method, body = ("POST", json.dumps(GOOD)) if path in RERANKS else ("GET", "")

    def ask(**headers):
        return http.request(method, path, content=body, headers=headers)

    assert ask(authorization="Bearer s3cret").status_code == ask(authorization="bearer  s3cret").status_code == 200
    for wrong in (None, "s3cret", "Basic s3cret", "Bearer s3cre", "Bearer"):
        answer = ask(**({"authorization": wrong} if wrong else {}))
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert "s3cret" not in answer.text and message(answer)
    assert http.request(method, path, content=body, headers={b"authorization": b"Bearer \xff"}).status_code == 401


def test_what_needs_no_token(start):
    http = start(token="s3cret")
    for path in ("/", "/docs", "/openapi.json", "/health", "/metrics"):
        assert http.get(path).status_code == 200


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "1e999", "soon", "", "1,5"])
def test_a_wrong_timeout(http, seconds):
    answer = http.post("/rerank", json=GOOD, headers={"x-request-timeout": seconds})
    assert answer.status_code == 400 and "X-Request-Timeout" in message(answer)


def test_the_callers_deadline_goes_down_and_is_lowered_to_the_servers(start, transport):
    http = start(timeout=5.0)
    timeouts = transport.inner.timeouts
    for header, most in (({}, 5.0), ({"x-request-timeout": "1.5"}, 1.5), ({"x-request-timeout": "1e30"}, 5.0)):
        timeouts.clear()
        assert http.post("/rerank", json=GOOD, headers=header).status_code == 200
        assert timeouts and most / 2 < max(timeouts) <= most


def test_cors_is_off_unless_asked_for(start):
    theirs = {"origin": "https://shop.example"}
    preflight = {**theirs, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    closed, opened = start(), start(cors_origins=("https://shop.example",))
    for answer in (closed.post("/rerank", json=GOOD, headers=theirs), closed.options("/rerank", headers=preflight)):
        assert not any(name.startswith("access-control") for name in answer.headers)
    assert opened.post("/rerank", json=GOOD, headers=theirs).headers["access-control-allow-origin"] == theirs["origin"]
    assert opened.options("/rerank", headers=preflight).status_code == 200
    assert (
        "access-control-allow-origin" not in opened.get("/health", headers={"origin": "https://other.example"}).headers
    )


JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
NAMES = ("query", "texts", "documents", "model", "top_n", "raw_scores", "return_text", "return_documents", "truncate")
TEXTS = some.lists(some.text() | some.fixed_dictionaries({"text": some.text()}), max_size=5)
FIELDS = {name: JSON | (TEXTS if name in ("texts", "documents") else some.text()) for name in NAMES}
BODIES = some.fixed_dictionaries({}, optional=FIELDS) | JSON


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(path=some.sampled_from(RERANKS), body=BODIES)
def test_any_json_is_answered_or_refused(http, path, body):
    answer = http.post(path, content=json.dumps(body))
    assert answer.status_code in (200, 400, 404, 422), answer.text
    assert answer.status_code == 200 or message(answer)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=some.sampled_from(RERANKS), body=some.binary(max_size=200))
def test_any_bytes_are_refused(http, path, body):
    assert http.post(path, content=body).status_code in (400, 422)
