"""Where a server listens: what the user may write, how Triton wants it, and the URLs for those who connect."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Self

from serving.triton import ServingError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Addresses:
    """A numeric address and its ports; without a port, HTTP is off. (`find_address` makes a number of a name.)

    `::` is IPv6 alone for HTTP and the metrics, and both for gRPC: that is how Triton's two servers open it.
    """

    address: str = LOOPBACK
    grpc_port: int = 8001
    metrics_port: int = 8002
    http_port: int | None = None

    @classmethod
    def free(cls, address: str = LOOPBACK) -> Self:
        """Ports that nobody listens on, for a server that lives as long as one command. HTTP is off."""
        return cls(address, *free_ports(2, address))

    @property
    def host(self) -> str:
        """The address as a URL writes it; loopback for a server that listens on all addresses."""
        reachable = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(self.address, self.address)
        return f"[{reachable}]" if ":" in reachable else reachable

    @property
    def http(self) -> str | None:
        """URL of the HTTP endpoint; None where it is off."""
        return f"http://{self.host}:{self.http_port}" if self.http_port else None

    @property
    def grpc(self) -> str:
        """host:port of the gRPC endpoint, as `clickbert.Ranker` takes it."""
        return f"{self.host}:{self.grpc_port}"

    @property
    def metrics(self) -> str:
        """URL of the Prometheus metrics."""
        return f"http://{self.host}:{self.metrics_port}/metrics"

    @property
    def ports(self) -> dict[str, int]:
        """Port by the option that names it."""
        http = {"--http-port": self.http_port} if self.http_port else {}
        return {"--grpc-port": self.grpc_port, "--metrics-port": self.metrics_port} | http

    def __str__(self) -> str:
        http = f"  HTTP {self.http}" if self.http else ""
        return f"gRPC {self.grpc}{http}  metrics {self.metrics}"

    @property
    def flags(self) -> list[str]:
        """The flags of tritonserver, whose HTTP server (libevhtp) and gRPC server spell an IPv6 address differently."""
        ipv6 = ":" in self.address
        for_http = f"ipv6:{self.address}" if ipv6 else self.address
        http = [f"--http-address={for_http}", f"--http-port={self.http_port}"] if self.http_port else []
        return [
            f"--allow-http={'true' if self.http_port else 'false'}",
            *http,
            f"--grpc-address={f'[{self.address}]' if ipv6 else self.address}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-address={for_http}",
            f"--metrics-port={self.metrics_port}",
        ]


def free_ports(count: int, address: str = LOOPBACK) -> list[int]:
    """So many different ports that nobody listens on."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket(family)) for _ in range(count)]
        for probe in probes:
            probe.bind((address, 0))
        return [probe.getsockname()[1] for probe in probes]


def find_address(name: str) -> str:
    """The numeric address that a host name or an address stands for; the IPv4 one where a name has both.

    Triton's HTTP server knows no names, and would listen on 255.255.255.255 in their place.

    Raises:
        ServingError: nobody knows the name, or Triton cannot listen there.
    """
    advice = "give an address of this machine: 127.0.0.1, ::1, 0.0.0.0 or :: for all, or a name that it has"
    try:
        found = socket.getaddrinfo(name.removeprefix("[").removesuffix("]"), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise ServingError(f"--address {name!r} cannot be resolved ({reason}); {advice}") from exc
    _, _, _, _, where = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    if where[3:] > (0,):
        raise ServingError(f"--address {name!r} is link-local, and Triton does not know an address's zone; {advice}")
    address = str(where[0])
    mapped = IPv6Address(address).ipv4_mapped if ":" in address else None
    return str(mapped or address)
