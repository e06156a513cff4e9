"""Short loads on the small model that the whole run shares (tests/conftest.py)."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from benchmarks.__main__ import main
from benchmarks.load_gen.pool import Timing
from benchmarks.load_gen.target import Target
from benchmarks.measure.stats import ClientLimits
from clickbert.connection import Connection
from serving.server import Server

MODEL = "clickbert_onnx"
TIMING = Timing(warm_up=1, resume=0.2, run_out=1)
# Fit to be shown whatever else this machine does: a tiny model answers before a busy machine has woken the generator.
LIMITS = ClientLimits(busy=2.0, delay_ms=1e6)


@pytest.fixture
def target(published_server: Server) -> Target:
    return Target(Connection(published_server.addresses.grpc), server=published_server)


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's runs keep their logs."""
    folder = tmp_path / "logs"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def command(*arguments: object, **settings: object) -> Ended:
    """`python -m benchmarks`, in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main([str(argument) for argument in arguments], **settings)
    return Ended(code, out.getvalue(), err.getvalue())


def locusts(parent: psutil.Process | None = None) -> list[psutil.Process]:
    """The generators among this process's children, or another's; a child may end while it is looked at."""
    found = []
    for child in (parent or psutil.Process()).children():
        with contextlib.suppress(psutil.Error):
            found += [child] * ("locust" in child.cmdline())
    return found
