"""From samples to figures."""

from __future__ import annotations

import heapq
import random

import numpy as np
import pytest

from benchmarks.measure.environment import find_environment
from benchmarks.measure.recording import LARGEST, MIDDLE, SMALL, Sample
from benchmarks.measure.stats import ClientLimits, summarize, why_client_bound


def test_exact_percentiles_and_errors_of_the_requests_that_were_to_begin_in_the_window() -> None:
    latency = np.random.default_rng(0).permutation(np.arange(1, 101)) / 1000  # 1 to 100 ms
    inside = [Sample(3 + index / 10, 0.0, seconds, 7, None, SMALL) for index, seconds in enumerate(latency)]
    failed = [
        Sample(4.0, 0.0, 9.0, 5, "ServerTimeoutError", SMALL),
        Sample(5.0, 0.0, 0.0, 5, "ServerOverloadedError", SMALL),
    ]
    failed += [Sample(12.9, 0.0, 9.0, 5, "ServerTimeoutError", SMALL)]
    outside = [Sample(2.999, 0.0, 50.0, 7, None, SMALL), Sample(13.0, 0.0, 50.0, 7, None, SMALL)]
    outside += [Sample(0.0, 0.0, 4.0, 7, "ServerError", SMALL)]  # it ended in the window, but is not of it
    step = summarize([*outside, *failed, *inside], 3, 10)
    assert step.requests == 103
    assert step.offered_per_second == pytest.approx(10.3)
    assert step.errors == 3
    assert step.error_kinds == {"ServerTimeoutError": 2, "ServerOverloadedError": 1}
    assert step.requests_per_second == pytest.approx(10.0)
    assert step.pairs_per_second == pytest.approx(70.0)
    # Between neighbours: the 50th percentile of 1 to 100 lies halfway from the 50th to the 51st.
    assert step.latency
    assert step.latency.percentiles == pytest.approx({"p50": 50.5, "p95": 95.05, "p99": 99.01})
    assert (step.latency.mean, step.latency.max) == pytest.approx((50.5, 100.0))
    assert step.latencies_ms == pytest.approx(range(1, 101))


def test_throughput_is_what_was_answered_in_the_window_whenever_it_was_to_begin() -> None:
    samples = [
        Sample(1.0, 0.0, 2.5, 1, None, SMALL),  # ends at 3.5
        Sample(2.0, 0.0, 1.0, 10, None, SMALL),  # at 3.0: the first moment of the window
        Sample(3.2, 0.0, 0.7, 100, None, SMALL),  # at 3.9
        Sample(3.9, 0.5, 1.0, 1000, None, SMALL),  # at 4.9; its delay is part of its latency
        Sample(4.5, 0.0, 0.5, 10_000, None, SMALL),  # at 5.0: the first moment after the window
        Sample(1.0, 0.0, 1.5, 100_000, None, SMALL),  # at 2.5
        Sample(3.5, 0.0, 0.1, 1_000_000, "ServerError", SMALL),  # no answer
    ]
    step = summarize(samples, 3, 2)
    assert step.pairs_by_second == (111, 1000)
    assert step.pairs_per_second == pytest.approx(1111 / 2)
    assert step.requests_per_second == pytest.approx(4 / 2)
    assert step.requests == 4
    assert step.offered_per_second == pytest.approx(4 / 2)
    assert step.latencies_ms == (500, 700, 1000)


def test_where_requests_take_turns_throughput_is_of_whole_turns() -> None:
    # Forty requests, two of them twenty times as large as most; eight users, two of whom are served at a time.
    turn = [1] * 30 + [3] * 8 + [20] * 2
    random.Random(0).shuffle(turn)
    free, users, samples = [0.0, 0.0], [0.0] * 8, []
    for pairs in turn * 100:
        begin = heapq.heappop(users)
        end = max(begin, heapq.heappop(free)) + 0.02 * pairs
        samples.append(Sample(begin, 0.0, end - begin, pairs, None, SMALL))
        heapq.heappush(free, end)
        heapq.heappush(users, end)
    begins = [float(begin) for begin in np.arange(5, 12, 0.17)]
    assert [summarize(samples, begin, 8, cycle=40).pairs_per_second for begin in begins] == pytest.approx(
        [100] * len(begins), rel=0.001
    )
    counted = [summarize(samples, begin, 8).pairs_per_second for begin in begins]
    assert max(counted) - min(counted) > 4
    begin = float(max(sample.intended_start for sample in samples)) - 5  # then the server is gone
    gone = summarize(samples, begin, 10, cycle=40)
    assert gone.pairs_per_second == sum(gone.pairs_by_second) / 10 < 60
    partial = summarize(samples, 5.0, 8, cycle=1000)  # the window holds no turn
    assert partial.pairs_per_second == sum(partial.pairs_by_second) / 8


