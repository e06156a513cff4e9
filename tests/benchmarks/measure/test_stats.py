"""From samples to figures."""

from __future__ import annotations

import heapq
import json
import random

import numpy as np
import pytest

from benchmarks.load_gen.workload import CLASSES, LARGEST, MIDDLE, SMALL
from benchmarks.measure.stats import Sample, by_size, machine, summarize, table, versions, what_limits_the_generator


def test_exact_percentiles_and_errors_of_the_requests_that_were_to_begin_in_the_window() -> None:
    took = np.random.default_rng(0).permutation(np.arange(1, 101)) / 1000  # 1 to 100 ms
    inside = [Sample(3 + index / 10, 0.0, seconds, 7, None, SMALL) for index, seconds in enumerate(took)]
    failed = [
        Sample(4.0, 0.0, 9.0, 5, "ServerTimeoutError", SMALL),
        Sample(5.0, 0.0, 0.0, 5, "ServerOverloadedError", SMALL),
    ]
    failed += [Sample(12.9, 0.0, 9.0, 5, "ServerTimeoutError", SMALL)]
    outside = [Sample(2.999, 0.0, 50.0, 7, None, SMALL), Sample(13.0, 0.0, 50.0, 7, None, SMALL)]
    outside += [Sample(0.0, 0.0, 4.0, 7, "ServerError", SMALL)]  # it ended in the window, but is not of it
    figures = summarize([*outside, *failed, *inside], 3, 10)
    assert figures["requests"] == 103
    assert figures["offered_per_s"] == pytest.approx(10.3)
    assert figures["errors"] == 3
    assert figures["error_kinds"] == {"ServerTimeoutError": 2, "ServerOverloadedError": 1}
    assert figures["requests_per_s"] == pytest.approx(10.0)
    assert figures["pairs_per_s"] == pytest.approx(70.0)
    # Between neighbours: the 50th percentile of 1 to 100 lies halfway from the 50th to the 51st.
    assert figures["latency_ms"] == pytest.approx({"p50": 50.5, "p95": 95.05, "p99": 99.01, "mean": 50.5, "max": 100.0})
    assert figures["latencies_ms"] == pytest.approx(range(1, 101))


def test_throughput_is_what_was_answered_in_the_window_whenever_it_was_to_begin() -> None:
    samples = [
        Sample(1.0, 0.0, 2.5, 1, None, SMALL),  # ends at 3.5
        Sample(2.0, 0.0, 1.0, 10, None, SMALL),  # at 3.0: the first moment of the window
        Sample(3.2, 0.0, 0.7, 100, None, SMALL),  # at 3.9
        Sample(3.9, 0.5, 1.0, 1000, None, SMALL),  # at 4.9; its lag is part of what it took
        Sample(4.5, 0.0, 0.5, 10_000, None, SMALL),  # at 5.0: the first moment after the window
        Sample(1.0, 0.0, 1.5, 100_000, None, SMALL),  # at 2.5
        Sample(3.5, 0.0, 0.1, 1_000_000, "ServerError", SMALL),  # no answer
    ]
    figures = summarize(samples, 3, 2)
    assert figures["pairs_by_second"] == [111, 1000]
    assert figures["pairs_per_s"] == pytest.approx(1111 / 2)
    assert figures["requests_per_s"] == pytest.approx(4 / 2)
    assert figures["requests"] == 4
    assert figures["offered_per_s"] == pytest.approx(4 / 2)
    assert figures["latencies_ms"] == [500, 700, 1000]


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
    assert [summarize(samples, begin, 8, 40)["pairs_per_s"] for begin in begins] == pytest.approx(
        [100] * len(begins), rel=0.001
    )
    counted = [summarize(samples, begin, 8)["pairs_per_s"] for begin in begins]
    assert max(counted) - min(counted) > 4
    begin = float(max(sample.planned for sample in samples)) - 5  # then the server is gone
    gone = summarize(samples, begin, 10, 40)
    assert gone["pairs_per_s"] == sum(gone["pairs_by_second"]) / 10 < 60
    few = summarize(samples, 5.0, 8, 1000)  # the window holds no turn
    assert few["pairs_per_s"] == sum(few["pairs_by_second"]) / 8


def test_a_slow_answer_after_the_end_is_in_the_latencies_but_not_in_the_throughput() -> None:
    figures = summarize([Sample(3.5, 0.0, 8.0, 2, None, SMALL)], 3, 1)
    assert (figures["requests"], figures["latency_ms"]["max"]) == (1, 8000.0)
    assert (figures["requests_per_s"], figures["pairs_by_second"]) == (0, [0])


def test_the_lag_is_that_of_all_requests_of_the_window() -> None:
    samples = [
        Sample(3.0, 0.01, 0.1, 1, None, SMALL),
        Sample(3.1, 0.03, 0.1, 1, "ServerError", SMALL),
        Sample(9.0, 5.0, 6.0, 1, None, SMALL),
    ]
    assert summarize(samples, 3, 1)["lag_ms"]["max"] == pytest.approx(30)
    assert summarize(samples, 3, 1)["lag_ms"]["mean"] == pytest.approx(20)
    assert summarize(samples, 4, 1)["lag_ms"] is None


