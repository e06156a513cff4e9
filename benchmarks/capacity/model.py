"""A replica's latency at a load, and that of many replicas behind the gateway: fitted to what was measured on one.

A percentile of the latency is `base + slope * wait`. The wait is that percentile of a queue whose requests come at
random and take exponentially distributed times, in units of 1 / (a replica's capacity). Base and slope are fitted to
what was measured on one replica, for each percentile its own: what makes real requests wait longer or shorter (how
their sizes spread, cores, chunks, who overtakes whom) is in them. Only the ratio of many replicas to one is theory.

What this module does not know: where the figures come from. docs/decisions/0025 has what it cannot see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, takewhile
from math import log
from statistics import median

import numpy as np
from scipy.optimize import nnls

NEGLIGIBLE = 1e-12
FALL = 1.2  # of the excess with each further replica, as in simulations of exponentially distributed times


def wait(load: float, replicas: int, percentile: float) -> float:
    """The wait behind a gateway that picks two replicas at random, and of them the one with fewer calls in flight.

    For one replica it is that of M/M/1. For very many it is the mean field of "the power of two choices" (Mitzenmacher
    2001), in which `load ** (2**k - 1)` of all have k requests or more. A pick is with replacement, as Envoy's is: one
    call in `replicas` meets the same one twice, and has no choice. So what few replicas wait longer than very many
    falls about as 1 / replicas; simulations say a little faster. At loads of 0.5 to 0.9 the p99 of two replicas is
    between 2 % below and 9 % above a simulation, that of four up to 18 % above it.

    Args:
        load: the rate of calls, as a share of what all replicas together can answer: above 0, below 1.
        replicas: 1 or more.
        percentile: which of the wait, below 100.

    Returns:
        The wait, in units of 1 / (a replica's capacity).
    """
    met = takewhile(lambda term: term > NEGLIGIBLE, (load ** (2 ** (k + 1) - 2) for k in count(1)))
    alone = percentile_of_wait(load / (1 - load), load, percentile)
    many = percentile_of_wait(sum(met), load**2, percentile)
    return many + (alone - many) / (1 + FALL * (replicas - 1))


def percentile_of_wait(mean: float, waiting: float, percentile: float) -> float:
    """A percentile of waits with this mean, of which the share `waiting` is above 0, with an exponential tail."""
    return mean / waiting * max(0.0, log(waiting / (1 - percentile / 100)))


@dataclass(frozen=True)
class Point:
    """What was measured on one replica.

    Attributes:
        load: the rate, as a share of what it can answer.
        latency_ms: a percentile.
        requests: how many the percentile is of.
    """

    load: float
    latency_ms: float
    requests: int


@dataclass(frozen=True)
class Curve:
    """A percentile of the latency by load.

    Attributes:
        percentile: which.
        base_ms, slope_ms: see above.
        lowest, highest: the loads that were measured. Lower ones count as the lowest; of higher ones nothing is said.
        miss: how far the worst measured point is above the curve, as a share of it.
    """

    percentile: float
    base_ms: float
    slope_ms: float
    lowest: float
    highest: float
    miss: float

    @classmethod
    def fit(cls, points: Sequence[Point], percentile: float) -> Curve:
        """The curve of the least squared relative errors, each weighted by its requests.

        Of several points at one load the median counts: a machine with other tenants is slow now and then. (`miss` is
        of all of them.) Neither base nor slope is negative, so the curve never falls with the load.
        """
        loads = sorted({each.load for each in points})
        same = [[each for each in points if each.load == load] for load in loads]
        weights = np.sqrt([sum(each.requests for each in group) for group in same])
        relative = weights / np.array([median(each.latency_ms for each in group) for group in same])
        waits = np.array([wait(load, 1, percentile) for load in loads])
        (base, slope), _ = nnls(np.stack([relative, relative * waits], axis=1), weights)
        base = max(base, NEGLIGIBLE)  # where nothing waits the curve would be 0, and no share of it a miss
        curve = cls(percentile, float(base), float(slope), loads[0], loads[-1], 0.0)
        return replace(curve, miss=max(0.0, *(each.latency_ms / curve.latency(each.load, 1) - 1 for each in points)))

    def latency(self, load: float, replicas: int) -> float:
        """Milliseconds, at a load up to `highest`. It rises with the load, and falls with more replicas."""
        at_least = wait(self.lowest, 1, self.percentile)
        return self.base_ms + self.slope_ms * max(wait(load, replicas, self.percentile), at_least)

    def cautious(self, load: float, replicas: int) -> float:
        """The same, if it is as far off as at the worst measured point."""
        return (1 + self.miss) * self.latency(load, replicas)
