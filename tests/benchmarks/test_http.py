"""`python -m benchmarks http` with a real tritonserver and `clickbert serve`, on a tiny model's tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import http
from tests.benchmarks.conftest import command

pytestmark = pytest.mark.slow


def test_both_ways_are_measured_and_their_difference_told(published_repository: Path, published_log: Path) -> None:
    given = ("--repository", published_repository, "--data", published_log)
    ended = command("http", *given, calls=20, warm_up=3)
    assert ended.code == 0, ended.err
    *shown, last = ended.out.splitlines()
    figures = json.loads(last)
    assert list(figures["ways"]) == [http.DIRECT, http.OVER_HTTP]
    direct, over = (figures["ways"][way]["percentiles"] for way in figures["ways"])
    assert all(figures["added_ms"][name] == pytest.approx(over[name] - direct[name]) for name in direct)
    assert f"adds {figures['added_ms']['p50']:.2f} ms" in shown[-1]
