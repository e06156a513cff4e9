"""The wall clock is stepped back and forth under a server and its callers.

The machine's own clock is left alone: a small library (wall_clock.c) that is preloaded into the processes moves what
they read of it. That needs a C compiler. What a step does inside the kernel (timers on the wall clock) it imitates.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from clickbert import Ranker, ServerError
from tests.figures import Figures
from tests.integration.scores import PATIENCE
from tests.published import serve
from tests.reliability.faults import clients
from tests.serving.busy_cores import busy_cores, needs_bound_cores

SOURCE = Path(__file__).with_name("wall_clock.c")
STEPS = (3600.0, -7200.0, 0.0, 86_400.0, -86_400.0, 60.0, 0.0)  # seconds that the wall clock is off
PAIRS = [("w1", f"w{number} w2 w3") for number in range(16)]
TIMEOUT = 0.5  # seconds

needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler: the clock cannot be moved")


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that says how far off the clock of processes started by this test is."""
    library, file = tmp_path / "wall_clock.so", tmp_path / "offset"
    step(file, 0.0)
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl", "-lm"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("WALL_CLOCK", str(file))
    yield file


def step(file: Path, seconds: float) -> None:
    """Moves the clock at once, also of processes that run."""
    with file.open("r+b" if file.exists() else "wb") as opened:
        opened.write(struct.pack("d", seconds))


def clock_of_a_child() -> float:
    """How far off another process's clock is."""
    found = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time())"], capture_output=True, text=True, check=True
    )
    return float(found.stdout) - time.time()


@pytest.mark.reliability
@needs_compiler
@needs_bound_cores
def test_a_stepped_clock_fails_no_call_and_moves_no_deadline(
    published_repository: Path, tmp_path: Path, clock: Path, figures: Figures
) -> None:
    stop, failed, answered = threading.Event(), list[str](), list[int]()
    with serve(published_repository, log=tmp_path / "log") as server:
        with Ranker(server.addresses.grpc, timeout=PATIENCE) as ranker, ThreadPoolExecutor(4) as pool:
            expected = ranker.score_pairs(PAIRS)

            def call() -> None:
                while not stop.is_set():
                    try:
                        assert ranker.score_pairs(PAIRS) == pytest.approx(expected, abs=1e-5)
                        answered.append(1)
                    except ServerError as exc:
                        failed.append(str(exc))

            callers = [pool.submit(call) for _ in range(4)]
            try:
                for seconds in STEPS:
                    step(clock, seconds)
                    assert clock_of_a_child() == pytest.approx(seconds, abs=2), "the step is seen"
                    time.sleep(1)
            finally:
                stop.set()
            for caller in callers:
                caller.result(PATIENCE)
        with client_in_time(server.addresses.grpc) as client, busy_cores(server):
            off = [abs(overrun(client, clock, seconds)) for seconds in STEPS]
    figures.only_told(29, f"calls answered during {len(STEPS)} steps of up to a day", len(answered), "calls")
    figures.exactly(29, "calls that failed", len(failed), 0, "calls")
    figures.at_most(29, "a deadline of 0.5 s kept within, stepped in the middle", 1000 * max(off), 250, "ms")


@contextmanager
def client_in_time(url: str) -> Iterator[subprocess.Popen[str]]:
    """A client in a process whose clock is moved, too, with TIMEOUT for its calls."""
    words = [sys.executable, clients.__file__, url, "deadline", str(TIMEOUT)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        try:
            assert client.stdout
            assert client.stdout.readline() == "ready\n"
            yield client
        finally:
            client.kill()


def overrun(client: subprocess.Popen[str], clock: Path, seconds: float) -> float:
    """By how much a call overran its deadline, when the clock was stepped in the middle of it."""
    assert client.stdin
    assert client.stdout
    print(file=client.stdin, flush=True)
    time.sleep(TIMEOUT / 2)
    step(clock, seconds)
    error, took = client.stdout.readline().split()
    assert error == "ServerTimeoutError"
    return float(took) - TIMEOUT
