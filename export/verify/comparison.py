"""Compares an engine with the reference on the evaluation file: its logits, its metrics, and its ranking.

The reference is the checkpoint in PyTorch, fp32. A difference of a metric is the engine's minus the reference's. Its
95 % confidence interval comes from a bootstrap over impressions (groups), since the candidates of one are not
independent: 500 draws of as many groups as there are, the same draws for every engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau
from sklearn.metrics import ndcg_score

from finetune.data.clicklog import ClickRow
from finetune.metrics import CUTOFF, calibration_error, click_probability, evaluate_ranking, group_rows

METRICS = ("auc", "log_loss", "ece", "ndcg_at_10")
DRAWS = 500
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """One metric: the engine's minus the reference's, and the 95 % confidence interval of that."""

    reference: float
    engine: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """An engine beside the reference.

    `top1_changed_beyond_tie`: the share of groups (of two candidates or more) whose first candidate is another one, where the
    reference tells the two apart: its logits differ by more than the tie. `top5_changed_beyond_tie`: of groups of more than five,
    the share whose five best are another set, likewise. `top1_changed`, `top5_changed`: the same without a tie,
    every exchange counted. `kendall_tau`: the mean over groups of tau-b between the two orders.
    """

    max_abs_diff: float  # of a logit
    mean_abs_diff: float
    metrics: dict[str, Difference]
    kendall_tau: float
    top1_changed_beyond_tie: float
    top5_changed_beyond_tie: float
    top1_changed: float
    top5_changed: float
    pairs: int
    groups: int


def compare(
    rows: Sequence[ClickRow],
    reference: NDArray[np.float32],
    logits: NDArray[np.float32],
    labels: Sequence[str],
    tie: float,
) -> Comparison:
    """Compares logits [rows, labels] with the reference's.

    Args:
        rows: the evaluation file.
        reference: PyTorch's logits, fp32.
        logits: the engine's; all finite.
        labels: the labels' names.
        tie: candidates whose reference scores (log-odds of a click) differ by less have no order to keep.

    Raises:
        MetricError: the rows cannot be evaluated (no click, one group, ...), or a logit is not finite.
    """
    probabilities = [click_probability(values, labels) for values in (reference, logits)]
    first, second = (evaluate_ranking(rows, values) for values in probabilities)
    intervals = bootstrap(rows, *probabilities)
    groups = group_rows(rows)
    several, many = ([group for group in groups if len(group) > least] for least in (1, 5))
    wanted, got = (log_odds(values) for values in probabilities)
    difference = np.abs(logits.astype(np.float64) - reference)
    return Comparison(
        max_abs_diff=float(difference.max()),
        mean_abs_diff=float(difference.mean()),
        metrics={
            name: Difference(first[name], second[name], second[name] - first[name], *intervals[name])
            for name in METRICS
        },
        kendall_tau=float(np.mean([tau(wanted[group], got[group]) for group in several])),
        top1_changed_beyond_tie=changed(wanted, got, several, 1, tie),
        top5_changed_beyond_tie=changed(wanted, got, many, 5, tie),
        top1_changed=changed(wanted, got, several, 1, 0.0),
        top5_changed=changed(wanted, got, many, 5, 0.0),
        pairs=len(rows),
        groups=len(groups),
    )


def log_odds(probabilities: FloatArray) -> FloatArray:
    """The score that ranks, on the scale of a logit whatever the number of labels."""
    clipped = np.clip(probabilities, 1e-12, 1 - 1e-12)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))


def tau(wanted: FloatArray, got: FloatArray) -> float:
    """Kendall's tau-b of two orders; 1 where there is no order to keep, 0 where the engine has none."""
    if np.ptp(wanted) == 0:
        return 1.0
    return float(kendalltau(wanted, got).statistic) if np.ptp(got) > 0 else 0.0


def changed(wanted: FloatArray, got: FloatArray, groups: Sequence[NDArray[np.int64]], top: int, tie: float) -> float:
    """The share of groups whose `top` best lost a candidate to one that the reference has clearly below it."""
    if not groups:
        return 0.0
    count = 0
    for group in groups:
        scores = wanted[group]
        # The engine's ties count against it: else a constant would keep the order of a file that is sorted already.
        chosen = np.lexsort((scores, -got[group]))[:top]
        best = np.sort(scores)[::-1][:top]
        # Both sorted: the k-th best that was chosen against the k-th best that there is.
        count += bool((best - np.sort(scores[chosen])[::-1] > tie).any())
    return count / len(groups)


def bootstrap(rows: Sequence[ClickRow], reference: FloatArray, engine: FloatArray) -> dict[str, tuple[float, float]]:
    """The 95 % confidence interval of each metric's difference, over draws of groups with replacement."""
    groups = group_rows(rows)
    clicks, impressions = (np.array([getattr(row, name) for row in rows]) for name in ("clicks", "impressions"))
    group_of = np.empty(len(rows), dtype=np.int64)
    for number, members in enumerate(groups):
        group_of[members] = number
    gains = [gain_per_group(groups, clicks / impressions, scores) for scores in (reference, engine)]
    chance = np.random.default_rng(0)
    draws: dict[str, list[float]] = {name: [] for name in METRICS}
    for _ in range(DRAWS):
        times = np.bincount(chance.integers(len(groups), size=len(groups)), minlength=len(groups)).astype(float)
        weight = times[group_of]
        pair = [
            resampled(clicks * weight, impressions * weight, scores, times, gain)
            for scores, gain in zip((reference, engine), gains, strict=True)
        ]
        for name in METRICS:
            draws[name].append(pair[1][name] - pair[0][name])
    limits = {name: np.nanpercentile(values, [2.5, 97.5]) for name, values in draws.items()}
    return {name: (float(low), float(high)) for name, (low, high) in limits.items()}


def gain_per_group(groups: Sequence[NDArray[np.int64]], rates: FloatArray, scores: FloatArray) -> FloatArray:
    """Each group's NDCG@10; NaN where all click rates are equal (as in `evaluate_ranking`)."""
    return np.array(
        [
            ndcg_score([rates[group]], [scores[group]], k=CUTOFF) if np.ptp(rates[group]) > 0 else np.nan
            for group in groups
        ]
    )


def resampled(
    clicks: FloatArray, impressions: FloatArray, scores: FloatArray, times: FloatArray, gain: FloatArray
) -> dict[str, float]:
    """The metrics of one draw: rows [rows] with the counts they have in it, groups [groups] drawn `times` times."""
    _, place = np.unique(scores, return_inverse=True)
    positive = np.bincount(place, clicks)
    negative = np.bincount(place, impressions - clicks)
    below = np.cumsum(negative) - negative
    total = positive.sum() * negative.sum()
    clipped = np.clip(scores, 1e-15, 1 - 1e-15)
    loss = -(clicks * np.log(clipped) + (impressions - clicks) * np.log1p(-clipped)).sum() / impressions.sum()
    ranked = ~np.isnan(gain)
    ranks = times[ranked].sum()
    return {
        "auc": float((positive * (below + negative / 2)).sum() / total) if total else np.nan,
        "log_loss": float(loss),
        "ece": calibration_error(scores, clicks, impressions),
        "ndcg_at_10": float((gain[ranked] * times[ranked]).sum() / ranks) if ranks else np.nan,
    }
