"""`python -m benchmarks capacity`: once for real, on two tiny replicas and Envoy; and how predictions are judged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from benchmarks import BenchmarkError
from benchmarks.capacity import plan
from benchmarks.capacity.check import LIMIT, Comparison, Schedule, compare
from benchmarks.capacity.model import Curve
from benchmarks.capacity.plan import Node
from benchmarks.capacity.replicas import halves, kept_busy, on_cores
from benchmarks.measure.schema import ModelResult, read_result
from tests.benchmarks.conftest import LIMITS, MODEL, TIMING, command
from tests.benchmarks.made_up import MODELS, RATE, make_result
from tests.gateways import needs_envoy
from tests.waiting import eventually

CAPACITY = RATE / 2  # of each of two replicas
FLAT = Curve(99, base_ms=40.0, slope_ms=0.0, lowest=0.3, highest=0.9, miss=0.0)
SCHEDULE = Schedule(repeats=1, saturated_seconds=2, shares=((0.3, 3), (0.5, 3), (0.7, 3)))


def together() -> ModelResult:
    """What two replicas did, together as fast as the made-up server."""
    return make_result(ceiling=None).models[MODELS[0]]


def test_capacity_and_the_p99_of_the_planned_load_are_judged_and_the_rest_is_shown() -> None:
    found = compare(Node(CAPACITY, {"p50": FLAT, "p99": FLAT}), together(), planned=0.7)
    assert [each.figure for each in found[:3]] == ["requests/s at saturation", "p50 in ms at 30%", "p99 in ms at 30%"]
    assert [each.figure for each in found if each.limit] == ["requests/s at saturation", "p99 in ms at 70%"]
    assert found[0].predicted == RATE
    assert found[0].holds
    p99 = next(each for each in found if each.figure == "p99 in ms at 70%")
    latency = next(each.step.latency for each in together().open if each.share == 0.7)
    assert latency
    assert (p99.predicted, p99.measured) == (40.0, pytest.approx(latency["p99"], abs=0.1))


def test_a_prediction_is_too_far_off_beyond_the_limit() -> None:
    assert Comparison("it", 114.0, 100.0, LIMIT).holds
    assert not Comparison("it", 116.0, 100.0, LIMIT).holds
    assert not Comparison("it", 84.0, 100.0, LIMIT).holds
    assert Comparison("it", 300.0, 100.0, None).holds


def test_without_a_p99_to_judge_there_is_no_verdict() -> None:
    with pytest.raises(BenchmarkError, match="there is no p99 at 70% to judge"):
        compare(Node(CAPACITY, {"p50": FLAT}), together(), planned=0.7)
    nothing = replace(together(), open=())
    with pytest.raises(BenchmarkError, match="there is no p99 at 70% to judge"):
        compare(Node(CAPACITY, {"p99": FLAT}), nothing, planned=0.7)


def test_each_replica_has_as_many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 1, 3, 5, 9})
    assert halves() == [[1, 3], [5, 7]]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    with pytest.raises(BenchmarkError, match="two replicas need two cores"):
        halves()


def test_what_is_started_on_a_core_stays_there() -> None:
    before = os.sched_getaffinity(0)
    core = min(before)
    with on_cores([core]):
        words = [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"]
        assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == f"{{{core}}}\n"
    assert os.sched_getaffinity(0) == before


def test_cores_are_kept_busy_by_what_gives_way_to_everything_else() -> None:
    (core, *_) = os.sched_getaffinity(0)
    with kept_busy([core]) as (spinning,):
        assert os.sched_getscheduler(spinning) == os.SCHED_IDLE
        assert os.sched_getaffinity(spinning) == {core}
        before = psutil.Process(spinning).cpu_times().user
        eventually(lambda: psutil.Process(spinning).cpu_times().user > before)
    assert not Path(f"/proc/{spinning}").exists()


def test_a_core_that_is_not_kept_busy_is_no_measurement() -> None:
    (core, *_) = os.sched_getaffinity(0)
    with pytest.raises(BenchmarkError, match=f"core {core} was not kept busy"), kept_busy([core]) as (spinning,):
        os.kill(spinning, signal.SIGKILL)
        eventually(lambda: psutil.Process(spinning).status() == psutil.STATUS_ZOMBIE)
    with pytest.raises(BenchmarkError, match="core 9999 cannot be kept busy"), kept_busy([9999]):
        pass


@pytest.mark.deploy
@needs_envoy
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two replicas need two cores")
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the gateway's certificate")
def test_one_command_measures_and_judges(
    published_repository: Path, published_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "BEYOND", 0.0)  # of however few requests a busy machine answers in these seconds
    given = ("--repository", published_repository, "--data", published_log, "--model", MODEL, "--results", tmp_path)
    ended = command("capacity", *given, schedule=SCHEDULE, timing=TIMING, limits=LIMITS)
    assert ended.out, ended.err
    found = json.loads(ended.out.splitlines()[-1])
    judged = [each for each in found["comparisons"] if each["limit"]]
    assert [each["figure"] for each in judged] == ["requests/s at saturation", "p99 in ms at 70%"]
    held = all(abs(each["predicted"] / each["measured"] - 1) <= LIMIT for each in judged)
    assert ended.code == (0 if held else 1)  # how near it is, seconds on a busy machine do not say
    first, second = found["cores"]
    assert first
    assert len(first) == len(second)
    assert not set(first) & set(second)

    curve = read_result(Path(found["curve"])).models[MODEL]
    assert len(curve.rounds) == 2
    assert [each.share for each in curve.open] == [0.3, 0.3, 0.5, 0.5, 0.7, 0.7]
    assert not sum(each.step.errors for each in curve.open)
    assert sum(each["step"]["requests"] for each in found["open"]) > 0
    planned = command("plan", "--results", found["curve"], "--rate", 10, "--slo", "p99=100000ms")
    assert planned.code == 0, planned.err
