"""How generators are started, and what of their samples is one run's figures: with generators that do nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks import load
from benchmarks.load_gen import pool as generator
from benchmarks.load_gen.pool import Load, run_load
from benchmarks.load_gen.target import LoadError, Target
from benchmarks.load_gen.workload import SMALL

# Writes how it was called, and what it was told to have recorded.
GENERATOR = """
import json, os, pathlib, sys
recorded = json.loads(sys.argv[1])
names = "CLICKBERT_TOKEN", "LOCUST_RATE"
recorded["first_messages"] = {name: str(os.environ.get(name)) for name in names}
pathlib.Path(sys.argv[2]).write_text(json.dumps(recorded))
"""


SOUND = None, SMALL  # no error, and a size


def recorded(started: float, *samples: list, **others: Any) -> dict:
    facts = {"samples": list(samples), "started": started, "lasted": 60.0, "busy": 0.1, "cores": 0.2, "distinct": 3}
    return facts | others


@pytest.fixture
def generators(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What generators are to record."""
    told: list[dict] = []

    def command(_target: Target, _model: str, _load: Load, number: int, files: Path, *, at_rest: bool) -> list[str]:
        assert not at_rest
        words = [json.dumps(told[number]), str(files.with_suffix(".json"))]
        return [sys.executable, "-S", "-c", GENERATOR, *words]

    monkeypatch.setattr(generator, "command", command)
    monkeypatch.setattr(generator, "WARM_UP", 1)
    return told


def run(generators: list[dict], folder: Path, **settings: Any) -> dict:
    processes = len(generators)
    settings = {"users": processes, "duration": 2, "processes": processes} | settings
    return run_load(Target("127.0.0.1:1"), "model", Load(Path("log"), **settings), folder)


def test_the_samples_of_all_are_on_the_clock_of_the_last(generators: list[dict], tmp_path: Path) -> None:
    # The second began 0.5 s later: what the first planned at 1.4 s was to begin at 0.9 s of the common clock.
    generators += [recorded(100.0, [1.4, 0, 0.2, 1, *SOUND], [1.5, 0, 0.2, 10, *SOUND], [3.5, 0, 0.1, 100, *SOUND])]
    generators += [recorded(100.5, [1.0, 0, 0.1, 1000, *SOUND], [3.0, 0, 0.1, 10_000, *SOUND], busy=0.3, cores=0.4)]
    figures = run(generators, tmp_path)
    assert figures["requests"] == 2
    assert sum(figures["pairs_by_second"]) == 1011
    found = {name: figures["generator"][name] for name in ("processes", "busy", "cores", "limit")}
    assert found == {"processes": 2, "busy": 0.3, "cores": pytest.approx(0.6), "limit": None}


def test_a_turn_is_that_of_all_generators_together(generators: list[dict], tmp_path: Path) -> None:
    # Each sends three requests in turn, one of nine pairs; the window of two seconds holds one turn of both.
    turn = [[1.0 + 0.6 * place, 0, 0.01, 9 if place == 1 else 1, *SOUND] for place in range(4)]
    generators += [recorded(0.0, *turn), recorded(0.0, *turn)]
    figures = run(generators, tmp_path)
    assert figures["requests_per_s"] == pytest.approx(6 / 1.8)
    assert figures["pairs_per_s"] == pytest.approx(22 / 1.8)
    apart = run(generators, tmp_path, users=None, rate=4.0)  # in an open loop they do not take turns
    assert apart["requests_per_s"] == pytest.approx(8 / 2)


