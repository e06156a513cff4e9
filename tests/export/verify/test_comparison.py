"""An engine beside the reference: the figures against values worked out by hand, and what must hold for any logits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.graph.packing import Pair
from export.verify.comparison import (
    METRICS,
    Comparison,
    bootstrap,
    changed,
    compare,
    gain_per_group,
    group_rows,
    resampled,
    tau,
)
from finetune.data.clicklog import ClickRow
from finetune.evaluation.metrics import MetricError, click_probability, evaluate_ranking

TIE = 0.02


def log(*groups: list[float], impressions: float = 1.0) -> list[ClickRow]:
    return [
        ClickRow(f"g{number}", "q", "d", clicks, impressions) for number, group in enumerate(groups) for clicks in group
    ]


def column(values) -> np.ndarray:
    return np.array(values, dtype=np.float32)[:, None]


def beside(rows: list[ClickRow], reference, logits, tie: float = TIE, draws: int = 20) -> Comparison:
    return compare(rows, each_its_own(rows), column(reference), column(logits), ["click"], tie, draws)


def each_its_own(rows: list[ClickRow]) -> list[Pair]:
    return [{"input_ids": [place], "token_type_ids": [0]} for place in range(len(rows))]


def large_log(groups: int = 150, seed: int = 0) -> tuple[list[ClickRow], np.ndarray, np.ndarray]:
    """Rows with counts, the reference's logits, and those of an engine that is a little off."""
    chance = np.random.default_rng(seed)
    reference = chance.normal(size=groups * 7).astype(np.float32)
    impressions = chance.integers(1, 5, size=len(reference))
    clicks = chance.binomial(impressions, 1 / (1 + np.exp(-reference)))
    rows = [
        ClickRow(f"g{index % groups}", "q", "d", float(one), float(all_))
        for index, (one, all_) in enumerate(zip(clicks, impressions, strict=True))
    ]
    return rows, reference, reference + chance.normal(scale=0.4, size=len(reference)).astype(np.float32)


@given(st.integers(0, 2**32 - 1), st.sampled_from([TIE, 0.0]))
def test_rounding_decides_nothing_between_rows_of_the_same_tokens(seed: int, tie: float) -> None:
    """A page's candidates recur over its impressions, and are computed in other batches each time."""
    chance = np.random.default_rng(seed)
    scores, rows = chance.normal(size=10), log(*chance.integers(0, 2, (40, 10)).tolist())
    pairs: list[Pair] = [{"input_ids": [place % 10], "token_type_ids": [0]} for place in range(400)]
    reference, logits = (column(np.tile(scores, 40) + chance.uniform(-1e-7, 1e-7, 400)) for _ in range(2))
    found = compare(rows, pairs, reference, logits, ["click"], tie, draws=20)
    assert found.metrics["auc"].difference == found.metrics["ndcg_at_10"].difference == 0
    assert found.kendall_tau == pytest.approx(1) and found.top1_changed == found.top5_changed == 0
    assert 0 < found.max_abs_diff < 1e-6, "that is still of all rows"


def test_an_engine_that_is_wrong_in_later_batches_does_not_pass_by_its_first() -> None:
    """Rows of the same tokens are one score for the reference; for the engine only if they are near each other."""
    scores, groups = np.arange(14) / 3.0, 60
    rows = log(*[[int(place > 6) for place in range(14)]] * groups)
    pairs: list[Pair] = [{"input_ids": [place % 14], "token_type_ids": [0]} for place in range(14 * groups)]
    reference = column(np.tile(scores, groups))
    wrong = np.where(np.arange(len(rows))[:, None] < 16, reference, -3 * reference)
    found = compare(rows, pairs, reference, wrong, ["click"], TIE, draws=20)
    assert found.metrics["auc"].difference < -0.5 and found.metrics["log_loss"].difference > 1
    assert found.top1_changed_beyond_tie > 0.9


def test_differences_of_logits_and_metrics_worked_out_by_hand() -> None:
    found = beside(log([1, 0], [0, 1], [0]), [2, 0, 1, -1, 0], [1, 0, 1, 1.5, 0])
    assert found.max_abs_diff == 2.5
    assert found.mean_abs_diff == pytest.approx(3.5 / 5)
    assert (found.pairs, found.groups) == (5, 3)
    # Clicks at 2 and -1 against 0, 1, 0: 3 of 6 are won. The engine has them at 1 and 1.5: 5.5 of 6, one being a tie.
    assert found.metrics["auc"].reference == pytest.approx(3 / 6)
    assert found.metrics["auc"].engine == pytest.approx(5.5 / 6)
    assert found.metrics["auc"].difference == pytest.approx(2.5 / 6)
    # The click of the second group rises from place 2 to place 1.
    assert found.metrics["ndcg_at_10"].difference == pytest.approx((1 - 1 / math.log2(3)) / 2)
    loss = [math.log1p(math.exp(-1)) - math.log1p(math.exp(-2)), math.log1p(math.exp(-1.5)) - math.log1p(math.exp(1))]
    assert found.metrics["log_loss"].difference == pytest.approx(sum(loss) / 5)
    assert set(found.metrics) == set(METRICS)


