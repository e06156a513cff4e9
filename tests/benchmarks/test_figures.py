"""From samples to figures."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.figures import Sample, machine, summarize, table, versions


def test_exact_percentiles_rates_and_errors_of_the_requests_that_began_in_the_window() -> None:
    took = np.random.default_rng(0).permutation(np.arange(1, 101)) / 1000  # 1 to 100 ms
    inside = [Sample(3 + index / 10, seconds, 7, None) for index, seconds in enumerate(took)]
    failed = [Sample(4.0, 9.0, 5, "ServerTimeoutError"), Sample(5.0, 0.0, 5, "ServerOverloadedError")]
    failed += [Sample(12.9, 9.0, 5, "ServerTimeoutError")]
    outside = [Sample(2.999, 50.0, 7, None), Sample(13.0, 50.0, 7, None), Sample(0.0, 1.0, 7, "ServerError")]
    figures = summarize([*outside, *failed, *inside], 3, 10)
    assert figures["requests"] == 103
    assert figures["errors"] == 3
    assert figures["error_kinds"] == {"ServerTimeoutError": 2, "ServerOverloadedError": 1}
    assert figures["requests_per_s"] == pytest.approx(10.0)
    assert figures["pairs_per_s"] == pytest.approx(70.0)
    # Between neighbours: the 50th percentile of 1 to 100 lies halfway from the 50th to the 51st.
    assert figures["latency_ms"] == pytest.approx({"p50": 50.5, "p95": 95.05, "p99": 99.01, "mean": 50.5, "max": 100.0})


def test_a_slow_answer_after_the_end_is_counted() -> None:
    figures = summarize([Sample(3.5, 8.0, 2, None)], 3, 1)
    assert (figures["requests"], figures["latency_ms"]["max"]) == (1, 8000.0)


def test_the_table_shows_the_figures_and_each_kind_of_error() -> None:
    samples = [Sample(1.0, 0.25, 10, None), Sample(1.0, 0.1, 3, "ServerTimeoutError")]
    head, row, errors = table(summarize(samples, 0, 2) | {"users": 4}).splitlines()
    assert " ".join(head.split()) == "users requests errors requests/s pairs/s p50 ms p95 ms p99 ms"
    assert row.split() == ["4", "2", "1", "0.5", "5.0", "250.0", "250.0", "250.0"]
    assert len(head) == len(row)
    assert errors == "1 x ServerTimeoutError"


def test_without_an_answer_there_is_no_latency_instead_of_zero() -> None:
    figures = summarize([Sample(1.0, 0.1, 3, "ServerTimeoutError")], 0, 2)
    assert figures["latency_ms"] is None
    assert table(figures | {"users": 1}).splitlines()[1].split()[-3:] == ["-", "-", "-"]


def test_what_it_was_measured_on_is_named() -> None:
    assert machine()["cores"] > 0
    assert machine()["memory_gib"] > 0.1
    assert versions()["locust"].startswith("2.")
    assert json.loads(json.dumps(machine() | versions()))
