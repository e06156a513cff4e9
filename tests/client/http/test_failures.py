"""What fails behind the app: the status, when to come again, and no text in any log or answer."""

import logging

import numpy as np
import pytest

import clickbert.errors
from clickbert.errors import ClickBertError, InvalidInputError
from clickbert.http.failures import refusal
from tests.client.fake_model import FakeStatusError
from tests.client.http.test_forms import RERANKS
from tests.client.http.test_refusals import message

CANARY = "zqcanary"
FAILURES = {
    ("UNAVAILABLE", "in queue exceeds maximum queue size"): 429,
    ("RESOURCE_EXHAUSTED", "no memory"): 429,
    ("UNAVAILABLE", "Request timeout expired"): 504,
    ("DEADLINE_EXCEEDED", "Deadline Exceeded"): 504,
    ("UNAVAILABLE", "the model is not at ready state"): 503,
    ("UNAVAILABLE", "connection refused"): 503,
    ("NOT_FOUND", "Request for unknown model: 'clickbert_onnx' is not found"): 503,
    ("UNAUTHENTICATED", "no token"): 502,
    ("PERMISSION_DENIED", "not you"): 502,
    ("INVALID_ARGUMENT", "unexpected shape"): 502,
    ("INTERNAL", "a tensor is NaN"): 502,
}
# In the whole family the base is no server's answer, and wrong arguments are their caller's.
STATUSES = {"ClickBertError": 500, "InvalidInputError": 422, "RankerClosedError": 503}


def fail(server, status, text):
    def raise_it(_):
        raise FakeStatusError(status, text)

    server.before_infer = raise_it


@pytest.mark.parametrize("failure, status", FAILURES.items(), ids=str)
def test_a_failure_of_the_server(http, server, failure, status, caplog):
    fail(server, *failure)
    for path in RERANKS:
        for field in ("texts", "documents"):
            body = {"query": CANARY, "documents": [CANARY], field: [CANARY]}
            answer = http.post(path, json=body)
            assert answer.status_code == status
            assert ("retry-after" in answer.headers) == (status in (429, 503))
            assert message(answer) and "localhost" not in answer.text, "callers need not know where Triton is"
    assert CANARY not in caplog.text
    assert ("answered" in caplog.text) == (status >= 500), "whoever runs it sees why"


def test_an_answer_that_would_come_too_late_names_every_way_out(http, server):
    fail(server, "UNAVAILABLE", "overloaded: the answer would take 1.20 s, and its caller waits 0.50 s")
    answer = http.post("/rerank", json={"query": "tea", "texts": ["a bar"]})
    assert answer.status_code == 429
    assert all(way in message(answer) for way in ("after a pause", "fewer documents", "more time"))


def test_every_error_has_a_status():
    family = [
        kind
        for kind in vars(clickbert.errors).values()
        if isinstance(kind, type) and kind.__module__ == clickbert.errors.__name__
    ]
    for kind in family:
        if issubclass(kind, ClickBertError):
            expected = STATUSES.get(kind.__name__)
            assert refusal(kind("why")).status in ((expected,) if expected else (429, 502, 503, 504))
    assert refusal(InvalidInputError("why")).message == "why"


def test_an_error_of_the_apps_own_is_a_500_and_one_line_without_a_text(http, server, caplog, capfd):
    def burst(_):
        raise KeyError(CANARY)  # in the transport's place: no error of the client's

    server.before_infer = burst
    for path in RERANKS:
        answer = http.post(path, json={"query": CANARY, "documents": [CANARY]})
        assert answer.status_code == 500 and CANARY not in answer.text
    assert [record.levelname for record in caplog.records if record.name == "clickbert.http"] == ["ERROR"] * 3
    assert "KeyError" in caplog.text and "test_failures.py" in caplog.text
    assert CANARY not in caplog.text + "".join(capfd.readouterr())


def test_a_log_that_cannot_be_written_to_shows_no_text(http, server, capfd, tmp_path):
    def burst(_):
        raise KeyError(CANARY)

    server.before_infer = burst
    with (tmp_path / "log").open("w") as log:
        handler = logging.StreamHandler(log)
    logger = logging.getLogger("clickbert.http")
    logger.addHandler(handler)
    try:
        assert http.post("/rerank", json={"query": CANARY, "documents": [CANARY]}).status_code == 500
    finally:
        logger.removeHandler(handler)
    printed = "".join(capfd.readouterr())
    assert "Logging error" in printed and CANARY not in printed


def test_no_text_is_logged_whatever_happens(start, server, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    http = start(max_documents=3, max_bytes=5000, token="s3cret")
    token = {"authorization": "Bearer s3cret"}
    statuses = set()

    def post(path="/rerank", headers=token, content=None, **body):
        kind = {"content": content} if content else {"json": {"query": CANARY, **body}}
        answer = http.post(path, headers=headers, **kind)
        statuses.add(answer.status_code)
        if answer.status_code != 200:
            assert CANARY not in answer.text
        return answer

    for path in RERANKS:
        post(path, documents=[CANARY], return_documents=True)
        post(path, documents=[CANARY] * 4)
        post(path, documents=[CANARY, 7])
        post(path, documents=[CANARY], model=CANARY)
        post(path, documents=[CANARY], top_n=CANARY)
        post(path, documents={CANARY: CANARY})
        post(path, documents=[CANARY], headers={"authorization": f"Bearer {CANARY}"})
        post(path, documents=[CANARY], headers={**token, "x-request-timeout": CANARY})
        post(path, documents=[CANARY], truncation_direction=CANARY, texts=[CANARY])
        post(path, content=f'{{"query": "{CANARY}", {CANARY}'.encode())
        post(path, content=f'{{"query": "{CANARY} \\ud800", "documents": ["{CANARY}"]}}'.encode())
        post(path, content=(CANARY * 1000).encode())
        post(f"{path}/{CANARY}", documents=[CANARY])
    for failure in FAILURES:
        fail(server, *failure)
        post(documents=[CANARY])
    server.before_infer = lambda request: None
    server.after_infer = lambda answer: type(answer)(
        answer.version,
        {name: np.full_like(rows, np.nan) if name == "logits" else rows for name, rows in answer.outputs.items()},
    )
    post(documents=[CANARY])
    assert statuses == {200, 400, 401, 404, 413, 422, 429, 502, 503, 504}
    theirs = "\n".join(
        record.getMessage() for record in caplog.records if record.name.startswith(("clickbert", "uvicorn"))
    )
    assert CANARY not in theirs + "".join(capfd.readouterr())
    assert CANARY not in http.get("/metrics").text
