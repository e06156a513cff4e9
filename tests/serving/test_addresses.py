"""Where a server listens: names and numbers, IPv4 and IPv6, on the real tritonserver."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import tritonclient.grpc as triton

from serving.access import admin
from serving.addresses import LOOPBACK, Addresses, find_address
from serving.server import open_directly
from serving.triton import ServingError
from tests.published import serve
from tests.waiting import eventually


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


NEEDS_IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")


def answers(addresses: Addresses) -> bool:
    """Whether the server answers on all its ports, as its URLs say. (Triton opens the metrics' port last.)"""
    try:
        for url in filter(None, (addresses.http and f"{addresses.http}/v2/health/ready", addresses.metrics)):
            open_directly(url).close()
    except OSError:
        return False
    return triton.InferenceServerClient(addresses.grpc).is_server_ready(client_timeout=10)


@pytest.mark.parametrize("name", ["localhost", pytest.param("::1", marks=NEEDS_IPV6)])
def test_a_server_listens_where_it_is_told(small_repository: Path, tmp_path: Path, name: str) -> None:
    addresses = Addresses.free(find_address(name))
    addresses = replace(addresses, http_port=Addresses.free(addresses.address).grpc_port)
    with serve(small_repository, addresses=addresses, log=tmp_path / "log"):
        eventually(lambda: answers(addresses))


@NEEDS_IPV6
def test_all_ipv6_addresses_take_ipv4_for_grpc_alone(small_repository: Path, tmp_path: Path) -> None:
    with serve(small_repository, addresses=Addresses.free("::"), log=tmp_path / "log") as server:
        addresses = server.addresses
        eventually(lambda: answers(addresses))
        assert triton.InferenceServerClient(f"{LOOPBACK}:{addresses.grpc_port}").is_server_ready(client_timeout=10)
        with pytest.raises(OSError, match="refused"):
            open_directly(f"http://{LOOPBACK}:{addresses.metrics_port}/metrics")


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("localhost", LOOPBACK),
        ("127.0.0.1", LOOPBACK),
        ("0.0.0.0", "0.0.0.0"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("::", "::"),
        ("::ffff:127.0.0.1", LOOPBACK),
    ],
)
def test_a_name_becomes_a_number(name: str, address: str) -> None:
    assert find_address(name) == address


def test_the_host_name_of_this_machine_is_an_address() -> None:
    try:
        expected = {entry[4][0] for entry in socket.getaddrinfo(socket.gethostname(), None)}
    except OSError:
        pytest.skip("this machine does not know its own name")
    assert find_address(socket.gethostname()) in expected


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere.invalid", "cannot be resolved"),
        ("", "cannot be resolved"),
        ("a" * 80, "cannot be resolved"),
        ("two words", "cannot be resolved"),
        ("127.0.0.1:8000", "cannot be resolved"),
        ("fe80::1%1", "link-local"),
    ],
)
def test_what_is_no_address_is_refused_with_a_sentence(name: str, reason: str) -> None:
    with pytest.raises(ServingError, match=f"^--address '{name}' .*{reason}.*; give an address of this machine"):
        find_address(name)


@pytest.mark.parametrize(
    ("address", "host"), [("0.0.0.0", LOOPBACK), ("::", "[::1]"), ("::1", "[::1]"), ("10.0.0.7", "10.0.0.7")]
)
def test_urls_can_be_connected_to(address: str, host: str) -> None:
    addresses = Addresses(address, 81, 82)
    assert (addresses.http, addresses.grpc) == (None, f"{host}:81")
    assert addresses.metrics == f"http://{host}:82/metrics"
    assert Addresses(address, 81, 82, 80).http == f"http://{host}:80"


def test_http_is_closed_unless_it_is_asked_for_and_its_admin_calls_even_then(
    small_repository: Path, tmp_path: Path
) -> None:
    addresses = replace(Addresses.free(), http_port=Addresses.free().grpc_port)
    with serve(small_repository, addresses=addresses, log=tmp_path / "log") as server:
        eventually(lambda: answers(server.addresses))
        models = ("repository/index", "repository/models/small/load", "repository/models/small/unload")
        for path in (*models, "logging", "trace/setting", "systemsharedmemory/unregister"):
            request = urllib.request.Request(f"{server.addresses.http}/v2/{path}", data=b"{}", method="POST")
            with pytest.raises(urllib.error.HTTPError, match="403"):
                open_directly(request)
            request.add_header(admin.HEADER, server.admin_token)
            open_directly(request).close()
