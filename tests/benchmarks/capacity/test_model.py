"""The queueing model against a simulation that knows nothing of it, and what must hold for any curve."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.capacity.model import Curve, Point, wait

Times = NDArray[np.float64]
REQUESTS = 15_000
MEASURED = (0.3, 0.5, 0.7, 0.85)  # loads of one node
# Services with a mean of 1: all alike; spread as in a log of titles; exponential; and one in twenty 13 times the usual.
SERVICES: dict[str, Callable[[np.random.Generator, int], Times]] = {
    "alike": lambda _, count: np.ones(count),
    "spread": lambda chance, count: chance.gamma(4, 0.25, count),
    "exponential": lambda chance, count: chance.exponential(1.0, count),
    "some large": lambda chance, count: np.where(chance.random(count) < 0.05, 8.0, 0.6316),
}


def simulate(load: float, services: Times, nodes: int, chance: np.random.Generator, servers: int = 1) -> Times:
    """Latencies behind a balancer that picks two nodes, with replacement; a node serves first come, first served."""
    arrivals = np.cumsum(chance.exponential(1 / (load * nodes * servers), len(services))).tolist()
    picks = chance.integers(nodes, size=(len(services), 2)).tolist()
    in_flight, free = [0] * nodes, [[0.0] * servers for _ in range(nodes)]
    running: list[tuple[float, int]] = []
    latencies = []
    for now, (first, second), service in zip(arrivals, picks, services.tolist(), strict=True):
        while running and running[0][0] <= now:
            in_flight[heapq.heappop(running)[1]] -= 1
        node = first if in_flight[first] <= in_flight[second] else second
        end = max(now, free[node][0]) + service
        heapq.heapreplace(free[node], end)
        heapq.heappush(running, (end, node))
        in_flight[node] += 1
        latencies.append(end - now)
    return np.array(latencies[len(latencies) // 10 :])  # it begins empty


@cache
def measure(kind: str, percentile: float, servers: int = 1) -> Curve:
    """A curve fitted to one simulated node."""
    points = []
    for place, load in enumerate(MEASURED):
        chance = np.random.default_rng(place)
        services = SERVICES[kind](chance, 2 * REQUESTS)
        latencies = simulate(load, services, 1, chance, servers)
        points.append(Point(load, 1000 * float(np.percentile(latencies, percentile)), len(latencies)))
    return Curve.fit(points, percentile)


@pytest.mark.parametrize("kind", SERVICES)
def test_two_nodes_are_predicted_from_one(kind: str) -> None:
    curve = measure(kind, 99)
    for load in (0.5, 0.7):
        chance = np.random.default_rng(7)
        simulated = simulate(load, SERVICES[kind](chance, 2 * REQUESTS), 2, chance)
        assert curve.latency(load, 2) == pytest.approx(1000 * np.percentile(simulated, 99), rel=0.15)


@pytest.mark.parametrize("kind", SERVICES)
def test_many_nodes_are_never_promised_to_be_much_faster_than_they_are(kind: str) -> None:
    curve = measure(kind, 99)
    for nodes in (4, 16):
        chance = np.random.default_rng(8)
        simulated = 1000 * np.percentile(simulate(0.7, SERVICES[kind](chance, REQUESTS), nodes, chance), 99)
        assert 0.85 * simulated < curve.latency(0.7, nodes) < 1.45 * simulated


def test_nodes_that_serve_several_at_a_time_are_predicted_too() -> None:
    curve = measure("spread", 99, servers=2)
    chance = np.random.default_rng(9)
    simulated = simulate(0.7, SERVICES["spread"](chance, 2 * REQUESTS), 2, chance, servers=2)
    assert curve.latency(0.7, 2) == pytest.approx(1000 * np.percentile(simulated, 99), rel=0.15)


def test_the_wait_is_what_is_known_of_it() -> None:
    assert wait(0.7, 1, 99) == pytest.approx(np.log(70) / 0.3)  # M/M/1
    assert wait(0.2, 1, 50) == 0  # most do not wait
    field = 0.7**2 + 0.7**6 + 0.7**14 + 0.7**30  # the mean of very many
    assert wait(0.7, 10**9, 99) == pytest.approx(field / 0.49 * np.log(49), rel=1e-4)
    for load, replicas, simulated in ((0.7, 2, 8.83), (0.85, 2, 16.7), (0.9, 2, 23.2), (0.7, 4, 6.52), (0.85, 4, 10.6)):
        assert simulated < wait(load, replicas, 99) < 1.15 * simulated  # 1.5 million requests, exponential


loads = st.floats(0.01, 0.95)
curves = st.builds(
    lambda points, percentile: Curve.fit([Point(*each) for each in points], percentile),
    st.lists(
        st.tuples(loads, st.floats(1, 10_000), st.integers(1, 10_000)),
        min_size=3,
        max_size=9,
        unique_by=lambda it: it[0],
    ),
    st.sampled_from((50, 95, 99)),
)


@given(curves, loads, loads, st.integers(1, 1000), st.integers(1, 1000))
def test_more_load_is_never_faster_and_more_replicas_never_slower(
    curve: Curve, one: float, other: float, few: int, many: int
) -> None:
    low, high, few, many = min(one, other), max(one, other), min(few, many), max(few, many)
    slack = 1 + 1e-9
    assert curve.latency(low, few) <= curve.latency(high, few) * slack
    assert curve.latency(high, many) <= curve.latency(high, few) * slack
    assert curve.cautious(low, few) >= curve.latency(low, few) >= 0


def test_a_slow_repetition_does_not_move_the_curve_and_is_in_the_caution() -> None:
    points = [Point(load, 10 + 2 * wait(load, 1, 99), 1000) for load in (0.5, 0.7, 0.85)]
    slow = Point(0.7, 5 * points[1].latency_ms, 1000)
    found = Curve.fit([*points, points[1], slow], 99)
    assert (found.base_ms, found.slope_ms) == pytest.approx((10, 2))
    assert found.miss == pytest.approx(4)


@given(st.integers(1, 50))
def test_no_measured_point_is_above_the_cautious_curve(scale: int) -> None:
    points = [Point(0.3, 10.0 * scale, 50), Point(0.5, 30.0, 90), Point(0.9, 80.0 * scale, 10)]
    fitted = Curve.fit(points, 95)
    assert all(each.latency_ms <= fitted.cautious(each.load, 1) * (1 + 1e-9) for each in points)
