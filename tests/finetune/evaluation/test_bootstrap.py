"""The bootstrap by weights equals copying the drawn groups, draw by draw; and its intervals are what they claim."""

import numpy as np
import pytest

from finetune.data.clicklog import ClickRow
from finetune.evaluation import bootstrap as module
from finetune.evaluation.bootstrap import FEWEST, bootstrap, draw_groups
from finetune.evaluation.metrics import ScoredLog, evaluate_ranking

METRICS = {"auc", "log_loss", "ndcg_at_10", "mrr", "pairwise_accuracy", "significant_pair_accuracy"}


def make_log(groups: int, seed: int, impressions: int = 60) -> tuple[list[ClickRow], list[float]]:
    """Groups of two to six candidates, each with contrast and a significant pair; the scores have ties."""
    chance = np.random.default_rng(seed)
    rows = []
    for group in range(groups):
        for place in range(chance.integers(2, 7)):
            rate = (0.9, 0.1)[place] if place < 2 else chance.random()
            rows.append(ClickRow(f"g{group}", "q", "d", float(round(rate * impressions)), float(impressions)))
    return rows, chance.random(len(rows)).round(1).tolist()


def resample(rows: list[ClickRow], scores: list[float], draws: int) -> dict[str, list[float]]:
    """The plain way: copy the drawn groups under new names, and evaluate the copy."""
    log = ScoredLog.of(rows, scores)
    found: dict[str, list[float]] = {name: [] for name in METRICS}
    for times in draw_groups(np.random.default_rng(0), draws, len(log.groups)):
        copied = [
            (ClickRow(f"{group} {copy}", "q", "d", rows[i].clicks, rows[i].impressions), scores[i])
            for group, count in enumerate(times.astype(int))
            for copy in range(count)
            for i in log.groups[group]
        ]
        metrics = evaluate_ranking([row for row, _ in copied], [score for _, score in copied])
        for name in METRICS:
            found[name].append(metrics[name])
    return found


@pytest.mark.parametrize("cells", [2_000_000, 100], ids=["at once", "in parts"])
def test_equals_resampling_whole_groups(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    monkeypatch.setattr(module, "CELLS", cells)
    rows, scores = make_log(7, seed=1)
    scores[:2] = [0.0, 1.0]  # both clipped in the log loss
    intervals = bootstrap(ScoredLog.of(rows, scores), draws=40)
    plain = resample(rows, scores, draws=40)
    assert intervals.keys() == METRICS
    for name, values in plain.items():
        assert intervals[name] == pytest.approx(tuple(np.percentile(values, [2.5, 97.5]))), name


def test_an_interval_holds_the_figure_and_narrows_with_more_groups() -> None:
    widths = []
    for groups in (20, 320):
        log = ScoredLog.of(*make_log(groups, seed=2))
        metrics = evaluate_ranking(*make_log(groups, seed=2))
        intervals = bootstrap(log)
        assert all(low <= metrics[name] <= high for name, (low, high) in intervals.items())
        widths.append(intervals["auc"][1] - intervals["auc"][0])
    assert 0 < widths[1] < widths[0] / 2, "16 times the groups: a quarter of the width"


def test_about_95_percent_of_the_intervals_hold_the_truth() -> None:
    """Scores that know nothing order half of the pairs rightly, in expectation."""
    held = 0
    for seed in range(60):
        rows, _ = make_log(25, seed)
        scores = np.random.default_rng(1000 + seed).random(len(rows))
        low, high = bootstrap(ScoredLog.of(rows, scores), draws=200)["pairwise_accuracy"]
        held += low <= 0.5 <= high
    assert 51 <= held < 60


def test_the_seed_decides() -> None:
    log = ScoredLog.of(*make_log(9, seed=3))
    assert bootstrap(log) == bootstrap(log)
    assert bootstrap(log, seed=1) != bootstrap(log)


def test_too_few_groups_have_no_interval() -> None:
    assert bootstrap(ScoredLog.of(*make_log(FEWEST - 1, seed=3))) == {}
    assert bootstrap(ScoredLog.of(*make_log(FEWEST, seed=3))).keys() == METRICS


def test_groups_that_take_no_part_in_a_metric_give_it_no_interval() -> None:
    """One group alone has contrast; each draw without a click, or without anything else, does not count."""
    clicks = [1, 0, 1, 0, 0, 0, 0]
    rows = [ClickRow(f"g{max(number, 1)}", "q", "d", click, 1) for number, click in enumerate(clicks)]
    intervals = bootstrap(ScoredLog.of(rows, [0.2, 0.1, 0.3, 0.4, 0.5, 0.6, 0.7]))
    assert intervals.keys() == {"auc", "log_loss"}
    assert np.isfinite(list(intervals.values())).all()


def test_no_draws_give_no_interval() -> None:
    assert bootstrap(ScoredLog.of(*make_log(9, seed=3)), draws=0) == {}
