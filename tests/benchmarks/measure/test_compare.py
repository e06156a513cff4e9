"""Two climbs side by side, on made-up results: what is a regression, and what is noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.load_gen.target import LoadError
from benchmarks.measure.compare import (
    PERCENTILES,
    Comparison,
    check_workload,
    compare,
    percentiles,
    verdicts,
)
from tests.benchmarks.report.test_page import limit, make_result

SEEDS = range(25)


def regressed(comparisons: list[Comparison]) -> bool:
    lines, worse = verdicts(comparisons)
    assert worse == (not lines[-1].endswith("nothing"))
    return worse


@pytest.mark.parametrize("ceiling", [1.0, None])
def test_equal_servers_do_not_differ(ceiling: float | None) -> None:
    for seed in SEEDS:
        assert not regressed(compare(make_result(seed, 1, ceiling), make_result(seed + 100, 1, ceiling))), seed


def test_a_result_beside_itself_is_no_change() -> None:
    result = make_result()
    for comparison in compare(result, result):
        assert len(comparison.ratios) == 1 + 4 * len(PERCENTILES)
        for ratio in comparison.ratios:
            assert ratio.ratio == 1
            assert ratio.low < 1 < ratio.high


@pytest.mark.parametrize("ceiling", [1.0, None])
def test_a_server_that_is_a_fifth_slower_than_its_ceiling_allows_is_seen(ceiling: float | None) -> None:
    for seed in SEEDS:
        comparisons = compare(make_result(seed, 1, ceiling), make_result(seed + 100, 0.8, ceiling))
        assert regressed(comparisons)
        for comparison in comparisons:
            assert comparison.normalised == (ceiling is not None)
            throughput, p50 = comparison.ratios[:2]
            assert throughput.worse, seed
            assert throughput.ratio == pytest.approx(0.8, rel=0.06)
            assert p50.ratio == pytest.approx(1.25, rel=0.15)
            assert any(ratio.worse for ratio in comparison.ratios[1:]), seed


def test_a_machine_that_is_a_fifth_slower_with_its_ceiling_is_no_regression() -> None:
    for seed in SEEDS:
        assert not regressed(compare(make_result(seed), make_result(seed + 100, 0.8, 0.8))), seed


def slow_down(step: dict[str, Any], factor: float) -> None:
    """A round in which the machine, or the server, was so many times as fast."""
    step["pairs_per_s"] *= factor


def test_a_round_counts_beside_its_own_ceiling() -> None:
    former, result = make_result(), make_result(1)
    step = result["models"]["clickbert_onnx"]["rounds"][1]
    slow_down(step, 0.4)
    assert compare(former, result)[0].ratios[0].ratio == pytest.approx(0.8, rel=0.06)
    step["left_of_ceiling"] *= 0.4  # it was the machine
    assert compare(former, result)[0].ratios[0].ratio == pytest.approx(1, rel=0.06)


def test_rounds_that_differ_make_the_throughput_uncertain() -> None:
    quiet, noisy, slower = make_result(), make_result(1), make_result(2, 0.8)
    for step, factor in zip(noisy["models"]["clickbert_onnx"]["rounds"], (1.15, 1.0, 0.85), strict=True):
        slow_down(step, factor)
    from_quiet, from_noisy = (compare(former, slower)[0].ratios[0] for former in (quiet, noisy))
    assert from_quiet.worse
    assert not from_noisy.worse
    assert from_noisy.low < from_quiet.low < from_quiet.high < 0.9 < from_noisy.high
    for result in (noisy, slower):
        del result["models"]["clickbert_onnx"]["rounds"][1:]
    one = compare(noisy, slower)[0].ratios[0]
    assert (one.low, one.high, one.decides) == (0, float("inf"), False)


def test_a_round_without_an_answer_counts() -> None:
    former, result = make_result(), make_result(1)
    slow_down(result["models"]["clickbert_onnx"]["rounds"][0], 0.0)
    assert compare(former, result)[0].ratios[0].ratio == pytest.approx(2 / 3, rel=0.06)


def test_a_ceiling_in_one_result_alone_is_not_used() -> None:
    comparisons = compare(make_result(0, 1, None), make_result(1, 1, 0.5))
    assert not regressed(comparisons)
    assert "clickbert_onnx: not relative to a ceiling" in verdicts(comparisons)[0]


def test_three_percent_are_noise_and_faster_is_no_regression() -> None:
    for speed in (0.97, 1.03, 1.25):
        found = [regressed(compare(make_result(seed), make_result(seed + 100, speed))) for seed in SEEDS]
        assert sum(found) <= (speed < 1), speed  # ten figures decide: one may be off by chance, so near the margin


def test_latency_alone_is_a_regression() -> None:
    former, result = make_result(), make_result(1)
    step = result["models"]["clickbert_onnx"]["open"][1]
    step["latencies_ms"] = [1.4 * each for each in step["latencies_ms"]]
    comparisons = compare(former, result)
    assert [comparison.regressed for comparison in comparisons] == [True, False]
    worse = [ratio.name for ratio in comparisons[0].ratios if ratio.worse]
    assert "p50 ms at 50% of saturation" in worse
    assert all("at 50%" in name for name in worse)
    assert verdicts(comparisons)[0][-1] == "regressed (worse by more than 10%, failing or missing): clickbert_onnx"


def test_near_saturation_latency_is_shown_and_does_not_decide() -> None:
    former, result = make_result(), make_result(1)
    step = result["models"]["clickbert_onnx"]["open"][3]
    step["latencies_ms"] = [2 * each for each in step["latencies_ms"]]
    comparisons = compare(former, result)
    assert not regressed(comparisons)
    assert any("p50 ms at 90%" in line and "too uncertain" in line for line in verdicts(comparisons)[0])


def test_a_p99_of_few_requests_does_not_decide() -> None:
    for kept, decides in ((399, False), (401, True)):
        former, result = make_result(), make_result(1)
        for each, factor in ((former, 1), (result, 2)):
            step = each["models"]["clickbert_onnx"]["open"][1]
            step["latencies_ms"] = [factor * latency for latency in (2 * step["latencies_ms"])[:kept]]
        ratio = next(each for each in compare(former, result)[0].ratios if each.name == "p99 ms at 50% of saturation")
        assert ratio.worse
        assert ratio.decides == decides


def test_steps_whose_generator_was_the_limit_are_left_out_and_named() -> None:
    former, result = make_result(), make_result(1)
    limit(former["models"]["clickbert_onnx"]["open"][0])
    limit(result["models"]["clickbert_onnx"]["open"][1])
    limit(result["models"]["clickbert_onnx"]["rounds"][2])
    limit(result["models"]["clickbert_onnx"]["closed"][0])  # which is compared with nothing
    comparison = compare(former, result)[0]
    assert not comparison.regressed
    assert [ratio.name for ratio in comparison.ratios if "70%" not in ratio.name and "90%" not in ratio.name] == [
        "saturated pairs/s"
    ]
    assert comparison.notes == [
        "left out, since the generator was the limit formerly: 18.0/s",
        "left out, since the generator was the limit: 4 users at saturation",
        "left out, since the generator was the limit: 30.0/s",
    ]


def test_a_missing_model_is_a_regression_and_a_new_one_is_named() -> None:
    comparisons = compare(make_result(0, models=["old", "both"]), make_result(1, models=["both", "new"]))
    lines, worse = verdicts(comparisons)
    assert worse
    assert [comparison.regressed for comparison in comparisons] == [True, False]
    assert "old: MISSING in the new result" in lines
    assert lines.count("not in the former result: new") == 1


def test_where_nothing_is_answered_any_more_is_a_regression() -> None:
    former, result = make_result(), make_result(1)
    dead = result["models"]["clickbert_onnx"]["open"][3]
    dead |= {"latencies_ms": [], "latency_ms": None, "errors": dead["requests"]}
    lines, worse = verdicts(compare(former, result))
    assert worse
    assert lines[-1].endswith(": clickbert_onnx")
    assert "    at 90% of saturation: nothing was answered  WORSE" in lines
    assert not regressed(compare(result, former))


@pytest.mark.parametrize(("before", "after", "more"), [(0, 1, False), (0, 12, True), (12, 12, False), (12, 0, False)])
def test_more_failures_than_chance_explains_are_a_regression(before: int, after: int, more: bool) -> None:
    former, result = make_result(), make_result(1)
    for each, errors in ((former, before), (result, after)):
        each["models"]["clickbert_onnx_int8"]["open"][0]["errors"] = errors
    comparisons = compare(former, result)
    assert [comparison.regressed for comparison in comparisons] == [False, more]
    notes = [line for line in verdicts(comparisons)[0] if " failed, formerly " in line]
    assert len(notes) == (after > 0)
    for note in notes:
        assert note.startswith(f"    at 30% of saturation {after} of ")
        assert f"formerly {before} of " in note
        assert note.endswith("WORSE") == more


def test_more_failures_at_saturation_are_a_regression() -> None:
    former, result = make_result(), make_result(1)
    for step in result["models"]["clickbert_onnx"]["rounds"]:
        step["errors"] = step["requests"] // 10
    comparisons = compare(former, result)
    assert [comparison.regressed for comparison in comparisons] == [True, False]
    assert any("at saturation " in line and line.endswith("WORSE") for line in comparisons[0].notes)


def test_steps_at_other_shares_are_named() -> None:
    former, result = make_result(), make_result(1)
    for found in result["models"].values():
        found["open"][2]["share"] = 0.6
    assert "    left out, since the new result lacks it: at 70% of saturation" in verdicts(compare(former, result))[0]


def test_another_machine_is_stated_once_and_the_former_run_is_named() -> None:
    former, result = make_result(), make_result(1)
    former["machine"] |= {"cpu": "Xeon", "cores": 8}
    lines, _ = verdicts(compare(former, result))
    assert lines.count("another machine: AMD EPYC, 2 cores; formerly Xeon, 8 cores") == 1
    assert "2026-11-25T02:25:46" in lines[0]
    assert "commit 6b85c8b" in lines[0]


def test_the_same_results_have_the_same_intervals() -> None:
    former, result = make_result(), make_result(1, 0.9)
    assert verdicts(compare(former, result)) == verdicts(compare(former, result))


@pytest.mark.parametrize(
    ("name", "value"), [("data", "other.jsonl"), ("candidates", None), ("texts", "titles"), ("pairs", 871)]
)
def test_another_workload_is_an_error_that_names_it(name: str, value: Any) -> None:
    former, result = make_result(), make_result(1)
    result["workload"][name] = value
    with pytest.raises(LoadError, match=f"{name} {value}, formerly") as caught:
        compare(former, result)
    assert "--candidates" in str(caught.value)


def test_the_same_file_in_another_folder_is_the_same_workload() -> None:
    former, result = make_result(), make_result(1, ceiling=None)  # which has no count of its pairs
    result["workload"]["data"] = "/somewhere/else/test.jsonl"
    check_workload(former, result)


def test_a_drawn_percentile_is_distributed_as_one_of_a_drawn_sample() -> None:
    chance = np.random.default_rng(3)
    latencies = np.sort(chance.lognormal(3, 1, 40))
    for share in (0.5, 0.9, 0.99):
        found = percentiles(list(latencies), share, chance)
        drawn = chance.choice(latencies, (20_000, 40))
        wanted = np.percentile(drawn, 100 * share, axis=1, method="inverted_cdf")
        assert found[0] == np.percentile(latencies, 100 * share, method="inverted_cdf")
        for level in (0.1, 0.3, 0.5, 0.7, 0.9):
            at = np.quantile(wanted, level, method="inverted_cdf")
            assert (found[1:] <= at).mean() == pytest.approx((wanted <= at).mean(), abs=0.04)
