"""Proxies in the environment: calls to this machine go past them, and an error says when one was in the way."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from clickbert import Connection, ConnectionFailedError, ServerTimeoutError
from clickbert.channels.proxies import proxy_variable
from tests.client.certificates import Authority
from tests.client.fakes import grpc_server, rank_once

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in list(os.environ):
        if "proxy" in name.lower():
            monkeypatch.delenv(name)


@pytest.fixture
def dead_proxy() -> Iterator[str]:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused, and nobody else gets the port
        yield f"http://user:passw0rd@127.0.0.1:{taken.getsockname()[1]}"


@contextmanager
def proxy(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that gives this answer to everybody (none at all if it is empty); yields its address, and what it got."""
    received: list[bytes] = []
    open_calls: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                call, _ = listening.accept()
            except OSError:
                return
            received.append(call.recv(1000))
            open_calls.append(call)
            if answer:
                call.sendall(answer)
                call.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://user:passw0rd@127.0.0.1:{listening.getsockname()[1]}", received
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
    for call in open_calls:
        call.close()


@pytest.fixture
def dead_proxies_everywhere(dead_proxy, monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, dead_proxy)
    # gRPC's own variables for a proxy by address: without a scheme.
    monkeypatch.setenv("GRPC_ADDRESS_HTTP_PROXY", dead_proxy.rpartition("@")[2])
    monkeypatch.setenv("GRPC_ADDRESS_HTTP_PROXY_ENABLED_ADDRESSES", "0.0.0.0/0,::/0")


@pytest.mark.usefixtures("dead_proxies_everywhere")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("token", [None, "t0ken"])
def test_calls_to_this_machine_go_past_every_proxy(server, url, blocking, host, token):
    address = url.replace("127.0.0.1", host)
    assert len(rank_once(Connection(address, token=token), blocking)) == 2


@pytest.mark.usefixtures("dead_proxies_everywhere")
@pytest.mark.parametrize("token", [None, "t0ken"])
def test_calls_to_this_machine_by_tls_go_past_every_proxy(server, tmp_path, blocking, token):
    authority = Authority(tmp_path / "ours")
    key, certificate = authority.issue()
    with grpc_server(server, certificate=(key.read_bytes(), certificate.read_bytes())) as address:
        assert len(rank_once(Connection(f"grpcs://{address}", authority.file, token), blocking)) == 2


@pytest.mark.parametrize("address", ["192.0.2.1:8001", "grpcs://ranking.example:443"])
@pytest.mark.parametrize("variable", VARIABLES)
def test_a_dead_proxy_is_named_by_its_variable(dead_proxy, monkeypatch, blocking, address, variable):
    monkeypatch.setenv(variable, dead_proxy)
    with pytest.raises(ConnectionFailedError, match=f"variable {variable} names: .*no_grpc_proxy") as caught:
        rank_once(address, blocking)
    assert "passw0rd" not in str(caught.value)


@pytest.mark.parametrize("status", ["403 Forbidden", "407 Proxy Authentication Required", "502 Bad Gateway"])
def test_a_proxy_that_refuses_is_named(monkeypatch, blocking, status):
    with proxy(f"HTTP/1.1 {status}\r\n\r\n".encode()) as (url, received):
        monkeypatch.setenv("https_proxy", url)
        with pytest.raises(ConnectionFailedError, match=f"{status[:3]} .* variable https_proxy names"):
            rank_once("ranking.example:8001", blocking)
    assert received[0].startswith(b"CONNECT ranking.example:8001 HTTP/1.1\r\n")


def test_a_proxy_that_never_answers_is_named(monkeypatch, blocking):
    with proxy(b"") as (url, _):
        monkeypatch.setenv("http_proxy", url)
        with pytest.raises(ServerTimeoutError, match="variable http_proxy names"):
            rank_once("ranking.example:8001", blocking, timeout=0.3)


def test_a_proxy_whose_name_is_unknown_is_named(monkeypatch, blocking):
    monkeypatch.setenv("http_proxy", "http://no-such-proxy.invalid:3128")
    with pytest.raises((ConnectionFailedError, ServerTimeoutError), match="variable http_proxy names"):
        rank_once("ranking.example:8001", blocking, timeout=3.0)


A, B, C = (f"http://127.0.0.1:{port}" for port in (1, 2, 3))


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        ("a.example:1", {}, None),
        ("a.example:1", {"http_proxy": A, "https_proxy": B, "grpc_proxy": C}, "grpc_proxy"),
        ("a.example:1", {"http_proxy": A, "https_proxy": B}, "https_proxy"),
        ("grpcs://a.example:1", {"http_proxy": A}, "http_proxy"),
        ("localhost:1", {"http_proxy": A}, None),
        ("[::1]:1", {"http_proxy": A}, None),
        # gRPC looks at the first variable that is set, and at no other when that one is no use.
        ("a.example:1", {"http_proxy": A, "https_proxy": ""}, None),
        ("a.example:1", {"http_proxy": A, "https_proxy": "socks5://127.0.0.1:2"}, None),
        ("a.example:1", {"HTTP_PROXY": A, "all_proxy": A}, None),
        ("a.example:1", {"http_proxy": A, "no_proxy": "b.example, A.example"}, None),
        ("a.example:1", {"http_proxy": A, "no_proxy": ".example"}, None),
        ("a.example:1", {"http_proxy": A, "no_proxy": "b.example,"}, "http_proxy"),
        ("a.example:1", {"http_proxy": A, "no_proxy": "a.example", "no_grpc_proxy": "b.example"}, "http_proxy"),
        ("10.1.2.3:1", {"http_proxy": A, "no_proxy": "10.0.0.0/8"}, None),
        ("11.1.2.3:1", {"http_proxy": A, "no_proxy": "10.0.0.0/8,nonsense/8"}, "http_proxy"),
        ("[2001:db8::1]:1", {"http_proxy": A, "no_proxy": "2001:db8::/32"}, None),
    ],
)
def test_which_proxy_counts_is_what_grpc_says(monkeypatch, url, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (target,) = Connection(url).targets
    assert proxy_variable(target) == expected


def test_an_error_without_a_proxy_does_not_speak_of_one(monkeypatch, dead_proxy, blocking):
    address = dead_proxy.rpartition("@")[2]
    monkeypatch.setenv("http_proxy", dead_proxy)
    with pytest.raises(ConnectionFailedError) as caught:
        rank_once(address, blocking)
    assert "proxy" not in str(caught.value)
