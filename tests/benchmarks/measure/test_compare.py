"""Two results side by side: what is a regression, and what is noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import BenchmarkError
from benchmarks.measure.compare import (
    Change,
    check_comparable,
    compare_results,
    draw_percentile,
    draw_ratio,
    regressed_models,
    show_changes,
)
from benchmarks.measure.schema import PERCENTILES, SaturationResult, Step
from tests.benchmarks.made_up import (
    MODELS,
    client_bound,
    make_result,
    scaled,
    slower,
    unanswered,
    with_model,
    with_step,
)

SEEDS = range(25)
PATH = Path("earlier.json")


def regressed(earlier: SaturationResult, result: SaturationResult) -> list[str]:
    changes = compare_results(earlier, result)
    models = regressed_models(changes)
    assert show_changes(earlier, result, changes).endswith(f": {', '.join(models) or 'nothing'}")
    return models


def changes_of(earlier: SaturationResult, result: SaturationResult) -> dict[str, Change]:
    """The first model's, by name without the counts."""
    return {change.name.partition(" (")[0]: change for change in compare_results(earlier, result)[0].changes}


@pytest.mark.parametrize("ceiling", [1.0, None])
def test_an_unchanged_server_is_not_called_worse(ceiling: float | None) -> None:
    for seed in SEEDS:
        assert not regressed(make_result(seed, 1, ceiling), make_result(seed + 100, 1, ceiling)), seed


def test_a_result_has_not_changed_against_itself() -> None:
    result = make_result()
    for model in compare_results(result, result):
        assert len(model.changes) == 1 + 4 * len(PERCENTILES)
        for change in model.changes:
            assert change.ratio == 1
            assert change.low < 1 < change.high


@pytest.mark.parametrize("ceiling", [1.0, None])
def test_a_server_that_is_a_fifth_slower_than_its_ceiling_allows_is_seen(ceiling: float | None) -> None:
    for seed in SEEDS:
        earlier, result = make_result(seed, 1, ceiling), make_result(seed + 100, 0.8, ceiling)
        assert regressed(earlier, result) == list(MODELS)
        for model in compare_results(earlier, result):
            assert model.normalised == (ceiling is not None)
            throughput, p50 = model.changes[:2]
            assert throughput.regressed, seed
            assert throughput.ratio == pytest.approx(0.8, rel=0.06)
            assert p50.ratio == pytest.approx(1.25, rel=0.15)


def test_a_server_half_as_fast_is_worse_in_every_figure_that_counts() -> None:
    changes = changes_of(make_result(), make_result(1, 0.5))
    assert all(change.worse for change in changes.values())
    assert {name for name, change in changes.items() if change.decides} == {
        "saturated pairs/s",
        *(f"{percentile} ms at {share} of saturation" for percentile in ("p50", "p95") for share in ("30%", "50%")),
    }


def test_a_machine_that_is_a_fifth_slower_with_its_ceiling_is_no_regression() -> None:
    for seed in SEEDS:
        assert not regressed(make_result(seed), make_result(seed + 100, 0.8, 0.8)), seed


def test_a_round_counts_against_its_own_ceiling() -> None:
    earlier, result = make_result(rounds=3), make_result(1, rounds=3)
    result = with_step(result, "rounds", 1, lambda step: scaled(step, 0.4))
    assert changes_of(earlier, result)["saturated pairs/s"].ratio == pytest.approx(0.8, rel=0.06)
    rounds = list(result.models[MODELS[0]].rounds)
    rounds[1] = replace(rounds[1], left_of_ceiling=0.4 * (rounds[1].left_of_ceiling or 0))  # it was the machine
    result = with_model(result, rounds=tuple(rounds))
    assert changes_of(earlier, result)["saturated pairs/s"].ratio == pytest.approx(1, rel=0.06)


def test_rounds_that_differ_make_the_throughput_uncertain() -> None:
    quiet, noisy, slow = make_result(rounds=3), make_result(1, rounds=3), make_result(2, 0.8, rounds=3)
    for place, factor in ((0, 1.15), (2, 0.85)):
        noisy = with_step(noisy, "rounds", place, lambda step, factor=factor: scaled(step, factor))
    from_quiet, from_noisy = (changes_of(earlier, slow)["saturated pairs/s"] for earlier in (quiet, noisy))
    assert from_quiet.worse
    assert not from_noisy.worse
    assert from_noisy.low < from_quiet.low < from_quiet.high < 0.9 < from_noisy.high
    one = changes_of(make_result(rounds=1), make_result(1, 0.5, rounds=1))["saturated pairs/s"]
    assert (one.worse, one.decides) == (True, False)


