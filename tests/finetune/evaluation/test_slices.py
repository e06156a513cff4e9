"""Metrics by a field's values: those of its rows alone; no value is dropped, and a gap names who is served worse."""

import numpy as np
import pytest

from finetune.data.clicklog import ClickRow
from finetune.evaluation.metrics import MetricError, evaluate_ranking
from finetune.evaluation.slices import LEAST, METRICS, FieldReport, ValueReport, find_fields, measure_by


def make_log() -> tuple[list[ClickRow], np.ndarray]:
    """Thirty groups of four: sports is ranked well, news by chance; a third domain has a single click."""
    chance = np.random.default_rng(0)
    rows, scores = [], []
    for number in range(30):
        domain = ("sports", "news")[number % 2]
        for position in range(1, 5):
            click = int(position == 1 + number % 4)
            row = ClickRow(f"g{number}", "q", "d", click, 1, ("a", "b") if position == 1 else ("b",), position,
                           f"u{number % 3}", others={"domain": domain, "device": "phone"})  # fmt: skip
            rows.append(row)
            scores.append(0.3 + 0.4 * click if domain == "sports" else chance.random())
    rows += [ClickRow("x", "q", "d", click, 1, others={"domain": "rare"}) for click in (1, 0)]
    return rows, np.array([*scores, 0.1, 0.9])


def by_value(report: FieldReport) -> dict[str, ValueReport]:
    return {value.value: value for value in report.values}


def test_a_values_metrics_are_those_of_its_rows() -> None:
    rows, scores = make_log()
    (report,) = measure_by(rows, scores, ["domain"], draws=200)
    for domain in ("sports", "news"):
        chosen = [index for index, row in enumerate(rows) if row.others["domain"] == domain]
        expected = evaluate_ranking([rows[index] for index in chosen], scores[chosen])
        found = by_value(report)[domain]
        assert found.metrics == {name: expected[name] for name in METRICS if name in expected}
        assert (found.pairs, found.groups, found.impressions, found.clicks) == (60, 15, 60, 15)
        low, high = found.intervals["auc"]
        assert low <= expected["auc"] <= high


def test_the_gap_says_who_is_served_worse() -> None:
    rows, scores = make_log()
    (report,) = measure_by(rows, scores, ["domain"], draws=0)
    values, gaps = by_value(report), {gap.metric: gap for gap in report.gaps}
    assert gaps.keys() == set(METRICS) - {"significant_pair_accuracy"}
    for name in ("auc", "log_loss", "ndcg_at_10", "pairwise_accuracy"):
        assert (gaps[name].worse, gaps[name].better) == ("news", "sports"), name
        difference = abs(values["news"].metrics[name] - values["sports"].metrics[name])
        assert gaps[name].gap == difference > 0


def test_values_with_too_little_are_listed_with_their_counts() -> None:
    rows, scores = make_log()
    (report,) = measure_by(rows, scores, ["domain"], draws=200)
    rare = by_value(report)["rare"]
    assert (rare.pairs, rare.groups, rare.impressions, rare.clicks) == (2, 1, 2, 1)
    assert rare.metrics == rare.intervals == {}
    assert "rare" not in {value for gap in report.gaps for value in (gap.worse, gap.better)}


@pytest.mark.parametrize(("clicks", "measured"), [(LEAST - 1, False), (LEAST, True)])
def test_what_is_enough_is_counted_on_both_sides(clicks: int, measured: bool) -> None:
    for few in (clicks, 100 - clicks):
        rows = [ClickRow("g", "q", "d", few, 100, others={"key": "a"}), ClickRow("h", "q", "d", 9, 99)]
        (report,) = measure_by(rows, np.array([0.5, 0.5]), ["key"], draws=0)
        assert bool(report.values[0].metrics) == measured


def test_by_position_the_auc_is_measured_though_nothing_can_be_ranked() -> None:
    rows, scores = make_log()
    (report,) = measure_by(rows, scores, ["position"], draws=200)
    assert [value.value for value in report.values] == ["1", "2", "3", "4"]
    assert report.pairs_without == 2
    for value in report.values:
        assert {"auc", "log_loss", "ece"} <= value.metrics.keys()
        assert not {"ndcg_at_10", "mrr", "pairwise_accuracy"} & value.metrics.keys()


def test_positions_are_in_their_order_and_other_values_by_impressions() -> None:
    rows = [ClickRow("g", "q", "d", 1, 2 + n, position=n, others={"key": f"v{n}"}) for n in (10, 9, 2)]
    position, key = measure_by(rows, np.full(3, 0.5), ["position", "key"], draws=0)
    assert [value.value for value in position.values] == ["2", "9", "10"]
    assert [value.value for value in key.values] == ["v10", "v9", "v2"]


def test_a_row_counts_for_each_of_its_topics() -> None:
    rows, scores = make_log()
    (report,) = measure_by(rows, scores, ["topic"], draws=0)
    assert {value.value: value.pairs for value in report.values} == {"b": 120, "a": 30}


def test_one_value_has_no_gap() -> None:
    rows, scores = make_log()
    (report,) = measure_by(rows, scores, ["device"], draws=0)
    assert report.gaps == ()
    assert report.pairs_without == 2


def test_a_field_that_no_row_has_is_refused_and_the_others_named() -> None:
    rows, scores = make_log()
    assert find_fields(rows) == ["topic", "position", "user", "device", "domain"]
    with pytest.raises(MetricError, match=r"has the field 'colour'; .*topic, position, user, device, domain$"):
        measure_by(rows, scores, ["domain", "colour"], draws=0)
    plain = [ClickRow("g", "q", "d", click, 1) for click in (0, 1)]
    with pytest.raises(MetricError, match="'user'; it can be measured by nothing"):
        measure_by(plain, np.array([0.1, 0.2]), ["user"], draws=0)
