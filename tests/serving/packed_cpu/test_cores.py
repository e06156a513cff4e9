"""The stand-in's threads: as many as there are cores to use, and running before the first request."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from serving.backends.packed_cpu import cores
from serving.backends.packed_cpu.cores import cpu_limit, start_workers


@pytest.fixture(autouse=True)
def unlimited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the tests' own control groups are; none limits anything yet."""
    monkeypatch.setattr(cores, "GROUPS", tmp_path)
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
    monkeypatch.setattr(cores, "cpu_limit", lambda *_: 0.5)
    assert cores_of(1, 0) == [os.sched_getaffinity(0)]
    assert cores.usable_cores() == 1
    monkeypatch.setattr(cores, "cpu_limit", lambda *_: 1000.0)
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
