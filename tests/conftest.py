"""Fixtures that the whole run shares: one small model, published once as every engine, and served.

They import what they need when they are used, because tests/client runs where nothing but the client is installed.
What they return is read-only: a test that changes a file copies the folder first.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from serving.server import Server

# Before PyTorch is imported, here and in every process that a test starts: on models this small its threads only wait
# for each other, and for those of the other test processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run; the workers of pytest-xdist all have the same one."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def once(path: Path, make: Callable[[Path], object]) -> Path:
    """Has the first worker that asks make a file or folder; the others wait, and get the same."""
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            unfinished = path.with_name(f"{path.name}.unfinished")
            make(unfinished)
            unfinished.rename(path)
    return path


@pytest.fixture(scope="session")
def published_checkpoint(shared: Path) -> Path:
    """The model that is published: two layers, one label, random weights."""
    from tests.tiny import make_checkpoint

    return once(shared / "checkpoint", make_checkpoint)


@pytest.fixture(scope="session")
def published_log(shared: Path) -> Path:
    """The click log that the published engines are calibrated and gated on: 50 impressions."""
    from tests.tiny import make_click_log

    return once(shared / "log.jsonl", lambda path: make_click_log(path, groups=50))


@pytest.fixture(scope="session")
def published_engines(shared: Path, published_checkpoint: Path, published_log: Path) -> Path:
    """A repository with version 1 of every engine. (Without a GPU the TensorRT engines are graphs without a plan.)"""
    from export.engines import find_engines
    from tests.published import publish

    return once(shared / "engines", lambda path: publish(published_checkpoint, path, published_log, *find_engines()))


@pytest.fixture(scope="session")
def joint_checkpoint(shared: Path) -> Path:
    """A jointly trained one, with every further head."""
    from tests.tiny import JOINT, make_checkpoint

    return once(shared / "joint-checkpoint", lambda path: make_checkpoint(path, heads=JOINT))


@pytest.fixture(scope="session")
def joint_engines(shared: Path, joint_checkpoint: Path, published_log: Path) -> Path:
    """A repository with version 1 of every engine of the jointly trained checkpoint."""
    from export.engines import find_engines
    from tests.published import publish

    return once(shared / "joint-engines", lambda path: publish(joint_checkpoint, path, published_log, *find_engines()))


@pytest.fixture(scope="session")
def published_repository(shared: Path, published_engines: Path) -> Path:
    """The repository that is served: fp32 and INT8 on CPUs, and the tokenizer.

    A request may wait a minute in the queue, not ten seconds: a busy machine must not fail tests that ask for answers.
    """

    def copy(path: Path) -> None:
        shutil.copytree(published_engines, path, ignore=shutil.ignore_patterns("clickbert_trt_*"))
        for config in path.glob("clickbert_onnx*/config.pbtxt"):
            text = config.read_text(encoding="utf-8")
            patient = text.replace(
                '"deadline_seconds" value { string_value: "10" }', '"deadline_seconds" value { string_value: "60" }'
            )
            assert patient != text
            config.write_text(patient, encoding="utf-8")

    return once(shared / "repository", copy)


@pytest.fixture(scope="session")
def published_server(published_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on the published repository; each worker of pytest-xdist has its own."""
    from tests.published import serve

    with serve(published_repository, log=tmp_path_factory.mktemp("served") / "triton.log") as server:
        yield server
