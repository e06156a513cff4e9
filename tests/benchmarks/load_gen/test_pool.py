"""How generators are started, instructed and read, and how their samples become one round's figures: with fake ones."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks import BenchmarkError
from benchmarks.load_gen import pool as pooling
from benchmarks.load_gen.pool import Load, Timing, combine, command, open_pool, share
from benchmarks.load_gen.target import Counts, Target, split_time
from benchmarks.load_gen.workload import Selection
from benchmarks.measure.recording import SMALL, Recording, Sample
from benchmarks.measure.schema import Step, TimeSplit
from clickbert.connection import Connection

# Listens as the worker does, and writes a scripted recording.
GENERATOR = """
import json, os, pathlib, sys
recording, stem, rounds = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]), 0
stem.with_suffix(".ready").touch()
orders = []
for line in sys.stdin:
    orders.append(line.strip())
    if json.loads(line)["users"] == 0:
        names = "CLICKBERT_TOKEN", "LOCUST_RATE"
        messages = {"orders": "; ".join(orders)} | {name: str(os.environ.get(name)) for name in names}
        part = stem.with_suffix(".part")
        part.write_text(json.dumps(recording | {"first_messages": messages}))
        part.rename(stem.with_suffix(f".{rounds}.json"))
        rounds += 1