def test_the_difference_of_two_labels_is_that_of_any_logit_and_the_order_that_of_their_gap() -> None:
    reference = np.array([[0, 3], [0, 1]], dtype=np.float32)
    moved = reference + np.array([[5], [-1]], dtype=np.float32)  # both labels alike: no probability changes
    found = compare(log([1, 0]), each_its_own(log([1, 0])), reference, moved, ["no click", "click"], TIE, draws=20)
    assert (found.max_abs_diff, found.mean_abs_diff) == (5, 3)
    assert all(one.difference == pytest.approx(0, abs=1e-12) for one in found.metrics.values())
    assert (found.kendall_tau, found.top1_changed_beyond_tie) == (1, 0)


@pytest.mark.parametrize(
    ("expected", "got", "value"),
    [
        ([4, 3, 2, 1], [4, 3, 2, 1], 1),
        ([4, 3, 2, 1], [1, 2, 3, 4], -1),
        ([4, 3, 2, 1], [3, 4, 2, 1], (5 - 1) / 6),
        ([4, 3, 2, 1], [4, 2, 2, 1], 5 / math.sqrt(6 * 5)),  # tau-b: a tie in one of the two
        ([3, 3, 1], [5, 4, 1], 2 / math.sqrt(2 * 3)),
        ([2, 2, 2], [1, 2, 3], 1),  # the reference has no order that could be lost
    ],
)
def test_kendalls_tau_by_hand(expected: list[float], got: list[float], value: float) -> None:
    assert tau(np.array(expected, float), np.array(got, float)) == pytest.approx(value)


def test_tau_is_the_mean_over_groups_of_two_or_more() -> None:
    found = beside(log([1, 0, 0], [1, 0], [0]), [3, 2, 1, 2, 1, 9], [3, 2, 1, 1, 2, -9])
    assert found.kendall_tau == pytest.approx((1 - 1) / 2)
    assert found.top1_changed_beyond_tie == 1 / 2


def share(expected: list[float], got: list[float], top: int, tie: float = TIE) -> float:
    return changed(np.array(expected, float), np.array(got, float), [np.arange(len(expected))], top, tie)


@pytest.mark.parametrize(
    ("expected", "got", "lost"),
    [
        ([1.0, 0.5], [1.0, 0.5], 0),
        ([1.0, 0.5], [0.5, 1.0], 1),
        ([1.0, 0.99], [0.5, 1.0], 0),  # within the tie
        ([1.0, 0.97], [0.5, 1.0], 1),
        ([1.0, 1.0, 0.2], [0.5, 1.0, 0.2], 0),  # a tie in the reference
        ([1.0, 1.0, 0.2], [0.5, 0.6, 0.7], 1),
    ],
)
def test_top_1_changes_where_the_reference_tells_the_two_apart(expected, got, lost) -> None:
    assert share(expected, got, 1) == lost


@pytest.mark.parametrize(
    ("got", "lost"),
    [
        ([1, 2, 3, 4, 5, 0], 0),  # another order of the same five
        ([6, 5, 4, 3, 1, 2], 0),  # the fifth for the sixth, which is within the tie
        ([6, 5, 4, 1, 3, 2], 1),  # the fourth for the sixth
        ([1, 5, 4, 3, 2, 6], 1),
    ],
)
def test_top_5_is_a_set(got: list[float], lost: float) -> None:
    assert share([6, 5, 4, 3, 2, 1.99], got, 5) == lost


def test_without_a_tie_every_change_counts() -> None:
    assert share([1.0, 0.99], [0.5, 1.0], 1, tie=0) == 1
    assert share([1.0, 1.0], [0.5, 1.0], 1, tie=0) == 0


def test_groups_of_five_or_fewer_have_no_top_5_to_lose() -> None:
    five = beside(log([1, 0, 0, 0, 0]), [5, 4, 3, 2, 1], [1, 2, 3, 4, 5])
    assert (five.top1_changed_beyond_tie, five.top5_changed_beyond_tie) == (1, 0)
    assert five.kendall_tau == pytest.approx(-1)
    six = beside(log([1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]), [*range(5), *range(6)], [*range(5), *range(5, -1, -1)])
    assert six.top5_changed_beyond_tie == 1


def test_a_group_may_lie_scattered_over_the_file() -> None:
    rows = [replace(row, group=group) for row, group in zip(log([1, 0, 0, 1]), "abab", strict=True)]
    assert [group.tolist() for group in group_rows(rows)] == [[0, 2], [1, 3]]
    found = beside(rows, [2, 0, 1, 3], [2, 4, 3, 5])
    assert (found.top1_changed_beyond_tie, found.kendall_tau) == (1 / 2, 0)


GROUP = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=8)
LOGS = st.lists(GROUP, min_size=1, max_size=5).map(lambda groups: log([1.0, 0.0], *groups))


def draw_logits(data: st.DataObject, count: int) -> np.ndarray:
    # Far enough apart for float32 to keep a transformed order, with ties among them.
    steps = data.draw(st.lists(st.integers(-40, 40), min_size=count, max_size=count))
    return np.array(steps, dtype=np.float32) / 8


