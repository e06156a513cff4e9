"""Publishes small models, and serves repositories, for tests: by the code behind `export` and `serving`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.__main__ import main as export
from serving.server import Addresses, Server
from tests.client.certificates import Authority
from tests.export.command import WIDE


def publish(checkpoint: Path, repository: Path, click_log: Path, *engines: str) -> None:
    """Exports to the named engines (fp32 if none is). The gates are wide: a random model's ranking means nothing."""
    paths = {"--checkpoint": checkpoint, "--repository": repository, "--evaluation": click_log}
    paths |= {"--calibration": click_log, "--report": repository.with_name(f"{repository.name}-report.html")}
    options = [str(part) for option in paths.items() for part in option]
    for engine in engines or ("onnx",):
        options += ["--engine", engine]
    assert export([*options, *WIDE]) == 0


@contextmanager
def serve(repository: Path, *flags: str, log: Path | None = None) -> Iterator[Server]:
    """A server on free ports.

    Args:
        flags: of tritonserver.
        log: where its log goes; None: beside the repository.
    """
    log = log or repository.with_name(f"{repository.name}-triton.log")
    with log.open("wb") as file, Server(repository, Addresses.free(), flags, file) as server:
        yield server


@contextmanager
def serve_with_tls(repository: Path, authority: Authority) -> Iterator[Server]:
    """A server that speaks TLS, with a certificate of this authority."""
    key, certificate = authority.issue()
    flags = ("--grpc-use-ssl=true", f"--grpc-server-cert={certificate}", f"--grpc-server-key={key}")
    with serve(repository, *flags, log=authority.folder / "triton.log") as server:
        yield server