def test_nothing_of_a_former_run_is_read(generators: list[dict], tmp_path: Path, monkeypatch) -> None:
    generators += [recorded(0.0, [1.0, 0, 0.1, 1, *SOUND])]
    run(generators, tmp_path)
    monkeypatch.setattr(generator, "command", lambda *_, **__: [sys.executable, "-S", "-c", "print('no samples')"])
    with pytest.raises(LoadError, match=r"(?s)ended with code 0 and without results; its log, .*ends:\nno samples"):
        run(generators, tmp_path)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (
            [recorded(0.0, [9.0, 0.0, 1.0, 1, *SOUND])],
            "no request began in the 2 s measured; give a longer --duration",
        ),
        (
            [recorded(0.0, [1.0, 0.0, 1.0, 1, *SOUND], lasted=2.9)],
            r"ended after 2\.9 s of 4: who stopped it\? Its log: ",
        ),
        ([recorded(0.0, [1.0, 0.0, 1.0, 1, *SOUND]), recorded(1.1)], r"began 1\.1 s apart.*fewer --processes"),
    ],
)
def test_a_run_without_sound_figures_is_an_error(
    told: list[dict], message: str, generators: list[dict], tmp_path: Path
) -> None:
    generators += told
    with pytest.raises(LoadError, match=message):
        run(generators, tmp_path)


def test_nothing_of_the_shell_is_in_a_generators_way(generators: list[dict], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CLICKBERT_TOKEN", "of another server")  # this one was started here, and has none
    monkeypatch.setenv("LOCUST_RATE", "7")
    generators += [recorded(0.0, [1.0, 0.0, 1.0, 1, *SOUND])]
    assert run(generators, tmp_path)["generator"]["first_messages"] == dict.fromkeys(
        ("CLICKBERT_TOKEN", "LOCUST_RATE"), "None"
    )


def test_a_generator_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WARM_UP", "RUN_OUT", "GRACE", "STOP_TIMEOUT"):
        monkeypatch.setattr(generator, name, 0)
    started: list[subprocess.Popen] = []
    wait = generator.wait
    monkeypatch.setattr(generator, "wait", lambda running, *rest: (started.extend(running), wait(running, *rest)))
    monkeypatch.setattr(generator, "command", lambda *_, **__: ["sleep", "60"])
    with pytest.raises(LoadError, match="Locust did not end"):
        run_load(Target("127.0.0.1:1"), "model", Load(Path("log"), users=2, duration=1, processes=2), tmp_path)
    assert [process.poll() for process in started] == [-9, -9]


def test_users_rate_and_seeds_are_shared_out() -> None:
    for users, processes in ((7, 3), (4, 4), (16, 1)):
        shares = [generator.share(users, processes, number) for number in range(processes)]
        assert sum(shares) == users
        assert max(shares) - min(shares) <= 1
    sent = Load(Path("log"), candidates=20, texts="titles", rate=9.0, processes=2, seed=3, distinct=40)
    words = [generator.command(Target("a:1", Path("ca.pem")), "m", sent, number, Path("f")) for number in (0, 1)]
    options = [dict(pairwise(each)) for each in words]
    assert [each["--rate"] for each in options] == ["4.5", "4.5"]
    assert [each["--users"] for each in options] == ["1", "1"]
    assert len({each["--seed"] for each in options} | {"0", "1"}) == 4  # other seeds have other moments
    given = {"--candidates": "20", "--distinct": "40", "--texts": "titles", "--ca-file": "ca.pem", "--host": "a:1"}
    for name, value in given.items():
        assert {each[name] for each in options} == {value}


def test_the_split_of_a_requests_time_adds_up() -> None:
    counts = {"requests": 5, "executions": 3, "success": 0, "queue": 7, "compute_input": 1, "compute_infer": 2}
    before = counts | {"compute_output": 3}
    spent = {"queue": 8e6, "compute_input": 2e6, "compute_infer": 20e6, "compute_output": 6e6}  # ns of four requests
    after = before | {"requests": 9} | {part: before[part] + int(more) for part, more in spent.items()}
    assert load.split_time(before, after, 12.0) == pytest.approx({"queue": 2.0, "compute": 7.0, "rest": 3.0})
    assert load.split_time(before, after, 5.0)["rest"] == 0
    assert load.split_time(before, before, 12.0) is None
    assert load.split_time(before, after, None) is None
