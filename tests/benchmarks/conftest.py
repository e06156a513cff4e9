"""A tiny model, published, served, and put under short loads."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from benchmarks.__main__ import main
from benchmarks.load_gen import pool as generator
from benchmarks.measure import stats as figures
from serving.server import Server
from tests.published import serve
from tests.tiny import make_click_log


@pytest.fixture(scope="session")
def click_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_click_log(tmp_path_factory.mktemp("log") / "clicks.jsonl")


@pytest.fixture(scope="session")
def checkpoint(published_checkpoint: Path) -> Path:
    return published_checkpoint


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, published_repository: Path) -> Path:
    """fp32 alone: what a benchmark finds here it measures."""
    folder = tmp_path_factory.mktemp("published") / "repository"
    return shutil.copytree(published_repository, folder, ignore=shutil.ignore_patterns("clickbert_onnx_int8"))


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[Server]:
    with serve(repository) as server:
        yield server


class Said(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def command(*arguments: object) -> Said:
    """`python -m benchmarks`, in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main([str(argument) for argument in arguments])
    return Said(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def short_loads(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """Loads warm up for a second, keep their logs in `folder`, and are fit to be shown whatever else this machine does.

    A tiny model answers before a busy machine has woken the generator again.
    """
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", None)
        patch.setattr(generator, "WARM_UP", 1)
        patch.setattr(figures, "BUSY", 2.0)
        patch.setattr(figures, "LEAST_LAG", 1e6)
        yield patch


@contextlib.contextmanager
def kept_samples(patch: pytest.MonkeyPatch) -> Iterator[list[dict]]:
    """What each generator recorded, in the order in which they were read."""
    recorded: list[dict] = []
    read = generator.read

    def remember(*arguments: object) -> dict:
        recorded.append(read(*arguments))
        return recorded[-1]

    with patch.context() as context:
        context.setattr(generator, "read", remember)
        yield recorded


def locusts(parent: psutil.Process | None = None) -> list[psutil.Process]:
    """The generators among this process's children, or another's; a child may end while it is looked at."""
    found = []
    for child in (parent or psutil.Process()).children():
        with contextlib.suppress(psutil.Error):
            found += [child] * ("locust" in child.cmdline())
    return found
