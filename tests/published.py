"""Publishes small models, and serves repositories, for tests: by the code behind `export` and `serving`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from export.__main__ import main as export
from release.names import ONNX_MODEL
from serving.access import admin
from serving.repository.loading import load
from serving.server import Addresses, Server
from serving.triton import find_triton
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
def serve(
    repository: Path,
    *flags: str,
    addresses: Addresses | None = None,
    log: Path | None = None,
    config: str = "",
    secure: Path | None = None,
) -> Iterator[Server]:
    """A server, on free ports of loopback by default. It is killed at the end: draining takes Triton some seconds.

    Args:
        flags: of tritonserver.
        log: where its log goes; None: beside the repository.
        config: the name of a config variant.
        secure: the folder of certificates and the token.
    """
    if not config and not find_triton().has_python:
        pytest.skip("this Triton has no python backend, which packed_cpu stands on")
    log = log or repository.with_name(f"{repository.name}-triton.log")
    addresses = addresses or Addresses.free()
    with log.open("wb") as file, Server(repository, addresses, flags, file, config, secure) as server:
        try:
            yield server
        finally:
            server.kill()


@contextmanager
def serve_with_tls(repository: Path, authority: Authority) -> Iterator[Server]:
    """A server that speaks TLS, with a certificate of this authority."""
    authority.issue()
    with serve(repository, secure=authority.folder, log=authority.folder / "triton.log") as server:
        yield server


def load_newest(server: Server, *models: str) -> None:
    """Loads the newest versions as `python -m serving load` does (by default of the fp32 model)."""
    for model in models or (ONNX_MODEL,):
        load(server.repository, server.addresses, server.security, model)


def as_admin(server: Server) -> dict[str, str]:
    """The headers of calls that are closed to others."""
    return admin.headers(server.admin_token)
