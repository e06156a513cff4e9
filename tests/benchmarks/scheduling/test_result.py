"""What is said of made-up phases: figures, limits, verdicts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from benchmarks.measure.recording import LARGEST, SMALL, Sample
from benchmarks.measure.schema import ServerInfo, Step, dump
from benchmarks.measure.stats import summarize, summarize_latency
from benchmarks.scheduling.result import Figure, Overload, SavedWork, SchedulingResult, in_time, judge, show
from tests.benchmarks.made_up import BUSY, make_result


def samples(size: str, *milliseconds: float, error: str | None = None) -> list[Sample]:
    """Requests of ten pairs that began at once."""
    return [Sample(0.0, 0.0, each / 1000, 10, error, size) for each in milliseconds]


def step(taken: Sequence[Sample], **load: float) -> Step:
    return summarize(taken, 0, 2, **load)


def made_up(**changes: object) -> SchedulingResult:
    """Alone 20 ms and 100 ms, at a share 80 and 200 ms at the most, 10 requests/s at saturation, all in time."""
    alone = [*samples(SMALL, 10, 20, 30), *samples(LARGEST, 90, 100, 110)]
    shared = [*samples(SMALL, *[80] * 9), *samples(LARGEST, *[200] * 9)]
    refusals = [*samples(SMALL, 2, 4, error="ServerOverloadedError"), *samples(SMALL, 900)]
    overload = Overload(step(refusals, rate=50.0), 9.5, 95.0, summarize_latency([0.002, 0.004]), 400.0, (500.0,) * 8)
    result = SchedulingResult(
        model="clickbert_onnx",
        server=ServerInfo("triton", "2.51.0", "127.0.0.1:1", True),
        environment=make_result().environment,
        alone=step(alone, users=1),
        saturated=step(samples(SMALL, *range(100, 1100, 50)), users=8),
        shared=step(shared, rate=7.0),
        given_up=step(samples(SMALL, 100), users=8),
        saved=SavedWork(calls=3, tokens=900, left=500.0, dropped=450.0),
        overload=overload,
    )
    return replace(result, **changes)


def figure(result: SchedulingResult, name: str) -> Figure:
    (found,) = [each for each in judge(result) if each.name.startswith(name)]
    return found


def test_each_figure_is_held_against_its_limit() -> None:
    found = [(each.name, each.show(each.value), each.shown_limit, each.verdict) for each in judge(made_up())]
    assert found == [
        ("smaller half: p99 at 70% of saturation by p50 alone", "4.00 times", "at most 5.00 times", "holds"),
        ("largest 5%: p99 at 70% of saturation by p99 alone", "1.82 times", "at most 3.00 times", "holds"),
        ("all: p99 at 70% of saturation", "200 ms", "-", "-"),
        ("requests in time at 5 times saturation, of it", "95%", "at least 90%", "holds"),
        ("pairs in time at 5 times saturation, of it", "95%", "at least 90%", "holds"),
        ("refusals: p99 at 5 times saturation", "4 ms", "at most 20 ms", "holds"),
        ("memory at 5 times saturation: last quarter by first", "1.00 times", "at most 1.05 times", "holds"),
        ("work saved of calls given up, of what was left", "90%", "at least 80%", "holds"),
    ]


def test_what_is_beyond_its_limit_does_not_hold() -> None:
    good = made_up()
    late = [*samples(SMALL, *[101] * 9), *samples(LARGEST, *[331] * 9)]
    overload = replace(
        good.overload,
        requests_in_time=8.9,
        pairs_in_time=89.0,
        refusals=summarize_latency([0.021]),
        memory=(500.0, 510.0, 520.0, 530.0),
    )
    bad = replace(good, shared=step(late, rate=7.0), overload=overload, saved=SavedWork(3, 900, 500.0, 399.0))
    assert [each.verdict for each in judge(bad)] == [*["does not hold"] * 2, "-", *["does not hold"] * 5]


def test_figures_of_the_sender_are_none_of_the_server() -> None:
    good = made_up()
    bound = replace(good, shared=replace(good.shared, client_bound=BUSY))
    assert figure(bound, "smaller half").verdict == figure(bound, "largest").verdict == "client-bound"
    assert figure(bound, "requests in time").verdict == "holds"
    bound = replace(good, saturated=replace(good.saturated, client_bound=BUSY))
    assert figure(bound, "requests in time").verdict == figure(bound, "pairs in time").verdict == "client-bound"
    assert figure(bound, "refusals").verdict == "holds"


def test_what_is_not_known_is_no_verdict() -> None:
    good = made_up()
    overload = replace(good.overload, refusals=None, memory_before=None, memory=())
    elsewhere = made_up(saved=None, overload=overload, shared=step(samples(SMALL, 80), rate=7.0))
    unknown = [each.name.split()[0] for each in judge(elsewhere) if each.verdict == "not known"]
    assert unknown == ["largest", "refusals:", "memory", "work"]
    assert "holds" in show(elsewhere)
    assert figure(made_up(saved=SavedWork(0, 0, 0.0, 0.0)), "work").verdict == "not known"


def test_an_answer_counts_within_its_deadline_and_before_the_end() -> None:
    taken = [
        *samples(SMALL, 10, 999, 1000),
        *samples(SMALL, 1001),  # too late for its caller
        *samples(SMALL, 5, error="ServerOverloadedError"),
        Sample(1.9, 0.0, 0.2, 10, None, SMALL),  # in time, but the load had ended
        Sample(1.9, 0.0, 0.05, 10, None, SMALL),
    ]
    assert in_time(taken, 2) == (4 / 2, 40 / 2)
    assert in_time([], 2) == (0, 0)


def test_memory_is_compared_by_quarters() -> None:
    growing = replace(made_up().overload, memory=(100.0, 100.0, 300.0, 100.0, 500.0, 500.0, 150.0, 250.0))
    assert growing.memory_growth == 2.0  # one high second is no growth
    assert replace(growing, memory=(100.0,)).memory_growth == 1.0
    assert replace(growing, memory=()).memory_growth is None


def test_the_screen_shows_every_phase_and_every_figure() -> None:
    result = made_up()
    text = show(result)
    for name in ("each request alone", "saturation", "open loop at 70% of it", "some given up", "at 5 times it"):
        assert name in text
    for each in judge(result):
        assert each.name in text
    assert "(80 ms by 20 ms)" in text
    assert "2 x ServerOverloadedError" in text
    assert "(400 MB before, 500 to 500 MB)" in text
    assert json.loads(dump(result))["saved"]["left"] == pytest.approx(500)