def test_a_slow_answer_after_the_end_is_in_the_latencies_but_not_in_the_throughput() -> None:
    step = summarize([Sample(3.5, 0.0, 8.0, 2, None, SMALL)], 3, 1)
    assert (step.requests, step.latency.max) == (1, 8000.0)
    assert (step.requests_per_second, step.pairs_by_second) == (0, (0,))


def test_the_start_delay_is_that_of_all_requests_of_the_window() -> None:
    samples = [
        Sample(3.0, 0.01, 0.1, 1, None, SMALL),
        Sample(3.1, 0.03, 0.1, 1, "ServerError", SMALL),
        Sample(9.0, 5.0, 6.0, 1, None, SMALL),
    ]
    delay = summarize(samples, 3, 1).start_delay
    assert delay
    assert (delay.max, delay.mean) == pytest.approx((30, 20))
    assert summarize(samples, 4, 1).start_delay is None


@pytest.mark.parametrize(
    ("busy", "late_ms", "latency_ms", "reason"),
    [
        (0.8, 0.0, 100.0, None),
        (0.81, 0.0, 100.0, "the generator's thread was busy 81% of the time"),
        (0.1, 25.0, 100.0, None),  # a quarter of the median
        (0.1, 26.0, 100.0, "requests started 26 ms late (p95), with a median latency of 100 ms"),
        (0.1, 4.9, 1.0, None),  # late for what is so fast, but too little to count
        (0.1, 5.1, 1.0, "requests started 5 ms late (p95), with a median latency of 1 ms"),
    ],
)
def test_a_step_is_client_bound_if_the_generator_is_busy_or_late(
    busy: float, late_ms: float, latency_ms: float, reason: str | None
) -> None:
    # The delay counts by its p95, the latency by its p50: other percentiles would say otherwise.
    delays = [0.0] * 94 + [late_ms / 1000] * 4 + [1.0] * 2
    latencies = [latency_ms / 1000] * 60 + [9.0] * 40
    assert why_client_bound(busy, delays, latencies, ClientLimits()) == reason
    lenient = ClientLimits(busy=0.9, delay_ms=1000.0)
    assert why_client_bound(busy, delays, latencies, lenient) is None


def test_without_any_answer_a_late_generator_is_not_blamed() -> None:
    assert summarize([Sample(1.0, 2.0, 2.0, 3, "ConnectionFailedError", SMALL)], 0, 2).client_bound is None


def test_latencies_by_the_size_of_a_request() -> None:
    samples = [Sample(1.0, 0.0, latency / 1000, 1, None, SMALL) for latency in (10, 20, 30)]
    samples += [Sample(1.0, 0.0, 0.5, 1, None, LARGEST), Sample(1.0, 0.0, 9.0, 1, "ServerTimeoutError", MIDDLE)]
    samples += [Sample(2.5, 0.0, 70.0, 1, None, SMALL)]
    found = summarize(samples, 0, 2).latency_by_size
    assert found[MIDDLE] is None
    assert found[SMALL].percentiles == pytest.approx({"p50": 20, "p95": 29, "p99": 29.8})
    assert (found[SMALL].mean, found[SMALL].max, found[LARGEST]["p50"]) == (20, 30, 500)


def test_without_an_answer_there_is_no_latency_instead_of_zero() -> None:
    failed = summarize([Sample(1.0, 0.0, 0.1, 3, "ServerTimeoutError", SMALL)], 0, 2, users=1)
    assert (failed.latency, failed.latencies_ms, failed.errors) == (None, (), 1)


def test_what_it_was_measured_on_is_named() -> None:
    environment = find_environment()
    assert environment.machine.cores > 0
    assert environment.machine.memory_gib > 0.1
    assert environment.versions["locust"].startswith("2.")
    assert f"{environment.machine.cores} cores" in environment.machine.processors