def test_a_round_without_an_answer_counts() -> None:
    result = with_step(make_result(1, rounds=3), "rounds", 0, lambda step: scaled(step, 0.0))
    assert changes_of(make_result(rounds=3), result)["saturated pairs/s"].ratio == pytest.approx(2 / 3, rel=0.06)


def test_a_ceiling_in_one_result_alone_is_not_used() -> None:
    earlier, result = make_result(0, 1, None), make_result(1, 1, 0.5)
    assert not regressed(earlier, result)
    changes = compare_results(earlier, result)
    assert "clickbert_onnx: not relative to a ceiling" in show_changes(earlier, result, changes)


def test_three_percent_are_noise_and_faster_is_no_regression() -> None:
    for speed in (0.97, 1.03, 1.25):
        found = [regressed(make_result(seed), make_result(seed + 100, speed)) for seed in SEEDS]
        assert sum(map(bool, found)) <= (speed < 1), speed  # ten figures decide: one may be off


def test_latency_alone_is_a_regression() -> None:
    earlier, result = make_result(), with_step(make_result(1), "open", 1, lambda step: slower(step, 1.4))
    assert regressed(earlier, result) == [MODELS[0]]
    worse = [name for name, change in changes_of(earlier, result).items() if change.worse]
    assert "p50 ms at 50% of saturation" in worse
    assert all("at 50%" in name for name in worse)


def test_near_saturation_latency_is_shown_and_does_not_decide() -> None:
    earlier, result = make_result(), with_step(make_result(1), "open", 3, lambda step: slower(step, 2))
    assert not regressed(earlier, result)
    assert str(changes_of(earlier, result)["p50 ms at 90% of saturation"]).endswith("worse, but too uncertain to count")


@pytest.mark.parametrize(("kept", "decides"), [(399, False), (401, True)])
def test_a_p99_of_few_requests_does_not_decide(kept: int, decides: bool) -> None:
    def cut(factor: float) -> Callable[[Step], Step]:
        return lambda step: replace(slower(step, factor), latencies_ms=(2 * slower(step, factor).latencies_ms)[:kept])

    earlier, result = with_step(make_result(), "open", 1, cut(1)), with_step(make_result(1), "open", 1, cut(2))
    p99 = changes_of(earlier, result)["p99 ms at 50% of saturation"]
    assert (p99.worse, p99.decides) == (True, decides)


def test_client_bound_steps_are_left_out_and_named() -> None:
    earlier, result = with_step(make_result(), "open", 0, client_bound), make_result(1)
    for part, place in (("open", 1), ("rounds", 2), ("closed", 0)):  # the last is compared with nothing
        result = with_step(result, part, place, client_bound)
    (change, _) = compare_results(earlier, result)
    assert not change.regressed
    assert [each.name for each in change.changes if "70%" not in each.name and "90%" not in each.name] == [
        "saturated pairs/s"
    ]
    assert change.notes == (
        "left out, client-bound in the earlier result: 18.0/s",
        "left out, client-bound: 4 users at saturation",
        "left out, client-bound: 30.0/s",
    )


def test_a_missing_model_is_a_regression_and_a_new_one_is_named() -> None:
    earlier, result = make_result(0, models=("old", "both")), make_result(1, models=("both", "new"))
    assert regressed(earlier, result) == ["old"]
    shown = show_changes(earlier, result, compare_results(earlier, result)).splitlines()
    assert "old: MISSING (the new result lacks it)" in shown
    assert shown.count("not in the earlier result: new") == 1


def test_a_model_without_figures_is_a_regression_unless_it_never_had_any() -> None:
    failed = with_model(make_result(1), rounds=(), open=(), failure="it answered nothing within 4 s")
    assert regressed(make_result(), failed) == [MODELS[0]]
    assert regressed(failed, make_result()) == []
    changes = compare_results(failed, make_result())
    assert changes[0].notes == ("left out, without earlier figures: it answered nothing within 4 s",)


def test_where_nothing_is_answered_any_more_is_a_regression() -> None:
    earlier, result = make_result(), with_step(make_result(1), "open", 3, unanswered)
    assert regressed(earlier, result) == [MODELS[0]]
    dead = changes_of(earlier, result)["at 90% of saturation"]
    assert math.isinf(dead.ratio)
    assert str(dead) == "at 90% of saturation: nothing was answered  WORSE"
    assert not regressed(result, earlier)


