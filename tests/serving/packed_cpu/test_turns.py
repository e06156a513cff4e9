"""Threads of several processes that are bound to a core compute there one at a time, and nobody is passed over."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from serving.backends.packed_cpu import cores
from serving.backends.packed_cpu.cores import BOUND, start_workers, turn
from tests.waiting import eventually

# Another process on the same cores: it says when each of its tasks begins and ends, so many for every core.
OTHER = """
import os, sys, time
from pathlib import Path
from serving.backends.packed_cpu import cores

def task():
    with cores.turn():
        core, = os.sched_getaffinity(0)
        began = time.monotonic()
        time.sleep(float(sys.argv[2]))
        print(f"{core} {began} {time.monotonic()}\\n", end="", flush=True)  # in one piece: two threads write

cores.GROUPS = Path(sys.argv[1])  # whatever limits this machine, the threads are bound
with cores.start_workers(0, Path(sys.argv[1])) as pool:
    tasks = [pool.submit(task) for _ in range(int(sys.argv[3]) * len(os.sched_getaffinity(0)))]
for each in tasks:
    each.result()
"""


def in_turn(task: Callable[[], object]) -> object:
    with turn():
        return task()


@pytest.fixture(autouse=True)
def unlimited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "GROUPS", tmp_path)


@contextmanager
def other(folder: Path, seconds: float, tasks: int) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", OTHER, str(folder), str(seconds), str(tasks)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_core_is_one_threads_at_a_time(tmp_path: Path) -> None:
    def task() -> tuple[int, float, float]:
        (core,) = os.sched_getaffinity(0)
        began = time.monotonic()
        time.sleep(0.02)
        return core, began, time.monotonic()

    cores = os.sched_getaffinity(0)
    with other(tmp_path, 0.02, 10) as process:
        assert process.stdout
        first = process.stdout.readline()
        with start_workers(0, tmp_path) as pool:
            mine = [each.result(60) for each in [pool.submit(in_turn, task) for _ in range(10 * len(cores))]]
        lines = [first, *process.stdout.readlines()]
        assert process.wait(60) == 0
    theirs = [(int(core), float(began), float(ended)) for core, began, ended in map(str.split, lines)]
    assert len(theirs) == len(mine) == 10 * len(cores)
    for core in cores:
        spans = sorted(span[1:] for span in mine + theirs if span[0] == core)
        assert all(before[1] <= after[0] for before, after in pairwise(spans))


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> int:
    """The only core that there is for `start_workers`: one thread."""
    core = min(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {core})
    return core


def test_whoever_waits_is_the_next_however_much_the_other_has_to_do(core: int, tmp_path: Path) -> None:
    first, go_on, second = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        first.set()
        assert go_on.wait(60)

    with start_workers(0, tmp_path) as pool, (tmp_path / f"core{core}.next").open("ab") as waiting:
        pool.submit(in_turn, hold)
        pool.submit(in_turn, second.set)
        assert first.wait(60)
        fcntl.flock(waiting, fcntl.LOCK_EX)  # as one who waits does; it is free while the other computes
        go_on.set()
        assert not second.wait(0.5)
        fcntl.flock(waiting, fcntl.LOCK_UN)
        assert second.wait(60)


def test_a_killed_process_leaves_the_core_to_the_others(tmp_path: Path) -> None:
    with other(tmp_path, 60, 1) as process:
        files = [tmp_path / f"core{core}.busy" for core in os.sched_getaffinity(0)]
        eventually(lambda: all(file.exists() and taken(file) for file in files))
        with start_workers(0, tmp_path) as pool:
            tasks = [pool.submit(in_turn, os.getpid) for _ in files]
            try:
                time.sleep(0.2)
                assert not any(task.done() for task in tasks)
            finally:
                process.kill()
            assert [task.result(30) for task in tasks] == [os.getpid()] * len(files)


@pytest.mark.parametrize("turns", [None, Path("/proc/none")])
def test_without_a_folder_to_lock_in_there_are_no_turns(turns: Path | None) -> None:
    with start_workers(0, turns) as pool:
        assert pool.submit(in_turn, lambda: getattr(BOUND, "core", None)).result(10) is None


def test_a_thread_that_is_not_bound_takes_no_turns(tmp_path: Path) -> None:
    with start_workers(2, tmp_path) as pool:
        assert pool.submit(in_turn, lambda: getattr(BOUND, "core", None)).result(10) is None
    assert not list(tmp_path.glob("core*"))


@pytest.mark.usefixtures("core")
def test_locks_that_fail_later_cost_the_turns_and_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(37, "No locks available")

    with start_workers(0, tmp_path) as pool:
        assert pool.submit(in_turn, lambda: BOUND.core).result(10)
        monkeypatch.setattr(fcntl, "flock", fail)
        assert pool.submit(in_turn, lambda: BOUND.core).result(10) is None


@pytest.mark.usefixtures("core")
@pytest.mark.parametrize("error", [ValueError("of the task"), OSError("of the task")])
def test_a_task_that_fails_gives_the_core_back(tmp_path: Path, error: Exception) -> None:
    def fail() -> None:
        raise error

    with start_workers(0, tmp_path) as pool:
        assert pool.submit(in_turn, fail).exception(10) is error
        assert pool.submit(in_turn, lambda: BOUND.core).result(10)
    assert not any(taken(file) for file in tmp_path.iterdir())


def taken(file: Path) -> bool:
    with file.open() as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
