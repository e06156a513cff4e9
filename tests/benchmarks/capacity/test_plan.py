"""`python -m benchmarks plan`: on results that are made up, of one replica whose curve is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import BenchmarkError
from benchmarks.capacity.model import Curve, wait
from benchmarks.capacity.plan import Node, forecast, replicas_needed
from benchmarks.measure.schema import Latency, OpenStep, SaturationResult, Slo, SloResult, Step, write
from tests.benchmarks.conftest import Ended, command
from tests.benchmarks.made_up import MODELS, client_bound, make_result, unanswered, with_model

BASE, SLOPE = 20.0, 10.0  # ms, of p99
LOADS = (0.3, 0.5, 0.7, 0.9)


def latency_at(step: Step, load: float, capacity: float) -> Step:
    """A step of 1000 requests whose percentiles rise as the model says, to the digit."""
    values = {"p50": BASE / 4 + SLOPE / 4 * wait(load, 1, 50), "p95": BASE / 2 + SLOPE / 2 * wait(load, 1, 95)}
    values["p99"] = BASE + SLOPE * wait(load, 1, 99)
    return replace(step, rate=load * capacity, requests=1000, latency=Latency(values, 1.0, 1.0))


def known(models: tuple[str, ...] = MODELS[:1]) -> SaturationResult:
    """A result of one replica whose p99 is BASE + SLOPE * wait."""
    result = make_result(models=models)
    for model, found in result.models.items():
        assert found.saturated
        capacity = found.saturated.requests_per_second
        steps = [OpenStep(load, latency_at(found.open[0].step, load, capacity)) for load in LOADS]
        result = with_model(result, model, open=tuple(steps))
    return result


def capacity_of(result: SaturationResult) -> float:
    saturated = result.models[MODELS[0]].saturated
    assert saturated
    return saturated.requests_per_second


def plan(folder: Path, result: SaturationResult, *others: object) -> Ended:
    write(folder / "result.json", result)
    return command("plan", "--results", folder / "result.json", *others)


def document(ended: Ended) -> dict[str, Any]:
    assert ended.code == 0, ended.err
    found = json.loads(ended.out.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def test_the_plan_meets_the_objective_and_one_replica_fewer_does_not(tmp_path: Path) -> None:
    result = known()
    capacity, limit = capacity_of(result), 100
    ended = plan(tmp_path, result, "--rate", 2000, "--slo", f"p99={limit}ms")
    found = document(ended)
    needed = found["needed"]

    def p99(replicas: int) -> float:
        return BASE + SLOPE * wait(2000 / replicas / capacity, replicas, 99)

    assert p99(needed) <= limit * (1 + 1e-6)
    assert 2000 / (needed - 1) / capacity > 0.9 or p99(needed - 1) > limit
    assert (found["replicas"], found["spare"]) == (needed + 1, 1)
    assert found["spare_down"]["latency_ms"]["p99"] == pytest.approx(p99(needed), rel=1e-4)
    assert found["all_up"]["latency_ms"]["p99"] == pytest.approx(p99(needed + 1), rel=1e-4)
    assert found["all_up"]["utilisation"] == pytest.approx(2000 / (needed + 1) / capacity)
    assert found["spare_down"]["breaks_at"] >= 2000
    assert found["measured"]["machine"]["cpu"] == "AMD EPYC"
    assert ended.out.startswith(f"{needed + 1} replicas for 2000 requests/s with p99=100ms: {needed} needed, 1 spare\n")
    assert "measured from 30% to 90% of that" in ended.out
    assert "AMD EPYC, 2 cores" in ended.out
    assert "data/sample/test.jsonl" in ended.out


def test_the_rate_at_which_the_objective_breaks_meets_it_and_a_higher_one_does_not(tmp_path: Path) -> None:
    result, limit = known(), 120
    capacity = capacity_of(result)
    found = document(plan(tmp_path, result, "--rate", 100, "--slo", f"p99={limit}ms", "--spare", 0))
    replicas, rate = found["replicas"], found["all_up"]["breaks_at"]
    assert found["all_up"]["break_measured"]
    assert found["all_up"] == found["spare_down"]
    assert BASE + SLOPE * wait(rate / replicas / capacity, replicas, 99) == pytest.approx(limit, rel=1e-3)


def test_no_load_above_the_measured_ones_is_planned_for(tmp_path: Path) -> None:
    result = known()
    capacity = capacity_of(result)
    found = document(plan(tmp_path, result, "--rate", 100 * capacity, "--slo", "p50=100000ms", "--spare", 0))
    assert found["needed"] == 112  # 100 / 0.9
    assert not found["all_up"]["break_measured"]
    assert found["all_up"]["breaks_at"] == pytest.approx(112 * 0.9 * capacity)


def test_what_is_above_the_curve_is_added(tmp_path: Path) -> None:
    result = known()
    exact = document(plan(tmp_path, result, "--rate", 2000, "--slo", "p99=100ms"))
    assert exact["curve"]["miss"] == pytest.approx(0, abs=1e-6)
    steps = list(result.models[MODELS[0]].open)
    latency = steps[2].step.latency
    assert latency
    slow = {name: 1.5 * value for name, value in latency.percentiles.items()}
    steps[2] = replace(steps[2], step=replace(steps[2].step, latency=replace(latency, percentiles=slow)))
    scattered = document(plan(tmp_path, with_model(result, open=tuple(steps)), "--rate", 2000, "--slo", "p99=100ms"))
    assert scattered["curve"]["miss"] > 0.1
    assert scattered["needed"] > exact["needed"]


def test_the_steps_of_a_search_count_too_and_those_without_figures_do_not(tmp_path: Path) -> None:
    result = known()
    found = result.models[MODELS[0]]
    steps = tuple(each.step for each in found.open)
    search = SloResult(Slo("p99", 50.0), 10.0, steps)
    two = (found.open[0], replace(found.open[1], step=client_bound(steps[1])))
    two = (*two, replace(found.open[2], step=unanswered(steps[2])))
    few = plan(tmp_path, with_model(result, open=two), "--rate", 10, "--slo", "p99=100ms")
    assert few.code == 1
    assert "too few requests for p99 at 3 loads; measure more of them with `python -m benchmarks saturate" in few.err
    assert document(plan(tmp_path, with_model(result, open=two, slo=search), "--rate", 10, "--slo", "p99=100ms"))


def test_of_several_models_one_must_be_chosen(tmp_path: Path) -> None:
    result, wanted = known(MODELS), ("--rate", 10, "--slo", "p99=100ms")
    assert f"has {MODELS[0]}, {MODELS[1]}; choose one with --model" in plan(tmp_path, result, *wanted).err
    assert document(plan(tmp_path, result, *wanted, "--model", MODELS[1]))["model"] == MODELS[1]
    other = plan(tmp_path, result, *wanted, "--model", "other")
    assert other.code == 1
    assert f"has no other, only {MODELS[0]}, {MODELS[1]}" in other.err


def test_what_cannot_be_planned_is_an_error(tmp_path: Path) -> None:
    result = known()
    never = plan(tmp_path, result, "--rate", 10, "--slo", "p99=20ms")
    assert never.code == 1
    assert "no number of replicas meets p99=20ms: at the lowest measured load, 30%, one has p99 = " in never.err
    for spoilt, message in (
        (replace(result, schema=3), "has schema 3, this release reads 4"),
        (replace(result, complete=False), "is incomplete"),
        (with_model(result, rounds=()), "was not brought to saturation"),
    ):
        ended = plan(tmp_path, spoilt, "--rate", 10, "--slo", "p99=100ms")
        assert (ended.code, ended.out) == (1, "")
        assert message in ended.err
    missing = command("plan", "--rate", 10, "--slo", "p99=1ms", "--results", tmp_path / "none.json")
    assert missing.code == 1
    assert "none.json cannot be read" in missing.err


@pytest.mark.parametrize("wrong", [("--rate", "0"), ("--rate", "nan"), ("--slo", "p99=50"), ("--spare", "-1")])
def test_wrong_words_end_with_2(wrong: tuple[str, str]) -> None:
    words = {"--rate": "10", "--slo": "p99=50ms", "--results": "it.json"} | dict([wrong])
    with pytest.raises(SystemExit) as stopped:
        command("plan", *(part for pair in words.items() for part in pair))
    assert stopped.value.code == 2


curves = st.builds(
    Curve,
    percentile=st.sampled_from((50, 95, 99)),
    base_ms=st.floats(1, 100),
    slope_ms=st.floats(0, 100),
    lowest=st.floats(0.05, 0.5),
    highest=st.floats(0.5, 0.92),
    miss=st.floats(0, 0.5),
)


def needed(curve: Curve, rate: float, limit: float) -> float:
    """How many; infinitely many if no number is enough."""
    try:
        return replicas_needed(Node(25.0, {"p99": curve}), rate, Slo("p99", limit))
    except BenchmarkError:
        return float("inf")


@given(curves, st.floats(0.1, 1e5), st.floats(0.1, 1e5), st.floats(1, 2000), st.floats(1, 2000))
def test_neither_more_rate_nor_a_tighter_objective_takes_fewer(
    curve: Curve, one: float, other: float, limit: float, tighter: float
) -> None:
    assert needed(curve, max(one, other), limit) >= needed(curve, min(one, other), limit)
    assert needed(curve, one, min(limit, tighter)) >= needed(curve, one, max(limit, tighter))


@given(curves, st.floats(0.1, 1e5), st.floats(1, 2000))
def test_the_rate_that_was_planned_for_does_not_break_the_objective(curve: Curve, rate: float, limit: float) -> None:
    count = needed(curve, rate, limit)
    if count < float("inf"):
        found = forecast(Node(25.0, {"p99": curve}), rate, int(count), Slo("p99", limit))
        assert found.breaks_at >= rate * (1 - 1e-6)
        assert found.utilisation <= curve.highest * (1 + 1e-9)
        assert found.latency_ms, "the highest load is one that was measured"
