"""Versions that come and go under load: a good one, and broken ones (18, 19), by `python -m serving load`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from clickbert import ClickBertError, Ranker
from release.manifest import read_manifest, write_manifest
from release.versions import WITHDRAWN, published
from serving.server import Server
from tests.figures import Figures
from tests.integration.scores import PATIENCE, as_rows, in_pytorch
from tests.published import publish, serve
from tests.tiny import WORDS, make_checkpoint
from tests.waiting import eventually

pytestmark = pytest.mark.reliability
MODEL = "clickbert_onnx"
CALLERS = 4
# More than one request takes, so that a version could change within an answer.
PAIRS = [(f"w{number % 3}", f"w{number} w{number + 1}") for number in range(80)]
ROLLBACK = 20.0  # seconds; 2 to 4 on two idle cores, most of which Triton takes to unload the other version


@pytest.fixture
def repository(published_repository: Path, tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("clickbert_onnx_int8")
    return shutil.copytree(published_repository, tmp_path / "repository", ignore=ignored)


def load(server: Server, *more: str) -> subprocess.CompletedProcess[str]:
    """`python -m serving load`, as an operator calls it."""
    words = [sys.executable, "-m", "serving", "load", MODEL, f"--repository={server.repository}"]
    words.append(f"--grpc-port={server.addresses.grpc_port}")
    return subprocess.run([*words, *more], capture_output=True, text=True, check=False, timeout=PATIENCE)


@dataclass
class Seen:
    """What callers saw."""

    versions: Counter[int] = field(default_factory=Counter)  # answers wholly from a version
    mixed: int = 0
    failed: list[str] = field(default_factory=list)
    slowest: float = 0.0


@contextmanager
def callers(server: Server, right: dict[int, np.ndarray]) -> Iterator[Seen]:
    """Callers that rank without a pause; `right` are the scores by version."""
    seen, stop, lock = Seen(), threading.Event(), threading.Lock()

    def call() -> None:
        while not stop.is_set():
            start = time.monotonic()
            try:
                scores = ranker.score_pairs(PAIRS)
            except ClickBertError as exc:
                with lock:
                    seen.failed.append(repr(exc))
                continue
            fits = [version for version, own in right.items() if np.allclose(scores, own, atol=1e-5)]
            with lock:
                seen.slowest = max(seen.slowest, time.monotonic() - start)
                seen.versions.update(fits)
                seen.mixed += not fits

    with Ranker(server.addresses.grpc, timeout=PATIENCE, retries=0) as ranker, ThreadPoolExecutor(CALLERS) as pool:
        running = [pool.submit(call) for _ in range(CALLERS)]
        try:
            yield seen
        finally:
            stop.set()
        for each in running:
            each.result(PATIENCE)


@contextmanager
def probes(server: Server) -> Iterator[Counter[bool]]:
    """Asks for readiness as load balancers do, without a pause."""
    answers: Counter[bool] = Counter()
    stop = threading.Event()

    def probe() -> None:
        with triton.InferenceServerClient(server.addresses.grpc) as client:
            while not stop.wait(0.02):
                answers[client.is_server_ready(client_timeout=PATIENCE)] += 1
                answers[client.is_model_ready(MODEL, client_timeout=PATIENCE)] += 1

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(probe)
        try:
            yield answers
        finally:
            stop.set()
        running.result(PATIENCE)


def test_a_new_version_under_load(
    published_checkpoint: Path, published_log: Path, repository: Path, tmp_path: Path, figures: Figures
) -> None:
    """18: another vocabulary and other weights; loaded, taken back, and loaded again."""
    successor = make_checkpoint(tmp_path / "successor", seed=1, words=["new", *reversed(WORDS)])
    right = {1: in_pytorch(published_checkpoint, as_rows(PAIRS)), 2: in_pytorch(successor, as_rows(PAIRS))}
    with serve(repository) as server, probes(server) as ready, callers(server, right) as seen:
        eventually(lambda: seen.versions[1] > 20)
        publish(successor, repository, published_log)
        for number in (2, 1, 2):
            before = seen.versions[number]
            done = load(server, *(["--version", str(number)] if seen.versions[2] else []))
            assert done.returncode == 0, done.stderr
            assert done.stdout == f"serving: {MODEL} version {number} is served\n"
            eventually(lambda before=before, number=number: seen.versions[number] > before + 20)
    figures.exactly(18, "calls failed while versions were loaded", len(seen.failed), 0)
    figures.exactly(18, "answers that are not wholly of one version", seen.mixed, 0)
    figures.exactly(18, "probes that found the server not ready", ready[False], 0)
    figures.only_told(18, "answers checked", seen.versions.total())
    figures.only_told(18, "slowest answer meanwhile", seen.slowest, "s")


def break_graph(version: Path) -> None:
    """A graph that nobody can load; its manifest is in order."""
    (version / "model.onnx").write_bytes(b"no graph")
    write_manifest(version, read_manifest(version))


def test_broken_versions_under_load(published_checkpoint: Path, repository: Path, figures: Figures) -> None:
    """19: one that the verification refuses, and one that Triton does; then a rollback from a good one."""
    right = {1: in_pytorch(published_checkpoint, as_rows(PAIRS))}
    for model in (MODEL, "clickbert_tokenizer"):
        for number in ("2", "3", "4"):
            shutil.copytree(repository / model / "1", repository / model / number)
    for number in ("3", "4"):
        (repository / MODEL / number).rename(repository / MODEL / f"{WITHDRAWN}{number}")
    with (repository / MODEL / "2" / "model.onnx").open("r+b") as damaged:
        damaged.truncate(1000)
    break_graph(repository / MODEL / f"{WITHDRAWN}3")
    with serve_first(repository) as server, probes(server) as ready, callers(server, right) as seen:
        eventually(lambda: seen.versions[1] > 20)
        refused = 0
        for number, reason in (("2", "model.onnx is damaged"), ("3", "Triton did not load it")):
            done = load(server, "--version", number)
            assert reason in done.stderr, done.stderr
            assert "1 serves on" in done.stderr
            refused += done.returncode == 1
        assert [path.name for path in published(repository, MODEL)] == ["1"], "what a restart would serve"
        assert load(server, "--version", "4").returncode == 0
        start = time.monotonic()
        done = load(server, "--version", "1")
        rollback = time.monotonic() - start
        assert done.returncode == 0, done.stderr
        answered = seen.versions[1]
        eventually(lambda: seen.versions[1] > answered + 20)
    figures.exactly(19, "broken versions refused, of 2", refused, 2)
    figures.exactly(19, "calls failed meanwhile", len(seen.failed) + seen.mixed, 0)
    figures.exactly(19, "probes that found the server not ready", ready[False], 0)
    figures.at_most(19, "rollback", rollback, ROLLBACK, "s")


@contextmanager
def serve_first(repository: Path) -> Iterator[Server]:
    """Serves version 1, and publishes version 2 once it runs."""
    second = repository / MODEL / "2"
    hidden = second.rename(second.with_name(f"{WITHDRAWN}2"))
    with serve(repository) as server:
        hidden.rename(second)
        yield server
