"""Measures click probabilities as a classifier, as probabilities, and as a ranking within each group.

scikit-learn computes all metrics over impressions but the calibration error; `ranking` has those within a group. Counts
are weights: a row with 3 clicks of 40 impressions is 3 positives and 37 negatives. Ties earn nothing: where candidates
of a group share a probability, NDCG and MRR are the expected value over all orders of the tied candidates, so a
constant scorer gets what a random order gets.

Not known here: position bias. Clicks are taken as they were logged.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)

from finetune.checkpoint.labels import click_column
from finetune.data.clicklog import ClickRow
from finetune.evaluation.ranking import CUTOFF, FloatArray, ndcg, order_credit, reciprocal_rank
from finetune.evaluation.significance import differ_significantly

__all__ = [
    "CUTOFF", "LOWER_IS_BETTER", "FloatArray", "MetricError", "ScoredLog", "calibration_error", "check_clicks",
    "click_column", "click_probability", "evaluate_ranking", "group_rows", "measure",
]  # fmt: skip

Sums = tuple[FloatArray, FloatArray]
THRESHOLD = 0.5
BINS = 15
CELLS = 2_000_000  # pairs of candidates that are compared at once: 16 MB an array
LOWER_IS_BETTER = ("log_loss", "ece")  # of the metrics; of all others, higher is


class MetricError(ValueError):
    """Raised for scores that cannot be evaluated, and for a click log on which a metric is undefined."""


def to_log_odds(logits: ArrayLike, click: int) -> FloatArray:
    """Turn classifier logits [rows, labels] into the log-odds of a click [rows], computed in float64.

    One label: the logit itself. More: the logit of the label `click` less the logarithm of the others' sum.
    """
    values = np.asarray(logits, dtype=np.float64)
    if values.shape[1] == 1:
        return values[:, 0]
    others: FloatArray = np.logaddexp.reduce(np.delete(values, click, axis=1), axis=1)
    return values[:, click] - others


def click_probability(logits: ArrayLike, labels: Sequence[str]) -> FloatArray:
    """Turn classifier logits [rows, labels] into click probabilities [rows], each in 0..1, computed in float64.

    One label: sigmoid. More: softmax at the label that means a click (`click_column`).
    `labels` are the label names in the order of their ids, as `label_names` returns them.

    Raises:
        MetricError: the shape does not fit the labels, or a logit is not finite.
        CheckpointError: the labels do not tell which one is the click.
    """
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != len(labels) or not labels:
        raise MetricError(
            f"logits have the shape {list(values.shape)}; {len(labels)} labels need [rows, {len(labels)}]"
        )
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise MetricError(f"logits of {bad.size} rows are NaN or infinite, the first is row {bad[0]}; check the model")
    if len(labels) == 1:
        # exp(-|x|) never overflows, whatever the sign.
        small = np.exp(-np.abs(values[:, 0]))
        return np.asarray(np.where(values[:, 0] >= 0, 1.0, small) / (1.0 + small))
    column = click_column(labels)
    exponents = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(exponents[:, column] / exponents.sum(axis=1))


@dataclass(frozen=True)
class ScoredLog:
    """A click log's columns beside the click probabilities `scores`; all [rows], in the log's order."""

    scores: FloatArray
    clicks: FloatArray
    impressions: FloatArray
    groups: list[NDArray[np.int64]]  # each group's rows

    @classmethod
    def of(cls, rows: Sequence[ClickRow], probabilities: ArrayLike) -> "ScoredLog":
        """Take the columns of `rows` and their click probabilities [rows].

        Raises:
            MetricError: no rows, or probabilities of another shape, NaN, or outside 0..1.
        """
        scores = _checked(rows, probabilities)
        clicks, impressions = (np.array([getattr(row, name) for row in rows]) for name in ("clicks", "impressions"))
        return cls(scores, clicks, impressions, group_rows(rows))

    @cached_property
    def ranking_sums(self) -> dict[str, Sums]:
        """What each group adds to the ranking metrics, by name: numerators [groups] and denominators [groups].

        A metric is the sum of its numerators over that of its denominators. A group without contrast adds nothing.
        """
        gain, rank, ranked, right, compared, right_significant, significant = np.zeros((7, len(self.groups)))
        counted = bool((self.impressions > 1).any())
        for chosen, members in self._equal_groups():
            clicks, impressions, scores = self.clicks[members], self.impressions[members], self.scores[members]
            rates = clicks / impressions
            ranked[chosen] = 1
            gain[chosen] = ndcg(rates, scores)
            rank[chosen] = reciprocal_rank(rates > 0, scores)
            better, credit = rates[:, :, None] > rates[:, None, :], order_credit(scores)
            right[chosen], compared[chosen] = (better * credit).sum(axis=(1, 2)), better.sum(axis=(1, 2))
            if counted:
                better &= differ_significantly(clicks, impressions)
                right_significant[chosen] = (better * credit).sum(axis=(1, 2))
                significant[chosen] = better.sum(axis=(1, 2))
        return {
            "ndcg_at_10": (gain, ranked),
            "mrr": (rank, ranked),
            "pairwise_accuracy": (right, compared),
            "significant_pair_accuracy": (right_significant, significant),
        }

    def _equal_groups(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Give the groups with contrast, some of one size at a time: their numbers [groups], rows [groups, size]."""
        sizes = np.array([len(group) for group in self.groups])
        for size in np.unique(sizes[sizes > 1]).tolist():
            numbers = np.flatnonzero(sizes == size)
            members = np.stack([self.groups[number] for number in numbers])
            contrast = np.ptp(self.clicks[members] / self.impressions[members], axis=1) > 0
            numbers, members = numbers[contrast], members[contrast]
            step = max(1, CELLS // size**2)
            for start in range(0, len(numbers), step):
                yield numbers[start : start + step], members[start : start + step]


def evaluate_ranking(rows: Sequence[ClickRow], probabilities: ArrayLike) -> dict[str, float]:
    """Evaluate click probabilities [rows] against the log; all values are plain floats and ints, ready for JSON.

    Over impressions (weighted by counts):
        accuracy, precision, recall, f1: a probability of 0.5 or more predicts a click; precision is 0 if none does.
        auc: area under the ROC curve; ties count half. log_loss: mean negative log-likelihood in nats.
        ece: expected calibration error, the mean |click rate - probability| of 15 equally wide bins of probability,
            each weighing as many impressions as fall into it (Guo et al., 2017).
    Within a group (candidates shown together), over groups with contrast, i.e. whose click rates are not all equal:
        ndcg_at_10: mean NDCG@10, gain = clicks / impressions, discount = log2(rank + 1); expected over tied orders.
        mrr: mean reciprocal rank of the first candidate with a click; expected value over tied orders.
        pairwise_accuracy: of all pairs of one group with unequal click rates, the share ranked the right way round;
            a tie counts half. Every pair weighs the same, so large groups weigh more.
        significant_pair_accuracy: the same over the pairs whose click rates differ significantly
            (`differ_significantly`), and their number, significant_pairs. Both are absent if there is no such pair; a
            log of single clicks has none.
    Counts: pairs (rows), groups, ranked_groups (those with contrast), impressions, clicks.

    Raises:
        MetricError: no rows; probabilities of another shape, NaN, or outside 0..1; no click or nothing but clicks (AUC
            is undefined); or no group with contrast (ranking metrics are undefined).
    """
    log = ScoredLog.of(rows, probabilities)
    check_clicks(log)
    return measure(log)


def check_clicks(log: ScoredLog) -> None:
    """Refuse a log that `evaluate_ranking` cannot evaluate, whatever its scores.

    Raises:
        MetricError: no click, nothing but clicks, or no group with contrast.
    """
    if not 0 < log.clicks.sum() < log.impressions.sum():
        kind = "no click" if log.clicks.sum() == 0 else "nothing but clicks"
        raise MetricError(f"the click log has {kind}: AUC is undefined; evaluate on a log with clicks and non-clicks")
    rates = log.clicks / log.impressions
    if not any(np.ptp(rates[group]) > 0 for group in log.groups):
        raise MetricError("no group has both better and worse candidates: ranking metrics are undefined; "
                          "give candidates that were shown together the same 'group'")  # fmt: skip


def measure(log: ScoredLog) -> dict[str, float]:
    """Measure what `evaluate_ranking` names, of a log that has clicks and non-clicks.

    Ranking metrics are absent, not refused, where no group has contrast.
    """
    sums = log.ranking_sums
    ranking = {name: float(above.sum() / below.sum()) for name, (above, below) in sums.items() if below.any()}
    if "significant_pair_accuracy" in ranking:
        ranking["significant_pairs"] = int(sums["significant_pair_accuracy"][1].sum())
    return {
        **_impression_metrics(log.scores, log.clicks, log.impressions),
        "ece": calibration_error(log.scores, log.clicks, log.impressions),
        **ranking,
        "pairs": len(log.scores),
        "groups": len(log.groups),
        "ranked_groups": int(sums["mrr"][1].sum()),
        "impressions": float(log.impressions.sum()),
        "clicks": float(log.clicks.sum()),
    }


def group_rows(rows: Sequence[ClickRow]) -> list[NDArray[np.int64]]:
    """Return the indices of each group's rows, groups in the order in which they begin."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[row.group].append(index)
    return [np.array(members) for members in groups.values()]


def calibration_error(probabilities: FloatArray, clicks: FloatArray, impressions: FloatArray) -> float:
    """Expected calibration error (see `evaluate_ranking`) of probabilities [rows] with their counts [rows]."""
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, clicks - probabilities * impressions, minlength=BINS)
    return float(np.abs(gaps).sum() / impressions.sum())


def _checked(rows: Sequence[ClickRow], probabilities: ArrayLike) -> FloatArray:
    scores = np.asarray(probabilities, dtype=np.float64)
    if not rows:
        raise MetricError("there are no rows to evaluate; give a click log with rows")
    if scores.shape != (len(rows),):
        raise MetricError(f"probabilities have the shape {list(scores.shape)}; {len(rows)} rows need [{len(rows)}]")
    bad = np.flatnonzero(~((scores >= 0) & (scores <= 1)))  # NaN fails both comparisons
    if bad.size:
        raise MetricError(
            f"{bad.size} probabilities are NaN or outside 0..1, the first at row {bad[0]}: {scores[bad[0]]}"
        )
    return scores


def _impression_metrics(scores: FloatArray, clicks: FloatArray, impressions: FloatArray) -> dict[str, float]:
    weights = np.concatenate([clicks, impressions - clicks])
    used = weights > 0
    truth = np.concatenate([np.ones(len(scores), int), np.zeros(len(scores), int)])[used]
    doubled = np.concatenate([scores, scores])[used]
    predicted = (doubled >= THRESHOLD).astype(int)
    weighted: dict[str, Any] = {"sample_weight": weights[used]}
    return {
        "accuracy": float(accuracy_score(truth, predicted, **weighted)),
        "precision": float(precision_score(truth, predicted, zero_division=0.0, **weighted)),
        "recall": float(recall_score(truth, predicted, zero_division=0.0, **weighted)),
        "f1": float(f1_score(truth, predicted, zero_division=0.0, **weighted)),
        "auc": float(roc_auc_score(truth, doubled, **weighted)),
        "log_loss": float(log_loss(truth, doubled, labels=[0, 1], **weighted)),
    }
