"""Significant pairs: the vectorised rule against a plain loop, and on a real log of A/B tests."""

import math
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.clicklog import ClickRow, read_click_log
from finetune.evaluation.metrics import evaluate_ranking
from finetune.evaluation.significance import differ_significantly

UPWORTHY = Path("../shared/data/upworthy/dev.jsonl.gz")


def z_score(first: tuple[float, float], second: tuple[float, float]) -> float:
    (a, n), (b, m) = first, second
    pooled = (a + b) / (n + m)
    if pooled in (0, 1):
        return 0.0
    return (a / n - b / m) / math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))


def loop(log: list[ClickRow], scores: list[float]) -> tuple[float, int]:
    right, pairs = 0.0, 0
    for (one, high), (two, low) in permutations(zip(log, scores, strict=True), 2):
        if one.group != two.group or min(one.impressions, two.impressions) <= 1:
            continue
        if z_score((one.clicks, one.impressions), (two.clicks, two.impressions)) > 1.96:
            pairs += 1
            right += 1.0 if high > low else 0.5 if high == low else 0.0
    return right, pairs


COUNTS = st.integers(1, 400).flatmap(lambda shown: st.tuples(st.integers(0, shown), st.just(shown)))


@settings(max_examples=80)
@given(st.lists(st.tuples(st.sampled_from("ab"), COUNTS, st.sampled_from([0.1, 0.4, 0.9])), min_size=2, max_size=12))
def test_equals_a_plain_loop(drawn: list[tuple[str, tuple[int, int], float]]) -> None:
    log = [ClickRow(group, "q", "d", clicks, shown) for group, (clicks, shown), _ in drawn]
    log += [ClickRow("c", "q", "d", 0, 2), ClickRow("c", "q", "d", 1, 2)]  # so that every log can be evaluated
    scores = [*(score for *_, score in drawn), 0.2, 0.3]
    right, pairs = loop(log, scores)
    metrics = evaluate_ranking(log, scores)
    assert metrics.get("significant_pairs", 0) == pairs
    if pairs:
        assert metrics["significant_pair_accuracy"] == pytest.approx(right / pairs)
    else:
        assert "significant_pair_accuracy" not in metrics


@settings(max_examples=80)
@given(st.lists(COUNTS, min_size=1, max_size=8))
def test_is_symmetric_and_no_candidate_differs_from_itself(counts: list[tuple[int, int]]) -> None:
    clicks, impressions = np.array(counts, dtype=float).T
    found = differ_significantly(clicks, impressions)
    np.testing.assert_array_equal(found, found.T)
    assert not found.diagonal().any()
    for (i, one), (j, two) in combinations(enumerate(counts), 2):
        assert found[i, j] == (abs(z_score(one, two)) > 1.96 and min(one[1], two[1]) > 1)


def test_the_limit_is_1_96() -> None:
    # Of 100 impressions each, 10 against 20 clicks give z = 1.98, and 10 against 19 give z = 1.81.
    clicks, impressions = np.array([10.0, 20.0, 19.0]), np.full(3, 100.0)
    assert differ_significantly(clicks, impressions)[0].tolist() == [False, True, False]


def test_single_impressions_never_count() -> None:
    single = [ClickRow("a", "q", "d", click, 1) for click in (1, 0, 0)]
    assert "significant_pairs" not in evaluate_ranking(single, [0.9, 0.1, 0.2])
    beside_counts = [*single, ClickRow("a", "q", "d", 1, 10_000)]
    assert "significant_pairs" not in evaluate_ranking(beside_counts, [0.9, 0.1, 0.2, 0.3])


def test_pairs_of_two_groups_are_no_pairs() -> None:
    log = [
        *(ClickRow("a", "q", "d", clicks, 1000) for clicks in (10, 200)),
        *(ClickRow("b", "q", "d", clicks, 1000) for clicks in (20, 300)),
    ]
    metrics = evaluate_ranking(log, [0.1, 0.5, 0.5, 0.1])
    assert (metrics["significant_pair_accuracy"], metrics["significant_pairs"]) == (0.5, 2)
    assert type(metrics["significant_pairs"]) is int


@pytest.mark.skipif(not UPWORTHY.exists(), reason=f"the Upworthy headline tests are not at {UPWORTHY}")
def test_the_upworthy_log_has_678() -> None:
    log = read_click_log(UPWORTHY)
    rates = [row.clicks / row.impressions for row in log]
    metrics = evaluate_ranking(log, rates)
    assert (metrics["significant_pairs"], metrics["significant_pair_accuracy"]) == (678, 1)
    scores = np.random.default_rng(0).random(len(log)).round(1).tolist()
    by_group: dict[str, list[int]] = {}
    for index, row in enumerate(log):
        by_group.setdefault(row.group, []).append(index)
    parts = [loop([log[i] for i in members], [scores[i] for i in members]) for members in by_group.values()]
    expected = sum(right for right, _ in parts) / sum(pairs for _, pairs in parts)
    assert evaluate_ranking(log, scores)["significant_pair_accuracy"] == pytest.approx(expected)
