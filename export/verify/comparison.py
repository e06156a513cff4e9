"""Compares an engine with the reference on the evaluation file: its logits, its metrics, and its ranking.

The reference is the checkpoint in PyTorch, fp32. A metric's difference is the engine's value minus the reference's. Its
95 % confidence interval comes from a bootstrap over groups (impressions), since candidates of one group are not
independent: 500 draws of as many groups as there are, the same draws for every engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from export.graph.packing import Pair
from export.verify.heads import HeadComparison
from finetune.data.clicklog import ClickRow
from finetune.evaluation.metrics import calibration_error, click_probability, evaluate_ranking, group_rows
from finetune.evaluation.ranking import ndcg

METRICS = ("auc", "log_loss", "ece", "ndcg_at_10")
DRAWS = 500
FLOOR = 5e-6  # two float32 computations of a logit may differ so much in any model (see exact.py)
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """One metric of both, and the difference (engine minus reference) with its 95 % confidence interval."""

    reference: float
    engine: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """An engine compared with the reference.

    `top1_changed`: of the groups with two candidates or more, the share whose top result changed. `top5_changed`: of
    the groups with more than five, the share whose best five are another set. `..._beyond_tie`: the same, but only
    where the reference's logits of the exchanged candidates differ by more than the tie. `kendall_tau`: tau-b between
    the two orders, the mean over groups.
    """

    max_abs_diff: float  # of a logit
    mean_abs_diff: float
    metrics: dict[str, Difference]
    kendall_tau: float
    top1_changed: float
    top1_changed_beyond_tie: float
    top5_changed: float
    top5_changed_beyond_tie: float
    pairs: int
    groups: int
    heads: HeadComparison | None = None  # None: the checkpoint has the click alone


def compare(
    rows: Sequence[ClickRow],
    pairs: Sequence[Pair],
    reference: NDArray[np.float32],
    logits: NDArray[np.float32],
    labels: Sequence[str],
    tie: float,
    draws: int = DRAWS,
) -> Comparison:
    """Compares logits [rows, labels] with the reference's.

    Args:
        rows: the evaluation file.
        pairs: the rows' tokens. Rows with the same ones have the score of the first of them: they are computed in
            different batches, and rounding would decide which of them is above the other. The engine's only if they are
            no further apart than the tie: an engine that is wrong in some batches must not pass by its first one.
        reference: PyTorch's logits, fp32.
        logits: the engine's; all finite.
        labels: the labels' names.
        tie: candidates whose reference scores (log-odds of a click) differ by no more have no order to keep.
        draws: of the bootstrap.

    Raises:
        MetricError: the rows cannot be evaluated (no click, one group, ...), or a logit is not finite.
    """
    first = first_places(pairs)
    is_near = np.abs(logits - logits[first]).max(axis=1) <= max(tie, FLOOR)
    tied = reference[first], np.where(is_near[:, None], logits[first], logits)
    probabilities = [click_probability(values, labels) for values in tied]
    before, after = (evaluate_ranking(rows, values) for values in probabilities)
    intervals = bootstrap(rows, probabilities, draws)
    groups = group_rows(rows)
    several, many = ([group for group in groups if len(group) > least] for least in (1, 5))
    expected, actual = (log_odds(values) for values in probabilities)
    difference = np.abs(logits.astype(np.float64) - reference)
    return Comparison(
        max_abs_diff=float(difference.max()),
        mean_abs_diff=float(difference.mean()),
        metrics={
            name: Difference(before[name], after[name], after[name] - before[name], *intervals[name])
            for name in METRICS
        },
        kendall_tau=float(np.mean([tau(expected[group], actual[group]) for group in several])),
        top1_changed=changed(expected, actual, several, 1, 0.0),
        top1_changed_beyond_tie=changed(expected, actual, several, 1, tie),
        top5_changed=changed(expected, actual, many, 5, 0.0),
        top5_changed_beyond_tie=changed(expected, actual, many, 5, tie),
        pairs=len(rows),
        groups=len(groups),
    )


def first_places(pairs: Sequence[Pair]) -> NDArray[np.int64]:
    """For each pair the place of the first one that has the same tokens."""
    seen: dict[tuple[tuple[int, ...], ...], int] = {}
    keys = ((tuple(pair["input_ids"]), tuple(pair["token_type_ids"])) for pair in pairs)
    return np.array([seen.setdefault(key, place) for place, key in enumerate(keys)])


def log_odds(probabilities: FloatArray) -> FloatArray:
    """The score that ranks, as a logit whatever the number of labels."""
    clipped = np.clip(probabilities, 1e-12, 1 - 1e-12)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))


def tau(expected: FloatArray, actual: FloatArray) -> float:
    """Kendall's tau-b of two orders; 1 if the reference ties everything, 0 if the engine has none."""
    if np.ptp(expected) == 0:
        return 1.0
    return float(kendalltau(expected, actual).statistic) if np.ptp(actual) > 0 else 0.0


def changed(
    expected: FloatArray, actual: FloatArray, groups: Sequence[NDArray[np.int64]], top: int, tie: float
) -> float:
    """The share of groups whose best `top` lost a candidate to one that the reference scores lower by over `tie`."""
    if not groups:
        return 0.0
    count = 0
    for group in groups:
        scores = expected[group]
        # An engine's ties count against it. Otherwise a constant would keep the order of a file that is sorted already.
        chosen = np.lexsort((scores, -actual[group]))[:top]
        best = np.sort(scores)[::-1][:top]
        # The k-th best of those chosen against the k-th best of all.
        count += bool((best - np.sort(scores[chosen])[::-1] > tie).any())
    return count / len(groups)


def bootstrap(
    rows: Sequence[ClickRow], probabilities: Sequence[FloatArray], draws: int
) -> dict[str, tuple[float, float]]:
    """The 95 % confidence interval of each metric's difference between the two, over draws of whole groups."""
    groups = group_rows(rows)
    clicks, impressions = (np.array([getattr(row, name) for row in rows]) for name in ("clicks", "impressions"))
    group_of = np.empty(len(rows), dtype=np.int64)
    for number, members in enumerate(groups):
        group_of[members] = number
    gains = [gain_per_group(groups, clicks / impressions, scores) for scores in probabilities]
    chance = np.random.default_rng(0)
    found: dict[str, list[float]] = {name: [] for name in METRICS}
    for _ in range(draws):
        times = np.bincount(chance.integers(len(groups), size=len(groups)), minlength=len(groups)).astype(float)
        weight = times[group_of]
        pair = [
            resampled(clicks * weight, impressions * weight, scores, times, gain)
            for scores, gain in zip(probabilities, gains, strict=True)
        ]
        for name in METRICS:
            found[name].append(pair[1][name] - pair[0][name])
    limits = {name: np.nanpercentile(values, [2.5, 97.5]) for name, values in found.items()}
    return {name: (float(low), float(high)) for name, (low, high) in limits.items()}


def gain_per_group(groups: Sequence[NDArray[np.int64]], rates: FloatArray, scores: FloatArray) -> FloatArray:
    """Each group's NDCG@10; NaN if its click rates are all equal (as in `evaluate_ranking`)."""
    return np.array(
        [ndcg(rates[None, group], scores[None, group])[0] if np.ptp(rates[group]) > 0 else np.nan for group in groups]
    )


def resampled(
    clicks: FloatArray, impressions: FloatArray, scores: FloatArray, times: FloatArray, gain: FloatArray
) -> dict[str, float]:
    """The metrics of one draw: group i occurs `times[i]` times, and each row has these counts."""
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
