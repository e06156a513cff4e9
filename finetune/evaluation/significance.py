"""Which click rates of one group differ by more than chance: the pairs that a model must order.

Most candidates of a real test differ by noise alone, so a pair's order says little. Two rates p1 and p2 of n1 and n2
impressions differ significantly if |z| > 1.96, z = (p1 - p2) / sqrt(p (1 - p) (1 / n1 + 1 / n2)), where p is the rate
of both together (the pooled two-proportion test, 5 % two-sided). Many pairs are tested and the level isn't adjusted, so
some of them differ by chance.
"""

import numpy as np
from numpy.typing import NDArray

CRITICAL_Z = 1.96


def differ_significantly(clicks: NDArray[np.float64], impressions: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the rates of candidates i and j differ significantly: [..., candidates, candidates], symmetric.

    `clicks` and `impressions` are [..., candidates], where "..." may be groups of one size. A candidate of one
    impression never does: the test needs counts.
    """
    rates = clicks / impressions
    pooled = (clicks[..., :, None] + clicks[..., None, :]) / (impressions[..., :, None] + impressions[..., None, :])
    # Rounding can lift a pooled rate just over 1.
    variance = np.maximum(pooled * (1 - pooled), 0) * (1 / impressions[..., :, None] + 1 / impressions[..., None, :])
    counted = impressions > 1
    # Multiplied out, so that a pooled rate of 0 or 1 divides nothing by nothing: equal rates don't differ.
    far = np.abs(rates[..., :, None] - rates[..., None, :]) > CRITICAL_Z * np.sqrt(variance)
    return np.asarray(far & counted[..., :, None] & counted[..., None, :])
