"""The command line of `python -m serving`, as tests call it."""

from __future__ import annotations

from pathlib import Path

from serving.server import Addresses


def options(repository: Path, addresses: Addresses) -> list[str]:
    """The options that serve a repository at these addresses."""
    return [
        f"--repository={repository}",
        f"--http-port={addresses.http_port}",
        f"--grpc-port={addresses.grpc_port}",
        f"--metrics-port={addresses.metrics_port}",
    ]