@settings(max_examples=25)
@given(LOGS, st.data())
def test_identical_logits_differ_in_nothing(rows: list[ClickRow], data: st.DataObject) -> None:
    logits = draw_logits(data, len(rows))
    found = beside(rows, logits, logits)
    assert (found.max_abs_diff, found.mean_abs_diff, found.top1_changed_beyond_tie, found.top5_changed_beyond_tie) == (
        0,
        0,
        0,
        0,
    )
    assert found.kendall_tau == pytest.approx(1)
    assert all(one.difference == 0 and one.low <= 0 <= one.high for one in found.metrics.values())


@settings(max_examples=25)
@given(LOGS, st.data(), st.sampled_from([lambda x: 2 * x + 1, lambda x: x / 2 - 3, np.arctan, np.cbrt]))
def test_a_monotone_transformation_changes_no_order(rows: list[ClickRow], data: st.DataObject, transform) -> None:
    logits = draw_logits(data, len(rows))
    found = beside(rows, logits, transform(logits), tie=0)
    assert (found.kendall_tau, found.top1_changed_beyond_tie, found.top5_changed_beyond_tie) == (pytest.approx(1), 0, 0)
    for name in ("auc", "ndcg_at_10"):
        assert found.metrics[name].difference == pytest.approx(0, abs=1e-12), name
        assert found.metrics[name].low == pytest.approx(0, abs=1e-12), name


def test_clicks_given_as_counts_equal_the_same_rows_repeated() -> None:
    counted = [ClickRow("a", "q", "d", 2, 5), ClickRow("a", "q", "d", 1, 4), ClickRow("b", "q", "d", 0, 3)]
    single = [ClickRow("a", "q", "d", click, 1) for click in (1, 1, 0, 0, 0, 1, 0, 0, 0)] + log([0, 0, 0])
    reference, logits, times = np.array([1.0, -0.5, 0.3]), np.array([0.2, 0.4, 0.1]), [5, 4, 3]
    few, many = beside(counted, reference, logits), beside(single, reference.repeat(times), logits.repeat(times))
    for name in ("auc", "log_loss", "ece"):
        one, other = few.metrics[name], many.metrics[name]
        assert (one.reference, one.engine) == pytest.approx((other.reference, other.engine)), name


def test_all_groups_drawn_once_give_the_metrics_of_the_log() -> None:
    rows, reference, _ = large_log()
    scores = click_probability(reference[:, None], ["click"]).round(2)  # with ties
    clicks, impressions = (np.array([getattr(row, name) for row in rows]) for name in ("clicks", "impressions"))
    groups = group_rows(rows)
    gain = gain_per_group(groups, clicks / impressions, scores)
    found = resampled(clicks, impressions, scores, np.ones(len(groups)), gain)
    expected = evaluate_ranking(rows, scores)
    assert found == pytest.approx({name: expected[name] for name in METRICS}, rel=1e-12)


def test_a_group_drawn_twice_counts_twice_and_one_not_drawn_not_at_all() -> None:
    rows = log([1, 0, 0], [0, 1], [1, 0])
    scores = np.array([0.5, 0.7, 0.2, 0.9, 0.3, 0.8, 0.1])
    times = np.array([2.0, 0.0, 1.0])
    clicks, weight = np.array([row.clicks for row in rows]), times.repeat([3, 2, 2])
    gain = gain_per_group(group_rows(rows), clicks, scores)
    found = resampled(clicks * weight, weight, scores, times, gain)
    expected = evaluate_ranking(log([1, 0, 0], [1, 0, 0], [1, 0]), [*scores[:3], *scores[:3], *scores[5:]])
    assert found == pytest.approx({name: expected[name] for name in METRICS})


def test_the_interval_brackets_the_difference_and_narrows_with_more_groups() -> None:
    widths = []
    for groups in (60, 600):
        rows, reference, logits = large_log(groups)
        found = beside(rows, reference, logits, draws=200)
        for name, one in found.metrics.items():
            assert one.low < one.difference < one.high, name
            assert one.difference == one.engine - one.reference, name
        widths.append(found.metrics["auc"].high - found.metrics["auc"].low)
    assert widths[1] < widths[0] / 2  # sqrt(10) in the limit
    assert found.metrics["auc"].high < 0 < found.metrics["log_loss"].low  # noise that large is certainly worse


def test_every_engine_meets_the_same_draws() -> None:
    rows, reference, logits = large_log(40)
    pair = [click_probability(values[:, None], ["click"]) for values in (reference, logits)]
    assert bootstrap(rows, pair, 20) == bootstrap(rows, pair, 20)
    forth, back = bootstrap(rows, pair, 20), bootstrap(rows, pair[::-1], 20)
    for name in METRICS:
        assert forth[name] == pytest.approx((-back[name][1], -back[name][0])), name


def test_refuses_what_cannot_be_compared() -> None:
    with pytest.raises(MetricError, match="NaN or infinite, the first is row 1"):
        beside(log([1, 0]), [1, 0], [1, np.nan])
    with pytest.raises(MetricError, match="no group has both"):
        beside(log([1], [0]), [1, 0], [1, 0])