"""
NOW = Timing(warm_up=0, resume=0, run_out=0, patience=10)
LOAD = Load(Selection(Path("log")))
TARGET = Target(Connection("127.0.0.1:1"))


def recording(started: float, *samples: tuple[float, float, int], **others: Any) -> Recording:
    """Of samples of an intended start, a latency and pairs."""
    made = [Sample(start, 0.0, latency, pairs, None, SMALL) for start, latency, pairs in samples]
    facts: dict[str, Any] = {"first_messages": {}, "distinct": 3, "busy": 0.1, "cores": 0.2} | others
    return Recording(samples=made, started=started, **facts)


@pytest.fixture
def generators(monkeypatch: pytest.MonkeyPatch) -> list[Recording]:
    """What generators are to record."""
    recordings: list[Recording] = []

    def fake(_target: Target, _model: str, _load: Load, stem: Path, number: int, _users: int) -> list[str]:
        return [sys.executable, "-S", "-c", GENERATOR, recordings[number].to_json(), str(stem)]

    monkeypatch.setattr(pooling, "command", fake)
    return recordings


def test_rounds_are_sent_to_as_many_generators_as_have_users(generators: list[Recording], tmp_path: Path) -> None:
    generators += [recording(0.0, (0.5, 0.1, 7)), recording(0.0, (0.5, 0.1, 10), (0.6, 0.1, 100))]
    load = Load(LOAD.selection, processes=3, timing=NOW)  # of which two are needed
    with open_pool(TARGET, "model", load, tmp_path, users=2) as pool:
        alone, both = pool.send(1, users=1), pool.send(1, users=2)
    assert (alone.users, alone.requests, alone.generator.processes) == (1, 1, 1)
    assert (both.users, both.requests, both.generator.processes) == (2, 3, 2)
    assert alone.generator.first_messages["orders"] == '{"users": 1}; {"users": 0}'
    generators.append(generators[0])
    with open_pool(TARGET, "model", load, tmp_path) as pool:
        opened = pool.send(1, rate=9.0)
    assert (opened.users, opened.rate, opened.requests) == (None, 9.0, 4)
    order = json.loads(opened.generator.first_messages["orders"].partition("; ")[0])
    assert order == {"users": 1, "rate": 3.0, "parts": [0, 1, 0]}


def test_users_that_were_paused_need_less_warm_up(
    generators: list[Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows: list[float] = []
    real = pooling.combine

    def remember(recordings: list[Recording], load: Load, warm_up: float, *rest: Any) -> Step:
        windows.append(warm_up)
        return real(recordings, load, warm_up, *rest)

    monkeypatch.setattr(pooling, "combine", remember)
    generators.append(recording(0.0))
    load = Load(LOAD.selection, timing=Timing(warm_up=1, resume=0.25, run_out=0))
    with open_pool(TARGET, "model", load, tmp_path, users=1) as pool:
        pool.send(1, users=1)
        pool.send(1, users=1)
    assert windows == [1, 0.25]


def test_the_samples_of_all_are_on_the_clock_of_the_last() -> None:
    # The second began 0.5 s later: what was to start at 1.4 s of the first was to start at 0.9 s of the common clock.
    one = recording(100.0, (1.4, 0.2, 1), (1.5, 0.2, 10), (3.5, 0.1, 100))
    other = recording(100.5, (1.0, 0.1, 1000), (3.0, 0.1, 10_000), busy=0.3, cores=0.4)
    step = combine([one, other], LOAD, 1.0, 2, users=2, rate=None)
    assert step.requests == 2
    assert sum(step.pairs_by_second) == 1011
    assert (step.generator.processes, step.generator.busy, step.generator.cores) == (2, 0.3, pytest.approx(0.6))


def test_a_turn_is_that_of_all_generators_together() -> None:
    # Each sends three requests in turn, one of nine pairs; the window of two seconds holds one turn of both.
    turn = [(1.0 + 0.6 * place, 0.01, 9 if place == 1 else 1) for place in range(4)]
    recordings = [recording(0.0, *turn), recording(0.0, *turn)]
    step = combine(recordings, LOAD, 1.0, 2, users=2, rate=None)
    assert (step.requests_per_second, step.pairs_per_second) == pytest.approx((6 / 1.8, 22 / 1.8))
    apart = combine(recordings, LOAD, 1.0, 2, users=None, rate=4.0)  # in an open loop they do not take turns
    assert apart.requests_per_second == pytest.approx(8 / 2)


def test_generators_that_began_apart_are_an_error() -> None:
    with pytest.raises(BenchmarkError, match=r"began 1\.1 s apart.*fewer --processes"):
        combine([recording(0.0, (1.0, 1.0, 1)), recording(1.1)], LOAD, 1.0, 2, users=2, rate=None)


def test_a_recording_is_read_as_it_was_written() -> None:
    written = recording(1.5, (1.0, 0.25, 3), first_messages={"ServerError": "no"})
    assert Recording.from_json(written.to_json().encode()) == written


def test_a_generator_that_ends_is_an_error_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooling, "command", lambda *_: [sys.executable, "-S", "-c", "print('a bug')"])
    with pytest.raises(BenchmarkError, match=r"(?s)ended with code 0 and without results; its log, .*ends:\na bug"):
        with open_pool(TARGET, "model", LOAD, tmp_path, users=1):
            raise AssertionError("it listened")


def test_a_generator_that_hangs_is_an_error_and_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(pooling, "command", lambda *_: ["sleep", "60"])
    make = pooling.Generator.__init__

    def remember(self: pooling.Generator, process: Any, stem: Path) -> None:
        started.append(process)
        make(self, process, stem)

    monkeypatch.setattr(pooling.Generator, "__init__", remember)
    load = Load(LOAD.selection, processes=2, timing=Timing(patience=0))
    with pytest.raises(BenchmarkError, match=r"Locust has not answered for 0 s; its log: .*generator-0\.log"):
        with open_pool(TARGET, "model", load, tmp_path, users=2):
            raise AssertionError("it listened")
    assert [process.poll() for process in started] == [-9, -9]


def test_nothing_of_the_shell_is_in_a_generators_way(
    generators: list[Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLICKBERT_TOKEN", "of another server")  # this one was started here, and has none
    monkeypatch.setenv("LOCUST_RATE", "7")
    generators.append(recording(0.0))
    with open_pool(TARGET, "model", Load(LOAD.selection, timing=NOW), tmp_path, users=1) as pool:
        messages = pool.send(1, users=1).generator.first_messages
    assert (messages["CLICKBERT_TOKEN"], messages["LOCUST_RATE"]) == ("", "None")


def test_users_seeds_and_the_connection_are_handed_on() -> None:
    for users, processes in ((7, 3), (4, 4), (16, 1)):
        shares = [share(users, processes, number) for number in range(processes)]
        assert sum(shares) == users
        assert max(shares) - min(shares) <= 1
    load = Load(Selection(Path("log"), 20, "titles"), processes=2, distinct=40, seed=5)
    target = Target(Connection("a:1"))
    words = [command(target, "m", load, Path("f"), number, 3) for number in (0, 1)]
    assert all("--url=a:1" in each for each in words)
    options = [dict(pairwise(each)) for each in words]
    assert [each["--seed"] for each in options] == ["5", "6"]  # other seeds have other moments
    given = {"--candidates": "20", "--distinct": "40", "--texts": "titles", "--users": "3", "--paused": "f"}
    for name, value in given.items():
        assert {each[name] for each in options} == {value}


def test_the_split_of_a_requests_time_adds_up() -> None:
    counted = Counts(requests=9, queue=7.008, compute=6.028) - Counts(requests=5, queue=7.0, compute=6.0)
    assert split_time(counted, 12.0) == TimeSplit(pytest.approx(2.0), pytest.approx(7.0), pytest.approx(3.0))
    short = split_time(counted, 5.0)
    assert short and short.rest == 0
    assert split_time(Counts(), 12.0) is None
    assert split_time(counted, None) is None
