"""The metrics against values worked out by hand, and what must hold for any scores."""

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.clicklog import ClickRow
from finetune.evaluation.metrics import MetricError, calibration_error, click_probability, evaluate_ranking


def rows(*groups: list[float], impressions: float = 1.0) -> list[ClickRow]:
    return [
        ClickRow(f"g{number}", "q", "d", clicks, impressions) for number, group in enumerate(groups) for clicks in group
    ]


def test_hand_computed_ranking() -> None:
    metrics = evaluate_ranking(rows([1, 0, 0], [0, 1, 1]), [0.2, 0.9, 0.1, 0.8, 0.7, 0.3])
    assert metrics["mrr"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    second, third = 1 / math.log2(3), 1 / math.log2(4)
    assert metrics["ndcg_at_10"] == pytest.approx((second + (second + third) / (1 + second)) / 2)
    # Group 1: 0.2 beats 0.1, loses to 0.9. Group 2: 0.7 and 0.3 both lose to 0.8.
    assert metrics["pairwise_accuracy"] == pytest.approx(1 / 4)
    # Clicks at 0.2, 0.7, 0.3 against non-clicks at 0.9, 0.1, 0.8: each beats 0.1 only.
    assert metrics["auc"] == pytest.approx(3 / 9)
    assert metrics["accuracy"] == pytest.approx(2 / 6)
    assert metrics["precision"] == pytest.approx(1 / 3)
    assert metrics["recall"] == pytest.approx(1 / 3)
    assert metrics["f1"] == pytest.approx(1 / 3)
    likelihoods = [0.2, 0.1, 0.9, 0.2, 0.7, 0.3]
    assert metrics["log_loss"] == pytest.approx(-sum(map(math.log, likelihoods)) / 6)
    assert (metrics["pairs"], metrics["groups"], metrics["ranked_groups"]) == (6, 2, 2)


def test_ndcg_looks_at_ten_places() -> None:
    scores = np.linspace(0.9, 0.1, 12)
    at_ten = evaluate_ranking(rows([0] * 9 + [1, 0, 0]), scores)["ndcg_at_10"]
    at_eleven = evaluate_ranking(rows([0] * 10 + [1, 0]), scores)["ndcg_at_10"]
    assert at_ten == pytest.approx(1 / math.log2(11))
    assert at_eleven == 0


def test_counts_equal_repeated_rows() -> None:
    counted = [ClickRow("a", "q", "d", 3, 5), ClickRow("a", "q", "d", 1, 4)]
    single = [ClickRow("a", "q", "d", click, 1) for click in (1, 1, 1, 0, 0, 1, 0, 0, 0)]
    grouped = evaluate_ranking(counted, [0.7, 0.2])
    repeated = evaluate_ranking(single, [0.7] * 5 + [0.2] * 4)
    for name in ("accuracy", "precision", "recall", "f1", "auc", "log_loss", "ece"):
        assert grouped[name] == pytest.approx(repeated[name]), name


def ece(log: list[ClickRow], probabilities: list[float]) -> float:
    return evaluate_ranking(log, probabilities)["ece"]


def test_calibrated_probabilities_have_no_calibration_error() -> None:
    calibrated = [ClickRow("a", "q", "d", 1, 4), ClickRow("a", "q", "d", 6, 10), ClickRow("a", "q", "d", 0, 5)]
    assert ece(calibrated, [0.25, 0.6, 0.0]) == pytest.approx(0, abs=1e-12)
    assert ece(rows([1, 0], [1, 0]), [0.5] * 4) == pytest.approx(0, abs=1e-12)
    # 0.48 and 0.52 share the bin from 7/15 to 8/15: their errors, once too high and once too low, cancel out.
    assert ece([ClickRow("a", "q", "d", 43, 100), ClickRow("a", "q", "d", 57, 100)], [0.48, 0.52]) < 1e-12


def test_calibration_error_worked_out_by_hand() -> None:
    # One bin alone: 1 click of 100 at 0.9. Two bins: 2 rows at 0.9 with 1 click, and 3 at 0.1 with none.
    assert ece([ClickRow("a", "q", "d", 0, 99), ClickRow("a", "q", "d", 1, 1)], [0.9] * 2) == pytest.approx(0.89)
    assert ece(rows([1, 0, 0, 0, 0]), [0.9, 0.9, 0.1, 0.1, 0.1]) == pytest.approx(2 / 5 * 0.4 + 3 / 5 * 0.1)
    unclicked = np.array([0.0, 0.0]), np.array([1.0, 3.0])  # evaluate_ranking wants a click
    assert calibration_error(np.array([0.9, 0.9]), *unclicked) == pytest.approx(0.9)


def test_a_probability_of_one_falls_into_the_last_bin() -> None:
    assert ece(rows([1, 0]), [1.0, 0.0]) == 0
    assert ece(rows([0, 1]), [1.0, 0.0]) == 1
    # In one bin with 0.95: 1 - 1 and 0.95 - 0.9 of 1 and 10 impressions.
    assert ece([ClickRow("a", "q", "d", 0, 1), ClickRow("a", "q", "d", 10, 10)], [1.0, 0.95]) == pytest.approx(0.5 / 11)


def test_groups_without_contrast_are_skipped() -> None:
    with_noise = evaluate_ranking(rows([1, 0], [0, 0], [1, 1], [1]), [0.9, 0.1, 0.3, 0.6, 0.2, 0.4, 0.5])
    assert with_noise["ranked_groups"] == 1
    assert with_noise["ndcg_at_10"] == with_noise["mrr"] == with_noise["pairwise_accuracy"] == 1


GROUP = st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=5).filter(
    lambda clicks: 0 < sum(clicks) < len(clicks)
)


