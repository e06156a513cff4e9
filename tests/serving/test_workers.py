"""The stand-in's threads: as many as there are cores to use, and running before the first request."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from serving.backends.onnxruntime import workers
from serving.backends.onnxruntime.workers import BOUND, cpu_limit, in_turn, start_workers

# Another process on the same cores: it says when a task of its own begins and ends, so many on every core.
OTHER = """
import os, sys, time
from pathlib import Path
from serving.backends.onnxruntime.workers import in_turn, start_workers

def task():
    core, = os.sched_getaffinity(0)
    began = time.monotonic()
    time.sleep(float(sys.argv[2]))
    print(f"{core} {began} {time.monotonic()}\\n", end="", flush=True)  # in one piece: two threads write

pool = start_workers(0, Path(sys.argv[1]))
for _ in range(int(sys.argv[3]) * len(os.sched_getaffinity(0))):
    pool.submit(in_turn, task)
"""
Spans = list[tuple[int, float, float]]


@pytest.fixture(autouse=True)
def unlimited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the tests' own control groups are; none limits anything yet."""
    monkeypatch.setattr(workers, "GROUPS", tmp_path)
    return tmp_path


def cores_of(count: int, threads: int) -> list[set[int]]:
    """What cores each thread may use, of a pool that must have so many threads before anything is asked of it."""
    others = set(threading.enumerate())
    with start_workers(threads) as pool:
        assert len(set(threading.enumerate()) - others) == count
        barrier = threading.Barrier(count)

        def allowed() -> set[int]:
            barrier.wait(10)
            return os.sched_getaffinity(0)

        return [each.result() for each in [pool.submit(allowed) for _ in range(count)]]


def test_one_thread_for_each_core_bound_to_it() -> None:
    cores = os.sched_getaffinity(0)
    found = cores_of(len(cores), 0)
    assert sorted(map(sorted, found)) == [[core] for core in sorted(cores)]
    assert os.sched_getaffinity(0) == cores


def test_a_given_number_is_not_bound() -> None:
    assert cores_of(3, 3) == [os.sched_getaffinity(0)] * 3


def test_a_share_of_the_cores_has_as_many_threads_not_bound(unlimited: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "cpu_limit", lambda *_: 0.5)
    assert cores_of(1, 0) == [os.sched_getaffinity(0)]
    assert workers.usable_cores() == 1
    monkeypatch.setattr(workers, "cpu_limit", lambda *_: 1000.0)
    assert all(len(cores) == 1 for cores in cores_of(len(os.sched_getaffinity(0)), 0))


def test_threads_that_cannot_be_started_are_an_error_and_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    others = set(threading.enumerate())
    start = threading.Thread.start

    def third_fails(thread: threading.Thread) -> None:
        if len(set(threading.enumerate()) - others) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", third_fails)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        start_workers(5)
    for thread in set(threading.enumerate()) - others:
        thread.join(10)
    assert not set(threading.enumerate()) - others


@pytest.mark.parametrize(
    ("group", "limits", "expected"),
    [
        ("0::/", {"": "200000 100000"}, 2.0),
        ("0::/", {"": "max 100000"}, None),
        ("0::/", {}, None),
        ("0::/pods/pod/container", {"pods/pod": "150000 100000", "pods/pod/container": "max 100000"}, 1.5),
        ("0::/pods/pod/container", {"pods": "400000 100000", "pods/pod/container": "50000 100000"}, 0.5),
        ("0::/pods/pod", {"pods/other": "50000 100000"}, None),
        ("4:memory:/a\n1:cpu:/a", {"": "50000 100000"}, None),  # version 1
        ("0::/../above", {"": "100000 100000"}, 1.0),  # seen from a container that shares the namespace
        ("0::/", {"": "what is this"}, None),
    ],
)
def test_the_least_limit_of_the_group_and_those_above_it(
    unlimited: Path, tmp_path_factory: pytest.TempPathFactory, group: str, limits: dict, expected: float | None
) -> None:
    for name, limit in limits.items():
        (unlimited / name).mkdir(parents=True, exist_ok=True)
        (unlimited / name / "cpu.max").write_text(f"{limit}\n")
    membership = tmp_path_factory.mktemp("proc") / "cgroup"
    membership.write_text(f"{group}\n")
    assert cpu_limit(unlimited, membership) == expected


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert cpu_limit(tmp_path / "none", tmp_path / "neither") is None


def other(folder: Path, seconds: float, tasks: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", OTHER, str(folder), str(seconds), str(tasks)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def in_turns(folder: Path, tasks: int, meanwhile: Callable[[], object] = lambda: None) -> Spans:
    """When so many tasks for each core, of this process, began and ended."""

    def task() -> tuple[int, float, float]:
        (core,) = os.sched_getaffinity(0)
        began = time.monotonic()
        time.sleep(0.02)
        return core, began, time.monotonic()

    with start_workers(0, folder) as pool:
        futures = [pool.submit(in_turn, task) for _ in range(tasks * len(os.sched_getaffinity(0)))]
        meanwhile()
        return [future.result(60) for future in futures]


def test_a_core_is_one_threads_at_a_time_and_goes_to_whoever_waits(tmp_path: Path) -> None:
    with other(tmp_path, 0.02, 40) as process:
        assert process.stdout
        first = process.stdout.readline()
        mine = in_turns(tmp_path, 5)
        theirs: Spans = []
        for line in [first, *process.stdout.readlines()]:
            core, began, ended = line.split()
            theirs.append((int(core), float(began), float(ended)))
    assert process.returncode == 0
    assert len(theirs) == 40 * len(os.sched_getaffinity(0))
    for core in os.sched_getaffinity(0):
        both = [*((*span, "mine") for span in mine), *((*span, "theirs") for span in theirs)]
        spans = sorted(span[1:] for span in both if span[0] == core)
        assert all(before[1] <= after[0] for before, after in pairwise(spans))
        # Nobody has two turns while the other waits: between this process's first and last there is one of theirs each.
        owners = [owner for *_, owner in spans]
        places = [place for place, owner in enumerate(owners) if owner == "mine"]
        between = owners[places[0] : places[-1] + 1]
        assert between.count("theirs") >= len(places) - 2
        assert between.count("theirs") <= len(places) + 2
        assert owners[-1] == "theirs", "the other process had ended before"


def test_a_killed_process_leaves_the_core_to_the_others(tmp_path: Path) -> None:
    with other(tmp_path, 600, 1) as process:
        core = tmp_path / f"core{min(os.sched_getaffinity(0))}.busy"
        until(lambda: core.exists() and taken(core))
        spans = in_turns(tmp_path, 1, lambda: process.send_signal(signal.SIGKILL))
    assert len(spans) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("turns", [None, Path("/proc/none")])
def test_without_a_folder_to_lock_in_there_are_no_turns(turns: Path | None) -> None:
    with start_workers(0, turns) as pool:
        assert pool.submit(in_turn, lambda: getattr(BOUND, "core", None)).result(10) is None


def test_a_thread_that_is_not_bound_takes_no_turns(tmp_path: Path) -> None:
    with start_workers(2, tmp_path) as pool:
        assert pool.submit(in_turn, lambda: getattr(BOUND, "core", None)).result(10) is None
    assert not list(tmp_path.glob("core*"))


def test_a_task_that_fails_gives_the_core_back(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("of the task")

    with start_workers(0, tmp_path) as pool:
        failed = [pool.submit(in_turn, fail) for _ in range(4)]
        assert {str(each.exception(10)) for each in failed} == {"of the task"}
    assert not any(taken(file) for file in tmp_path.iterdir())


def taken(file: Path) -> bool:
    with file.open() as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)