@pytest.mark.parametrize(("before", "after", "more"), [(0, 1, False), (0, 12, True), (12, 12, False), (12, 0, False)])
def test_more_failures_than_chance_explains_are_a_regression(before: int, after: int, more: bool) -> None:
    earlier, result = (
        with_step(made, "open", 0, lambda step, errors=errors: replace(step, errors=errors))
        for made, errors in ((make_result(), before), (make_result(1), after))
    )
    assert bool(regressed(earlier, result)) == more
    failures = [change for change in compare_results(earlier, result)[0].changes if change.name.startswith("failures")]
    assert len(failures) == (after > 0)
    for change in failures:
        assert change.name.startswith(f"failures at 30% of saturation ({after} of ")
        assert f"earlier {before} of " in change.name
        assert str(change).endswith("WORSE") == more


def test_more_failures_at_saturation_are_a_regression() -> None:
    result = make_result(1)
    for place in range(8):
        result = with_step(result, "rounds", place, lambda step: replace(step, errors=step.requests // 10))
    assert regressed(make_result(), result) == [MODELS[0]]
    assert changes_of(make_result(), result)["failures at saturation"].regressed


def test_steps_at_other_shares_are_named() -> None:
    result = make_result(1)
    steps = list(result.models[MODELS[0]].open)
    steps[2] = replace(steps[2], share=0.6)
    notes = compare_results(make_result(), with_model(result, open=tuple(steps)))[0].notes
    assert notes == ("left out, not in the new result: at 70% of saturation",)


def test_another_machine_is_stated_once_and_the_earlier_run_is_named() -> None:
    earlier, result = make_result(), make_result(1)
    machine = replace(earlier.environment.machine, cpu="Xeon", cores=8)
    earlier = replace(earlier, environment=replace(earlier.environment, machine=machine))
    lines = show_changes(earlier, result, compare_results(earlier, result)).splitlines()
    assert lines.count("another machine: AMD EPYC, 2 cores; earlier Xeon, 8 cores") == 1
    assert lines[0].startswith("compared with 2026-11-25T02:25:46+00:00 (commit 6b85c8b)")


def test_the_same_results_have_the_same_intervals() -> None:
    earlier, result = make_result(), make_result(1, 0.9)
    assert compare_results(earlier, result) == compare_results(earlier, result)


@pytest.mark.parametrize(
    ("name", "value"), [("data", "other.jsonl"), ("candidates", None), ("texts", "titles"), ("pairs", 871)]
)
def test_another_workload_is_an_error_that_names_it(name: str, value: object) -> None:
    workload = make_result().workload
    assert workload.sent
    other = (
        replace(workload, sent=replace(workload.sent, pairs=871))
        if name == "pairs"
        else replace(workload, **{name: value})
    )
    with pytest.raises(BenchmarkError, match=f"earlier.json is of another workload .{name} {value}, earlier .*--texts"):
        check_comparable(make_result(), other, PATH)


def test_the_same_file_in_another_folder_is_the_same_workload() -> None:
    elsewhere = replace(make_result(1, ceiling=None).workload, data="/somewhere/else/test.jsonl")
    check_comparable(make_result(), elsewhere, PATH)  # which has no count of its pairs


def test_a_result_without_figures_is_nothing_to_compare_with() -> None:
    result = make_result()
    lacking = [
        with_model(result, rounds=()),
        with_model(result, rounds=tuple(replace(one, left_of_ceiling=None) for one in result.models[MODELS[0]].rounds)),
    ]
    for place in range(8):
        result = with_step(result, "rounds", place, client_bound)
    for earlier in (*lacking, result):
        with pytest.raises(BenchmarkError, match=f"earlier.json has no figures of {MODELS[0]}; measure again"):
            check_comparable(earlier, earlier.workload, PATH)
    with pytest.raises(BenchmarkError, match="has no figures of any model"):
        check_comparable(make_result(models=()), result.workload, PATH)


def test_a_drawn_percentile_is_distributed_as_one_of_a_drawn_sample() -> None:
    chance = np.random.default_rng(3)
    latencies = np.sort(chance.lognormal(3, 1, 40))
    for percent in (50, 90, 99):
        found = draw_percentile(list(latencies), percent, chance)
        drawn = np.percentile(chance.choice(latencies, (20_000, 40)), percent, axis=1, method="inverted_cdf")
        assert found[0] == np.percentile(latencies, percent, method="inverted_cdf")
        for level in (0.1, 0.3, 0.5, 0.7, 0.9):
            at = np.quantile(drawn, level, method="inverted_cdf")
            assert (found[1:] <= at).mean() == pytest.approx((drawn <= at).mean(), abs=0.04)


def test_draws_of_few_rounds_vary_as_much_as_the_mean_of_such_rounds_does() -> None:
    chance = np.random.default_rng(5)
    spreads = [draw_ratio(chance.normal(100, 10, 4).tolist(), None, chance)[1:].var() for _ in range(400)]
    assert np.mean(spreads) == pytest.approx(10**2 / 4, rel=0.1)
