"""`python -m benchmarks bulk` with a real tritonserver, on a tiny model: both parts have figures, in turns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.load_gen.target import Target
from tests.benchmarks.conftest import LIMITS, MODEL, TIMING, command

pytestmark = pytest.mark.slow


def test_both_parts_have_figures(target: Target, published_log: Path) -> None:
    given = ("--url", target.connection.url, "--data", published_log, "--model", MODEL, "--users", 4)
    ended = command("bulk", *given, "--duration", 2, "--rounds", 2, timing=TIMING, limits=LIMITS)
    assert ended.code == 0, ended.err
    figures = json.loads(ended.out.splitlines()[-1])
    rounds = figures["rounds"]
    assert len(rounds) == 2 and all(each["load"] > 0 and each["bulk"] > 0 for each in rounds)
    assert figures["ratio"] == pytest.approx(
        sum(each["bulk"] for each in rounds) / sum(each["load"] for each in rounds)
    )
    assert f"{figures['ratio']:.1%}" in ended.out
