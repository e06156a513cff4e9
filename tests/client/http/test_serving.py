"""The app on a real port: callers that hang up, many at once, and how `clickbert serve` begins and ends."""

import asyncio
import gc
import json
import select
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn

from clickbert import Connection, Ranker
from clickbert.__main__ import main
from clickbert.http import bodies, serving
from clickbert.http.app import make_app
from clickbert.http.settings import Settings
from tests.client.fakes import AsyncFakeTransport, held
from tests.client.http.running import in_a_process, on_a_port
from tests.client.http.test_watching import figure
from tests.waiting import eventually

CANARY = "zqcanary"
HUNG_UP = 'clickbert_http_requests_total{method="POST",path="/rerank",status="499"}'
BODY = {"query": CANARY, "texts": ["a bar", CANARY]}


class Silent(AsyncFakeTransport):
    """Never answers a click model's request; notes how many wait, and how many were given up."""

    waiting = given_up = 0

    async def infer(self, request, **options):
        if request.model == "clickbert_tokenizer":
            return await super().infer(request, **options)
        self.waiting += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise


def app_of(url, transport=None, **settings):
    return make_app(Settings(Connection(url), **settings), transport)


def send(address, body, length=None):
    """Send a request by hand; returns the open connection."""
    content = json.dumps(body).encode()
    connection = socket.create_connection((urlsplit(address).hostname, urlsplit(address).port), timeout=30)
    head = f"POST /rerank HTTP/1.1\r\nhost: x\r\ncontent-length: {length or len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def test_a_caller_that_hangs_up_cancels_its_request(server):
    silent = Silent(server)
    with on_a_port(app_of("localhost:8001", silent)) as address, httpx.Client(base_url=address) as http:
        connections = [send(address, BODY) for _ in range(3)]
        eventually(lambda: silent.waiting == 3)
        connections[1].close()
        eventually(lambda: silent.given_up == 1)
        eventually(lambda: figure(http, HUNG_UP) == 1)
        assert figure(http, "clickbert_http_requests_in_flight") == 3, "two that wait, and the one that asks"
        for connection in connections:
            connection.close()
        eventually(lambda: silent.given_up == 3)


def test_a_caller_that_hangs_up_before_its_body_has_come(server):
    with on_a_port(app_of("localhost:8001", AsyncFakeTransport(server))) as address:
        send(address, BODY, length=1000).close()
        with httpx.Client(base_url=address) as http:
            eventually(lambda: figure(http, HUNG_UP) == 1)
    assert not server.requests


def test_a_body_that_does_not_come_is_waited_for_within_the_calls_time(server):
    with on_a_port(app_of("localhost:8001", AsyncFakeTransport(server), timeout=0.2)) as address:
        with send(address, BODY, length=1000) as connection:
            assert connection.makefile().readline().startswith("HTTP/1.1 408")


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_caller_that_sends_too_much_gets_its_answer(is_announced):
    async def parts():
        yield b" " * 8_000_000

    async def ask(address):
        async with httpx.AsyncClient(base_url=address, timeout=60) as http:
            bodies = [b" " * 8_000_000 if is_announced else parts() for _ in range(10)]
            return await asyncio.gather(*(http.post("/rerank", content=body) for body in bodies))

    with on_a_port(app_of("localhost:8001")) as address:
        assert [answer.status_code for answer in asyncio.run(ask(address))] == [413] * 10


def test_a_caller_that_is_slow_to_send_too_much_gets_its_answer(monkeypatch):
    monkeypatch.setattr(bodies, "_QUIET", 10.0)
    # It is refused at once, so it is late in nothing, however long the rest takes.
    with (
        on_a_port(app_of("localhost:8001", max_bytes=1000, timeout=0.5)) as address,
        send(address, BODY, length=1_000_000) as calling,
    ):
        part = b" " * 100_000
        for _ in range(9):
            calling.sendall(part)
            assert not select.select([calling], [], [], 0.2)[0], "it has not sent all"
        calling.sendall(part)
        assert calling.makefile().readline().startswith("HTTP/1.1 413")


@pytest.mark.parametrize("limit", ["_QUIET", "_LINGER"])
def test_what_never_ends_is_not_read_for_long(monkeypatch, limit):
    monkeypatch.setattr(bodies, limit, 0.5)
    with on_a_port(app_of("localhost:8001", max_bytes=1000)) as address, send(address, BODY, length=10**9) as calling:
        for _ in range(300):
            if limit == "_QUIET" or select.select([calling], [], [], 0.1)[0]:
                break
            calling.sendall(b" ")
        assert calling.makefile().readline().startswith("HTTP/1.1 413")


