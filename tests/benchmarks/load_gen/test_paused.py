"""Generators that rest between the rounds of a closed loop, on the real server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.load_gen import pool as generator
from benchmarks.load_gen.pool import Load, resting
from benchmarks.load_gen.target import LoadError, Target
from serving.server import Server
from tests.benchmarks.conftest import locusts, short_loads
from tests.benchmarks.test_load import BROKEN_USER

MODEL = "clickbert_onnx"


@pytest.fixture(autouse=True)
def short(tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    with short_loads(tmp_path / "logs") as patch:
        yield patch


@pytest.fixture
def target(server: Server) -> Target:
    return Target(server.addresses.grpc)


def test_they_send_in_their_rounds_and_rest_between_them(target: Target, click_log: Path, tmp_path: Path) -> None:
    load = Load(click_log, users=4, processes=2, distinct=5)

    def asked() -> int:
        return target.statistics(MODEL)["requests"]

    with resting(target, MODEL, load, tmp_path) as send:
        running = locusts()
        assert len(running) == 2
        alone = send(1, 1)  # of one of the two generators
        before = asked()
        first = send(4, 2)
        once = asked()
        spent = [sum(process.cpu_times()[:2]) for process in running]
        time.sleep(1.5)
        assert asked() == once, "they rest"
        assert all(sum(process.cpu_times()[:2]) - now < 0.3 for process, now in zip(running, spent, strict=True))
        second = send(4, 2)
        assert asked() > once
        twice = asked()
    assert not locusts()
    assert (alone["users"], alone["duration_s"], alone["generator"]["processes"]) == (1, 1, 1)
    assert alone["requests"] > 1
    for figures in (first, second):
        assert (figures["users"], figures["errors"], figures["duration_s"]) == (4, 0, 2)
        assert figures["requests"] > 4
        assert 0 < figures["generator"]["cores"] < 2
    # Not all of a round's seconds are measured, and nothing of the first round is in the second's figures.
    assert first["requests"] <= once - before
    assert second["requests"] <= twice - once


def test_one_that_dies_while_it_rests_is_an_error(target: Target, click_log: Path, tmp_path: Path) -> None:
    load = Load(click_log, users=1)
    with resting(target, MODEL, load, tmp_path) as send:
        locusts()[0].kill()
        time.sleep(1)
        with pytest.raises(LoadError, match=r"Locust ended with code -9 and without .*generator-0\.log"):
            send(1, 1)


def test_a_bug_in_a_round_ends_it_and_is_shown(
    target: Target, click_log: Path, tmp_path: Path, short: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN_USER)
    short.setattr(generator, "LOCUSTFILE", tmp_path / "broken.py")
    with resting(target, MODEL, Load(click_log, users=2), tmp_path) as send:
        with pytest.raises(LoadError, match=r"(?s)Locust ended with code 1 .*a bug of the load"):
            send(1, 1)


def test_one_that_cannot_start_is_an_error(target: Target, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"(?s)Locust ended with code 1 .*no-such-log"):
        with resting(target, MODEL, Load(tmp_path / "no-such-log.jsonl", users=1), tmp_path):
            raise AssertionError("it started")
