"""`python -m benchmarks soak`: what counts as growth, and short runs on a tiny model."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.soak import traffic
from benchmarks.soak.growth import LEAST, Sample, judge
from tests.benchmarks.conftest import MODEL, Ended, command

FLAT = Sample(0.0, 200.0, 90, 110, 2.0, 100.0, 13, 14)


def samples(count: int = 40, **growing: float) -> list[Sample]:
    """One every ten seconds, with noise; `growing` figures grow by so much from the first to the last."""

    def at(place: int) -> Sample:
        grown = {name: getattr(FLAT, name) + by * place / (count - 1) for name, by in growing.items()}
        noise = {"client_memory": FLAT.client_memory + place % 3} if "client_memory" not in growing else {}
        return replace(FLAT, seconds=10.0 * place, **grown, **noise)

    return [at(place) for place in range(count)]


def growing(found: list[Sample]) -> list[str]:
    return [each.name for each in judge(found) if each.grows]


def test_noise_and_what_grows_at_first_is_flat() -> None:
    found = samples()
    warm = [replace(each, server_memory=100.0 + 10 * place) for place, each in enumerate(found[:10])]
    spike = replace(found[-1], server_memory=400.0, server_descriptors=200)
    assert growing([*warm, *found[10:-1], spike]) == []


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("server_memory", 20),
        ("shared_memory", 1),
        ("client_memory", 10),
        ("server_descriptors", 10),
        ("client_threads", 8),
    ],
)
def test_what_grows_steadily_grows(name: str, by: float) -> None:
    assert growing(samples(**{name: by})) == [name]


def test_of_few_samples_nothing_is_said() -> None:
    assert {each.growth for each in judge(samples(LEAST - 1, server_memory=1000))} == {None}


def run(repository: Path, log: Path, minutes: float) -> Ended:
    given = ("--repository", repository, "--data", log, "--model", MODEL, "--minutes", minutes)
    return command("soak", *given, interval=1.0)


@pytest.mark.slow
def test_a_short_run_has_all_figures_and_the_same_scores(published_repository: Path, published_log: Path) -> None:
    ended = run(published_repository, published_log, 0.25)
    found = json.loads(ended.out.splitlines()[-1])
    assert len(found["samples"]) == found["scored"] > 1, ended.err
    assert found["faults"] == {}
    assert found["changed"] == 0
    assert all(found["calls"][kind] for kind in ("rank", "rank_many", "hurry", "come_and_go", "err", "give_up"))
    assert 0 < found["samples"][0]["shared_memory"] < found["samples"][0]["server_memory"]
    assert found["samples"][0]["server_descriptors"] > 10  # how many more: Triton opens some for each core
    assert "server memory, MB" in ended.out
    assert ended.code == int(len(found["samples"]) < LEAST or any(each["grows"] for each in found["growth"]))


@pytest.fixture
def listening() -> Iterator[None]:
    """Ctrl-C counts, also where the tests run in a shell's background job, which ignores it."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.slow
@pytest.mark.usefixtures("listening")
def test_ctrl_c_ends_it_with_the_figures_so_far(published_repository: Path, published_log: Path) -> None:
    timer = threading.Timer(15, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    ended = run(published_repository, published_log, 10)
    timer.join()
    found = json.loads(ended.out.splitlines()[-1])
    assert "soak: ended early" in ended.err
    assert found["seconds"] < 120
    assert found["samples"]


@pytest.mark.slow
def test_a_wrong_score_fails_the_run(
    published_repository: Path, published_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "TOLERANCE", -1.0)
    ended = run(published_repository, published_log, 0.05)
    assert ended.code == 1
    assert "should not have failed: rank: AssertionError: wrong scores" in ended.out