def test_what_else_a_body_holds_is_not_kept_while_its_call_waits(server, url):
    content = json.dumps({**BODY, "unknown": [["zqunknown"]]}).encode()
    with on_a_port(app_of(url)) as address, ThreadPoolExecutor(1) as pool, held(server) as hold:
        answer = pool.submit(httpx.post, f"{address}/rerank", content=content, timeout=30)
        hold.wait_until_reached()
        lists = [each for each in gc.get_objects() if type(each) is list and len(each) == 1]
        assert not [each for each in lists if isinstance(each[0], str) and each[0] == "zqunknown"]
        hold.answer.set()
        assert answer.result().status_code == 200


def test_the_deadline_is_kept_if_triton_says_nothing(server, url):
    with on_a_port(app_of(url)) as address, held(server):
        answer = httpx.post(f"{address}/rerank", json=BODY, timeout=60, headers={"x-request-timeout": "0.5"})
        assert answer.status_code == 504


def test_two_hundred_calls_at_once_lose_nothing(url):
    calls = [(f"tea {number}", [f"a bar {number} {place}" for place in range(number % 3 + 1)]) for number in range(200)]

    async def ask(address):
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=address, limits=limits, timeout=60) as http:
            posts = [http.post("/rerank", json={"query": query, "texts": texts}) for query, texts in calls]
            return await asyncio.gather(*posts)

    with on_a_port(app_of(url, timeout=60)) as address, Ranker(url) as ranker:
        answers = asyncio.run(ask(address))
        for answer, (query, texts) in zip(answers, calls, strict=True):
            expected = [{"index": each.index, "score": each.score} for each in ranker.rank(query, texts)]
            assert (answer.status_code, answer.json()) == (200, expected)


def serve(tmp_path, url, *options, **environment):
    command = ("clickbert", "serve", "--url", url, "--port", "0", *options)
    return in_a_process(tmp_path / "serve.log", *command, **environment)


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
def test_what_was_accepted_is_answered_at_the_end(server, url, tmp_path, number, status):
    with serve(tmp_path, url) as running, ThreadPoolExecutor(1) as pool, held(server) as hold:
        address = running.address
        answer = pool.submit(httpx.post, f"{address}/rerank", json=BODY, timeout=30)
        hold.wait_until_reached()
        running.process.send_signal(number)
        eventually(lambda: "Shutting down" in running.output)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/health")
        hold.answer.set()
        assert answer.result().status_code == 200
        assert running.process.wait(30) == status
        assert CANARY not in running.output and "Traceback" not in running.output


def test_at_the_end_nobody_waits_longer_than_a_call_may_take(server, url, tmp_path):
    with serve(tmp_path, url, "--timeout", "1") as running, ThreadPoolExecutor(1) as pool, held(server) as hold:
        answer = pool.submit(httpx.post, f"{running.address}/rerank", json=BODY, timeout=30)
        hold.wait_until_reached()
        running.process.terminate()
        assert answer.result().status_code == 504
        assert running.process.wait(30) == 0


def test_the_environment_sets_up_the_app_for_any_server(url, tmp_path):
    command = ("uvicorn", "clickbert.http:app", "--port", "0")
    settings = {"CLICKBERT_URL": url, "CLICKBERT_MODELS": "clickbert_onnx, other", "CLICKBERT_HTTP_TOKEN": "s3cret"}
    with in_a_process(tmp_path / "uvicorn.log", *command, **settings) as running:
        answer = httpx.get(f"{running.address}/v1/models", headers={"authorization": "Bearer s3cret"})
        assert [each["id"] for each in answer.json()["data"]] == ["clickbert_onnx", "other"]
        assert httpx.get(f"{running.address}/v1/models").status_code == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "triton.example", "127.0.0.1", "localhost", "::1"])
def test_a_server_that_others_can_reach_without_a_token_says_so(monkeypatch, capsys, host):
    monkeypatch.setattr(uvicorn.Server, "run", lambda self: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    connection = Connection("localhost:8001")
    assert serving.serve(Settings(connection, token="s3cret"), host, 0) == 0
    assert not capsys.readouterr().err
    assert serving.serve(Settings(connection), host, 0) == 0
    assert ("CLICKBERT_HTTP_TOKEN" in capsys.readouterr().err) == (host not in ("127.0.0.1", "localhost", "::1"))


def test_a_port_that_is_taken(url, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with in_a_process(tmp_path / "log", "clickbert", "serve", "--url", url, "--port", port) as running:
            assert running.process.wait(30) == 1
            assert "in use" in running.output and "Traceback" not in running.output


@pytest.mark.parametrize("options", [["--port", "65536"], ["--port", "x"], ["--timeout", "0"], ["--max-bytes", "0"]])
def test_wrong_usage(options, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["serve", *options])
    assert ended.value.code == 2 and options[0] in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install():
    script = """
import sys
from clickbert.__main__ import main
for name in ("starlette", "prometheus_client", "uvicorn"):
    sys.modules[name] = None
    assert main(["serve"]) == 1
    del sys.modules[name]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert len(lines) == 3 and all("pip install 'clickbert[http]'" in line for line in lines), done.stderr
