"""How groups of equal size are ranked, all at once: arrays are [groups, candidates].

Where candidates of a group share a score, each figure is the expected one over all orders of the tied candidates, in
closed form. NDCG equals scikit-learn's `ndcg_score`, which gives the mean of many groups only.
"""

import numpy as np
from numpy.typing import NDArray

CUTOFF = 10
FloatArray = NDArray[np.float64]


def ndcg(gains: FloatArray, scores: FloatArray) -> FloatArray:
    """Compute each group's expected NDCG at `CUTOFF` [groups]; every group needs a gain above 0."""
    candidates = gains.shape[1]
    discounts = 1 / np.log2(np.arange(candidates) + 2.0)
    discounts[CUTOFF:] = 0
    sums = np.concatenate([[0], np.cumsum(discounts)])  # of the first places
    # A candidate gets, with equal chance, one of the places that those of its score share.
    above = (scores[:, None, :] > scores[:, :, None]).sum(axis=2)
    tied = (scores[:, None, :] == scores[:, :, None]).sum(axis=2)
    found = (gains * (sums[above + tied] - sums[above]) / tied).sum(axis=1)
    return np.asarray(found / (-np.sort(-gains, axis=1) @ discounts))


def reciprocal_rank(clicked: NDArray[np.bool_], scores: FloatArray) -> FloatArray:
    """Compute each group's expected 1 / rank of its first clicked candidate [groups]; every group needs a click."""
    best = np.where(clicked, scores, -np.inf).max(axis=1, keepdims=True)
    above = (scores > best).sum(axis=1, keepdims=True)
    tied = (scores == best).sum(axis=1, keepdims=True)
    tied_clicked = (clicked & (scores == best)).sum(axis=1, keepdims=True)
    # The first of `c` clicked among `t` tied places is at place j with the chance C(t - j, c - 1) / C(t, c): at place 1
    # with c / t, and each next place is (t - j - c + 1) / (t - j) times as likely. (C itself outgrows a float.)
    places = np.arange(1, scores.shape[1] + 1)
    left = tied - places[:-1]
    steps = np.maximum(left - tied_clicked + 1, 0) / np.maximum(left, 1)
    chances = np.cumprod(np.concatenate([tied_clicked / tied, steps], axis=1), axis=1)
    return np.asarray((chances / (above + places)).sum(axis=1))


def order_credit(scores: FloatArray) -> FloatArray:
    """Return 1 where candidate i stands above j, 0.5 where they are tied, else 0: [groups, candidates, candidates]."""
    return np.asarray(0.5 + 0.5 * np.sign(scores[:, :, None] - scores[:, None, :]))