@pytest.mark.parametrize(
    ("busy", "late", "latency", "said"),
    [
        (0.8, 0.0, 100.0, None),
        (0.81, 0.0, 100.0, "its thread was busy 81% of the time"),
        (0.1, 25.0, 100.0, None),  # a quarter of the median
        (0.1, 26.0, 100.0, "it began requests 26 ms late (p95), where half are answered in 100 ms"),
        (0.1, 4.9, 1.0, None),  # late for what is so fast, but too little to mind
        (0.1, 5.1, 1.0, "it began requests 5 ms late (p95), where half are answered in 1 ms"),
    ],
)
def test_the_generator_is_the_limit_where_it_is_busy_or_late(
    busy: float, late: float, latency: float, said: str | None
) -> None:
    # The lag counts by its p95, the latency by its p50: the other percentiles would say otherwise.
    lags = {"p50": 0.0, "p95": late, "p99": late * 9, "mean": 0.0, "max": late * 9}
    latencies = {"p50": latency, "p95": latency * 9, "p99": latency * 9, "mean": latency * 9, "max": latency * 9}
    assert what_limits_the_generator({"lag_ms": lags, "latency_ms": latencies}, busy) == said


def test_without_any_answer_a_late_generator_is_not_blamed() -> None:
    figures = summarize([Sample(1.0, 2.0, 2.0, 3, "ConnectionFailedError", SMALL)], 0, 2)
    assert what_limits_the_generator(figures, 0.1) is None


def step(samples: list[Sample], limit: str | None = None, **load: object) -> dict:
    return {"users": None, "rate": None, **load} | summarize(samples, 0, 2) | {"generator": {"limit": limit}}


SAMPLES = [Sample(1.0, 0.0, 0.25, 10, None, SMALL), Sample(1.0, 0.0, 0.1, 3, "ServerTimeoutError", SMALL)]


def test_latencies_by_the_size_of_a_request() -> None:
    small = [Sample(1.0, 0.0, took / 1000, 1, None, SMALL) for took in (10, 20, 30)]
    others = [Sample(1.0, 0.0, 0.5, 1, None, LARGEST), Sample(1.0, 0.0, 9.0, 1, "ServerTimeoutError", MIDDLE)]
    outside = [Sample(2.5, 0.0, 70.0, 1, None, SMALL)]
    alone, loaded = step(small, users=1), step([*small, *others, *outside], rate=12.5)
    found = loaded["latency_by_size_ms"]
    assert found[SMALL] == pytest.approx({"p50": 20, "p95": 29, "p99": 29.8, "mean": 20, "max": 30})
    assert (found[MIDDLE], found[LARGEST]["p50"]) == (None, 500)
    steps = {"closed": [alone, step(small, users=4)], "open": [loaded, step(small, "busy", rate=20.0)]}
    heads, rows = by_size(steps)
    assert heads == ["", "one user", "12.5/s", "20.0/s"]
    assert [row[0] for row in rows] == [*CLASSES, "all"]
    assert rows[0] == [SMALL, "20 / 29 / 30", "20 / 29 / 30", "-"]
    assert rows[2] == [LARGEST, "-", "500 / 500 / 500", "-"]
    assert rows[3][1:] == ["20 / 29 / 30", "25 / 429 / 486", "-"]


def test_the_table_shows_the_figures_and_each_kind_of_error() -> None:
    head, first, second, errors, others = table([step(SAMPLES, users=4), step(SAMPLES * 3, rate=12.5)]).splitlines()
    assert " ".join(head.split()) == "load requests errors requests/s pairs/s p50 ms p95 ms p99 ms"
    assert first.split() == ["4", "users", "2", "1", "0.5", "5", "250.0", "250.0", "250.0"]
    assert second.split() == ["12.5/s", "6", "3", "1.5", "15", "250.0", "250.0", "250.0"]
    assert len(head) == len(first) == len(second)
    assert errors == "4 users: 1 x ServerTimeoutError"
    assert others == "12.5/s: 3 x ServerTimeoutError"


def test_the_table_hides_the_figures_of_a_limited_step_and_says_why() -> None:
    shown = table([step(SAMPLES[:1], users=1), step(SAMPLES[:1], "its thread was busy 99%", users=8)]).splitlines()
    assert shown[1].split() == ["1", "users", "1", "0", "0.5", "5", "250.0", "250.0", "250.0"]
    cells, reason = shown[2].split("  the generator is the limit: ")
    assert cells.split() == ["8", "users", "1", "0", "-", "-", "-", "-", "-"]
    assert reason == "its thread was busy 99%"


def test_without_an_answer_there_is_no_latency_instead_of_zero() -> None:
    failed = step([Sample(1.0, 0.0, 0.1, 3, "ServerTimeoutError", SMALL)], users=1)
    assert failed["latency_ms"] is None
    assert failed["latencies_ms"] == []
    assert table([failed]).splitlines()[1].split()[-3:] == ["-", "-", "-"]


def test_what_it_was_measured_on_is_named() -> None:
    assert machine()["cores"] > 0
    assert machine()["memory_gib"] > 0.1
    assert versions()["locust"].startswith("2.")
    assert json.loads(json.dumps(machine() | versions()))
