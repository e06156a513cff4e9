"""The environment, and the options of `clickbert serve`."""

import pytest

import clickbert.http.serving
from clickbert import Connection, InvalidInputError
from clickbert.__main__ import main
from clickbert.http.settings import Settings


def test_nothing_set():
    settings = Settings.from_environment({})
    assert settings == Settings(Connection("localhost:8001")), "the app has the same defaults"
    assert settings.connection.url == "localhost:8001" and settings.models == ("clickbert_onnx",)
    assert (settings.token, settings.timeout, settings.max_documents, settings.cors_origins) == (None, 10.0, 1000, ())
    empty = dict.fromkeys(("CLICKBERT_URL", "CLICKBERT_MODELS", "CLICKBERT_HTTP_TOKEN", "CLICKBERT_CORS_ORIGINS"), "")
    assert Settings.from_environment(empty) == settings


def test_everything_set():
    environment = {
        "CLICKBERT_URL": "triton-1:8001,triton-2:8001",
        "CLICKBERT_MODELS": "b, a",
        "CLICKBERT_HTTP_TOKEN": "s3cret",
        "CLICKBERT_TIMEOUT": "0.5",
        "CLICKBERT_MAX_DOCUMENTS": "7",
        "CLICKBERT_MAX_BYTES": "1000",
        "CLICKBERT_CORS_ORIGINS": "https://a.example,http://localhost:3000",
    }
    settings = Settings.from_environment(environment)
    assert settings.connection.targets == ("triton-1:8001", "triton-2:8001")
    assert (settings.models, settings.token, settings.timeout) == (("b", "a"), "s3cret", 0.5)
    assert (settings.max_documents, settings.max_bytes) == (7, 1000)
    assert settings.cors_origins == ("https://a.example", "http://localhost:3000")
    assert "s3cret" not in repr(settings)


WRONG = {
    "URL": ["triton", "http://triton:8001"],
    "TOKEN": ["two words"],
    "MODELS": ["a,,b", ",", "a,a"],
    "HTTP_TOKEN": ["s3cret\n", "two s3cret"],
    "TIMEOUT": ["0", "-1", "nan", "inf", "soon"],
    "MAX_DOCUMENTS": ["0", "-1", "1.5", "many", "9" * 5000],
    "MAX_BYTES": ["0", "1e6"],
    "CORS_ORIGINS": ["shop.example", "https://a.example/path", "https://a.example,"],
    "CA_FILE": ["/nowhere/ca.pem"],
}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in WRONG.items() for value in values])
def test_what_is_wrong_is_said(name, value):
    with pytest.raises(InvalidInputError) as caught:
        Settings.from_environment({f"CLICKBERT_{name}": value})
    assert "s3cret" not in str(caught.value)


def test_options_win_over_the_environment(monkeypatch):
    called = []
    monkeypatch.setattr(clickbert.http.serving, "serve", lambda *arguments: called.append(arguments) or 0)
    monkeypatch.setenv("CLICKBERT_URL", "from-environment:8001")
    monkeypatch.setenv("CLICKBERT_TIMEOUT", "3")
    monkeypatch.setenv("CLICKBERT_HTTP_TOKEN", "s3cret")
    assert main(["serve"]) == 0
    assert main(["serve", "--url", "triton:8001", "--model", "a", "--model", "b", "--port", "0", "--timeout", "0.25",
                 "--cors-origin", "*", "--max-documents", "5", "--max-bytes", "6", "--host", "::1"]) == 0  # fmt: skip
    (first, *at_first), (second, *at_second) = called
    assert (first.connection.url, first.timeout, first.token) == ("from-environment:8001", 3.0, "s3cret")
    assert at_first == ["127.0.0.1", 8080] and at_second == ["::1", 0]
    assert (second.connection.url, second.models, second.timeout) == ("triton:8001", ("a", "b"), 0.25)
    assert (second.cors_origins, second.max_documents, second.max_bytes, second.token) == (("*",), 5, 6, "s3cret")
