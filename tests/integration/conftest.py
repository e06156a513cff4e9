"""A small model on the real way: made, exported, published, served by a real tritonserver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from export.__main__ import main as export
from serving.server import Addresses, Server
from tests.client.certificates import Authority
from tests.export.command import WIDE
from tests.tiny import make_checkpoint, make_click_log


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture(scope="session")
def click_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_click_log(tmp_path_factory.mktemp("log") / "log.jsonl", groups=50)


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, click_log: Path) -> Path:
    folder = tmp_path_factory.mktemp("serving") / "repository"
    publish(checkpoint, folder, click_log, "onnx", "onnx_int8")
    # The queue gives up after 10 s, whatever a busy machine needs. That is no subject of the tests that share this one.
    for config in folder.glob("clickbert_onnx*/config.pbtxt"):
        text = config.read_text(encoding="utf-8")
        assert "default_timeout_microseconds: 10000000" in text
        config.write_text(text.replace("_microseconds: 10000000", "_microseconds: 60000000"), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[Server]:
    with (repository.parent / "triton.log").open("wb") as log, Server(repository, Addresses.free(), log=log) as server:
        yield server


@contextmanager
def served_with_tls(repository: Path, authority: Authority) -> Iterator[Server]:
    """A server that speaks TLS, with a certificate of this authority."""
    key, certificate = authority.issue()
    flags = ("--grpc-use-ssl=true", f"--grpc-server-cert={certificate}", f"--grpc-server-key={key}")
    with (
        (authority.folder / "triton.log").open("wb") as log,
        Server(repository, Addresses.free(), flags, log) as server,
    ):
        yield server


def publish(checkpoint: Path, repository: Path, click_log: Path, *engines: str) -> None:
    """Exports to the named engines (fp32 if none is). The gates are wide: a random model's ranking means nothing."""
    paths = {"--checkpoint": checkpoint, "--repository": repository, "--evaluation": click_log}
    paths |= {"--calibration": click_log, "--report": click_log.parent / "report.html"}
    options = [str(part) for option in paths.items() for part in option]
    for engine in engines or ("onnx",):
        options += ["--engine", engine]
    assert export([*options, *WIDE]) == 0