@settings(max_examples=20)
@given(GROUP)
def test_a_constant_scorer_gets_the_mean_over_all_orders(clicks: list[float]) -> None:
    constant = evaluate_ranking(rows(clicks), [0.5] * len(clicks))
    scores = [(place + 1) / 10 for place in range(len(clicks))]
    ordered = [evaluate_ranking(rows(list(order)), scores) for order in set(permutations(clicks))]
    for name in ("ndcg_at_10", "mrr", "pairwise_accuracy", "auc"):
        assert constant[name] == pytest.approx(float(np.mean([each[name] for each in ordered]))), name
    assert constant["auc"] == constant["pairwise_accuracy"] == pytest.approx(0.5)


def test_a_constant_scorer_is_measured_on_a_large_group() -> None:
    """Of 1,200 candidates half are clicked: the first stands at place j with a chance of about 2 ** -j."""
    metrics = evaluate_ranking(rows([1, 0] * 600), [0.5] * 1200)
    assert metrics["mrr"] == pytest.approx(math.log(2), abs=1e-3)


@settings(max_examples=30)
@given(st.lists(GROUP, min_size=1, max_size=4), st.data())
def test_any_scores(groups: list[list[float]], data: st.DataObject) -> None:
    log = rows(*groups)
    scores = data.draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=len(log), max_size=len(log)))
    metrics = evaluate_ranking(log, scores)
    assert all(math.isfinite(value) and value >= 0 for value in metrics.values())
    assert metrics["ece"] <= 1 + 1e-12
    shares = {"accuracy", "precision", "recall", "f1", "auc", "ndcg_at_10", "mrr", "pairwise_accuracy"}
    assert all(metrics[name] <= 1 + 1e-12 for name in shares)
    order = data.draw(st.permutations(range(len(log))))
    shuffled = evaluate_ranking([log[index] for index in order], [scores[index] for index in order])
    assert shuffled == pytest.approx(metrics)
    perfect = evaluate_ranking(log, [row.clicks for row in log])
    assert all(perfect[name] == pytest.approx(1) for name in shares)
    assert perfect["log_loss"] == pytest.approx(0, abs=1e-6)
    assert perfect["ece"] == 0


@pytest.mark.parametrize(
    ("log", "scores", "fault"),
    [
        ([], [], "no rows"),
        (rows([0, 0]), [0.1, 0.2], "no click: AUC is undefined"),
        (rows([1, 1]), [0.1, 0.2], "nothing but clicks: AUC is undefined"),
        (rows([1], [0]), [0.1, 0.2], "no group has both"),
        (rows([1, 0]), [0.1, math.nan], "NaN or outside 0..1, the first at row 1: nan"),
        (rows([1, 0]), [1.1, 0.2], "the first at row 0"),
        (rows([1, 0]), [0.2], r"shape \[1\]; 2 rows need \[2\]"),
        (rows([1, 0]), [[0.2], [0.3]], r"shape \[2, 1\]"),
    ],
)
def test_refuses(log: list[ClickRow], scores: list[float], fault: str) -> None:
    with pytest.raises(MetricError, match=fault):
        evaluate_ranking(log, scores)


def test_click_probability() -> None:
    assert click_probability([[0.0], [2.0], [-900.0], [900.0]], ["anything"]).tolist() == pytest.approx(
        [0.5, 1 / (1 + math.exp(-2)), 0, 1]
    )
    assert click_probability([[1.0, 3.0], [900.0, -900.0]], ["no click", "click"]).tolist() == pytest.approx(
        [1 / (1 + math.exp(-2)), 0]
    )
    three = [[math.log(2), math.log(5), math.log(3)]]
    assert click_probability(three, ["skip", "hide", "Click"]).tolist() == pytest.approx([0.3])


@pytest.mark.parametrize(
    ("logits", "labels", "fault"),
    [
        ([[1.0, 2.0]], ["click"], "shape"),
        ([1.0], ["click"], "shape"),
        ([[1.0], [math.nan]], ["click"], "the first is row 1"),
        ([[math.inf]], ["click"], "NaN or infinite"),
    ],
)
def test_click_probability_refuses(logits: list[list[float]], labels: list[str], fault: str) -> None:
    with pytest.raises(MetricError, match=fault):
        click_probability(logits, labels)
