"""Processes that die in the middle of their work: a backend of the server's, and a client."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from benchmarks.load_gen.metrics import total
from clickbert import ConnectionFailedError, Ranker, ServerError, ServerUnavailableError
from release.names import ONNX_MODEL
from serving.backends.packed_cpu.figures import DROPPED, ELEMENTS, PERIOD, REQUESTS
from serving.server import Server
from tests.figures import Figures
from tests.integration.scores import PATIENCE
from tests.integration.test_dead_backend import backend_of
from tests.reliability.faults import clients
from tests.serving.busy_cores import busy_cores, needs_bound_cores, waiting_in_the_schedule
from tests.serving.test_server import Command
from tests.waiting import eventually

PAIRS = [("w1", f"w{number} w2 w3") for number in range(32)]
CALLERS = 8
PAUSE = 0.05  # seconds that a caller waits after an error
IN_FLIGHT = 50  # calls of the client that is killed


def serve_callers(
    ranker: Ranker, expected: list[float], stop: threading.Event, ends: list[tuple[float, type[Exception] | None]]
) -> None:
    """Asks without pause; takes note of when each call ended, and of its error."""
    while not stop.is_set():
        error: type[Exception] | None = None
        try:
            assert ranker.score_pairs(PAIRS) == pytest.approx(expected, abs=1e-5)
        except ServerError as exc:
            error = type(exc)
        ends.append((time.monotonic(), error))
        if error:
            time.sleep(PAUSE)


@pytest.mark.reliability
def test_after_a_killed_backend_calls_are_answered_again_within_seconds(
    published_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    stop, ends = threading.Event(), list[tuple[float, type[Exception] | None]]()
    with Command(published_repository, tmp_path) as command:
        with Ranker(command.addresses.grpc, timeout=PATIENCE) as ranker, ThreadPoolExecutor(CALLERS) as pool:
            expected = ranker.score_pairs(PAIRS)
            callers = [pool.submit(serve_callers, ranker, expected, stop, ends) for _ in range(CALLERS)]
            try:
                eventually(lambda: len(ends) > 10 * CALLERS)
                killed = time.monotonic()
                os.kill(backend_of(command, ONNX_MODEL), signal.SIGKILL)
                eventually(lambda: any(error for _, error in ends))
                answered_again = lambda: [when for when, error in ends if not error and when > first_error(ends)]  # noqa: E731
                eventually(lambda: len(answered_again()) > 10 * CALLERS)
            finally:
                stop.set()
            for caller in callers:
                caller.result(PATIENCE)
            recovered = min(answered_again())
    errors = Counter(error for _, error in ends if error)
    figures.at_most(8, "seconds from kill -9 of the backend to the next answer", recovered - killed, 20, "s")
    figures.only_told(8, "failed calls of 8 callers meanwhile, a pause of 50 ms after each", errors.total(), "calls")
    others = errors.keys() - {ConnectionFailedError, ServerUnavailableError}
    figures.exactly(8, "of other classes than connection failed and unavailable", len(others), 0, "classes")
    assert not [error for when, error in ends if error and (when < killed or when > recovered + PATIENCE)]


def first_error(ends: list[tuple[float, type[Exception] | None]]) -> float:
    return min(when for when, error in ends if error)


def figure(server: Server, name: str, **labels: str) -> float:
    return total(server.metrics(), name, model=ONNX_MODEL, **labels)


def soon(what: Callable[[], bool]) -> float:
    """Seconds until it is true."""
    began = time.monotonic()
    eventually(what)
    return time.monotonic() - began


@needs_bound_cores
def test_a_killed_client_frees_its_places_and_its_work_is_dropped(published_server: Server, figures: Figures) -> None:
    """No core is free until the client is dead, so that none of its calls can have been answered."""
    command = [sys.executable, clients.__file__, published_server.addresses.grpc, str(IN_FLIGHT)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        try:
            assert client.stdin
            assert client.stdout
            assert client.stdout.readline() == "ready\n"
            time.sleep(3 * PERIOD)  # what was asked before is counted by then
            cancelled = figure(published_server, REQUESTS, outcome="cancelled")
            dropped, computed = figure(published_server, DROPPED), figure(published_server, ELEMENTS)
            with busy_cores(published_server):
                print(file=client.stdin, flush=True)
                eventually(lambda: waiting_in_the_schedule(published_server, ONNX_MODEL) == IN_FLIGHT)
                waiting = figure(published_server, "clickbert_waiting_elements")
                client.kill()
                client.wait()
                time.sleep(1)  # until Triton has heard of it
            seconds = soon(lambda: waiting_in_the_schedule(published_server, ONNX_MODEL) == 0)
        finally:
            client.kill()
    figures.at_most(10, "from a core being free to the 50 places of a killed client, too", seconds, 5, "s")
    eventually(lambda: figure(published_server, REQUESTS, outcome="cancelled") >= cancelled + IN_FLIGHT)
    figures.exactly(10, "tokens of its calls computed", figure(published_server, ELEMENTS) - computed, 0, "tokens")
    figures.exactly(
        10, "tokens of its calls neither computed nor dropped", waiting + dropped - figure(published_server, DROPPED), 0
    )
    with Ranker(published_server.addresses.grpc, timeout=PATIENCE) as ranker:
        assert np.isfinite(ranker.score_pairs(PAIRS)).all()
