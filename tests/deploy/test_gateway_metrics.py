"""The gateway's figures for Prometheus: at a port of their own, where nothing else is answered."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from serving.addresses import free_ports
from tests.deploy.upstream import upstream
from tests.gateways import gateway, make_secrets

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder: Path = tmp_path_factory.mktemp("gateway")
    make_secrets(folder)
    (port,) = free_ports(1)
    with upstream() as (_, address), gateway(folder, [address], f"--metrics=127.0.0.1:{port}"):
        yield port


def test_prometheus_gets_the_figures(port: int) -> None:
    with DIRECT.open(f"http://127.0.0.1:{port}/stats/prometheus") as answer:
        assert answer.headers["content-type"].startswith("text/plain")  # Prometheus 3 refuses one that it does not know
        text = answer.read().decode()
    assert 'envoy_cluster_membership_healthy{envoy_cluster_name="triton"} 1\n' in text


@pytest.mark.parametrize(
    "method, path",
    [
        ("POST", "/stats/prometheus"),
        ("GET", "/stats/prometheus?filter=.*"),
        ("GET", "/stats/prometheus/"),
        ("GET", "/stats/../healthcheck/fail"),
        ("GET", "/stats"),
        ("GET", "/clusters"),
        ("POST", "/healthcheck/fail"),
        ("POST", "/drain_listeners?graceful"),
        ("POST", "/inference.GRPCInferenceService/ModelInfer"),
    ],
)
def test_nothing_else_is_answered_there(port: int, method: str, path: str) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    with pytest.raises(urllib.error.HTTPError) as caught:
        DIRECT.open(request)
    assert caught.value.code == 404


def test_without_the_option_no_such_port_is_open(tmp_path: Path) -> None:
    make_secrets(tmp_path)
    with upstream() as (_, address), gateway(tmp_path, [address]) as running:
        (envoy,) = psutil.Process(running.process.pid).children()
        listening = {each.laddr.port for each in envoy.net_connections("tcp") if each.status == psutil.CONN_LISTEN}
    assert listening == {running.port, running.admin_port}
