"""95 % confidence intervals of the metrics: a bootstrap over groups.

Candidates that were shown together are not independent, so whole groups are drawn: as many as the log has, with
replacement, many times. An interval holds the middle 95 % of what the draws give (percentile bootstrap). A draw is a
weight for each group, never a copied log: the metrics are sums over groups, and the AUC is a sum over the sorted rows.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.metrics import FloatArray, ScoredLog, Sums

Interval = tuple[float, float]
DRAWS = 1000
FEWEST = 5  # groups; draws of fewer are so much alike that an interval would be far too narrow
MIDDLE = (2.5, 97.5)  # percentiles
CELLS = 2_000_000  # draws times rows that are held at once: 16 MB an array


def bootstrap(log: ScoredLog, draws: int = DRAWS, seed: int = 0) -> dict[str, Interval]:
    """Compute the intervals of AUC, log loss and the ranking metrics, by name, each (low, high).

    A metric is absent if fewer than `FEWEST` groups take part in it. A draw in which a metric is undefined (no click
    was drawn) does not count for it. `draws` of 0 gives no interval.
    """
    sums = {"log_loss": _loss_sums(log), **log.ranking_sums}
    sums = {name: (above, below) for name, (above, below) in sums.items() if np.count_nonzero(below) >= FEWEST}
    if draws < 1 or len(log.groups) < FEWEST:
        return {}
    chance = np.random.default_rng(seed)
    step = max(1, CELLS // len(log.scores))
    parts = [
        _draw_metrics(log, sums, draw_groups(chance, min(step, draws - start), len(log.groups)))
        for start in range(0, draws, step)
    ]
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    limits = {name: np.nanpercentile(found, MIDDLE) for name, found in values.items() if not np.isnan(found).all()}
    return {name: (float(low), float(high)) for name, (low, high) in limits.items()}


def draw_groups(chance: np.random.Generator, draws: int, groups: int) -> FloatArray:
    """Draw `groups` of `groups`, with replacement: how often each occurs, [draws, groups]."""
    chosen = chance.integers(groups, size=(draws, groups)) + groups * np.arange(draws)[:, None]
    return np.bincount(chosen.ravel(), minlength=draws * groups).reshape(draws, groups).astype(np.float64)


def _draw_metrics(log: ScoredLog, sums: Mapping[str, Sums], times: FloatArray) -> dict[str, FloatArray]:
    """Each metric of each draw [draws], NaN where it is undefined."""
    found = {"auc": _aucs(log, times)}
    for name, (above, below) in sums.items():
        found[name] = _divided(times @ above, times @ below)
    return found


def _aucs(log: ScoredLog, times: FloatArray) -> FloatArray:
    """Each draw's AUC: the share of clicks that stand above a non-click, ties half."""
    group_of = np.empty(len(log.scores), dtype=np.int64)
    for number, group in enumerate(log.groups):
        group_of[group] = number
    order = np.argsort(log.scores)
    _, starts = np.unique(log.scores[order], return_index=True)
    weights = times[:, group_of[order]]
    clicks = np.add.reduceat(weights * log.clicks[order], starts, axis=1)
    others = np.add.reduceat(weights * (log.impressions - log.clicks)[order], starts, axis=1)
    below = np.cumsum(others, axis=1) - others
    return _divided((clicks * (below + others / 2)).sum(axis=1), clicks.sum(axis=1) * others.sum(axis=1))


def _loss_sums(log: ScoredLog) -> Sums:
    smallest = np.finfo(np.float64).eps  # scikit-learn clips there, too
    scores = np.clip(log.scores, smallest, 1 - smallest)
    losses = -(log.clicks * np.log(scores) + (log.impressions - log.clicks) * np.log1p(-scores))
    return _by_group(log.groups, losses), _by_group(log.groups, log.impressions)


def _by_group(groups: list[NDArray[np.int64]], values: FloatArray) -> FloatArray:
    return np.array([values[group].sum() for group in groups])


def _divided(above: FloatArray, below: FloatArray) -> FloatArray:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
