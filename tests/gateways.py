"""A real Envoy with the policy of deploy/gateway, in front of servers, and what it logs and counts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2_grpc

from benchmarks.capacity.replicas import is_ended
from clickbert import Connection
from deploy.gateway.files import GatewayError
from deploy.gateway.run import ask, find_envoy
from serving.addresses import free_ports
from tests.client.certificates import Authority
from tests.waiting import eventually

TOKEN = "s3cret-t0ken.with~signs"
WITH_TOKEN = (("authorization", f"Bearer {TOKEN}"),)
NO_ENVOY = "Envoy is not installed, so the gateway is not checked"


def has_envoy() -> bool:
    try:
        return bool(find_envoy())
    except GatewayError:
        return False


needs_envoy = pytest.mark.skipif(not has_envoy(), reason=NO_ENVOY)


class Gateway:
    """A running one. `secrets` is its folder of secrets; `url` is where callers come."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, admin_port: int, log: Path, secrets: Path) -> None:
        self.process, self.port, self.admin_port, self.log, self.secrets = process, port, admin_port, log, secrets
        # Not localhost: of its two addresses, gRPC may tell the refusal of the one that nothing listens on.
        self.url = f"grpcs://127.0.0.1:{port}"
        self.ca_file = secrets.with_name("ours") / "authority.pem"

    def connection(self, token: str | None = TOKEN) -> Connection:
        """How a caller of this token reaches it."""
        return Connection(self.url, ca_file=self.ca_file, token=token)

    def channel(self, options: Sequence[tuple[str, int]] = (), **credentials: bytes) -> grpc.Channel:
        """One of its own to it. `credentials` are gRPC's: private_key, certificate_chain, root_certificates."""
        roots = {"root_certificates": self.ca_file.read_bytes()}
        own = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        secured = grpc.ssl_channel_credentials(**(roots | credentials))
        return grpc.secure_channel(f"127.0.0.1:{self.port}", secured, [*own, *options])

    def stub(self) -> service_pb2_grpc.GRPCInferenceServiceStub:
        """Triton's calls through it, without the client's library and its retries."""
        return service_pb2_grpc.GRPCInferenceServiceStub(self.channel())

    def count(self, name: str) -> int:
        """One of Envoy's counters or gauges."""
        found = re.findall(rf"^{re.escape(name)}: (\d+)$", ask("GET", "/stats", self.admin_port), re.MULTILINE)
        return int(found[0]) if found else 0

    def healthy(self) -> int:
        """How many servers it gives calls to."""
        return self.count("cluster.triton.membership_healthy")

    def calls(self) -> list[dict[str, Any]]:
        """The access log."""
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and '"method"' in line]


def make_secrets(folder: Path) -> Authority:
    """A folder of secrets `folder`/secrets, and the authority beside it, in `folder`/ours."""
    authority = Authority(folder / "ours")
    (folder / "secrets").mkdir()
    renew(authority, folder / "secrets")
    (folder / "secrets" / "tokens").write_text(
        f"# name and token\nweb {TOKEN}\nbatch an0ther-t0ken\n", encoding="utf-8"
    )
    return authority


def renew(authority: Authority, secrets: Path) -> None:
    """Puts another certificate in the place of the gateway's."""
    key, certificate = authority.issue()
    shutil.copy(key, secrets / "server.key")
    shutil.copy(certificate, secrets / "server.pem")


@contextmanager
def gateway(folder: Path, tritons: Sequence[str], *options: str, healthy: int | None = None) -> Iterator[Gateway]:
    """A gateway in front of these servers (host:port), with the secrets in `folder`; ready inside the block.

    Args:
        healthy: wait for so many good servers; None: for all.
    """
    port, admin_port = free_ports(2)
    if not has_envoy():
        pytest.skip(NO_ENVOY)
    command = [sys.executable, "-m", "deploy", "gateway", f"--secrets={folder / 'secrets'}"]
    command += [f"--listen=127.0.0.1:{port}", f"--admin-port={admin_port}", *options]
    command += [f"--triton={triton}" for triton in tritons]
    log = folder / f"gateway-{port}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    running = Gateway(process, port, admin_port, log, folder / "secrets")
    try:
        eventually(lambda: is_ready(running, len(tritons) if healthy is None else healthy), 180)
        yield running
    finally:
        eventually(lambda: is_ended(process), 180)


def is_ready(running: Gateway, healthy: int) -> bool:
    assert running.process.poll() is None, running.log.read_text(encoding="utf-8")
    try:
        return ask("GET", "/ready", running.admin_port).strip() == "LIVE" and running.healthy() == healthy
    except OSError:
        return False
