"""`python -m benchmarks scheduling`: what a call had left to compute, and whole runs on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.load_gen.target import Target
from benchmarks.measure.recording import SMALL, Sample
from benchmarks.scheduling import phases
from benchmarks.scheduling.phases import left_of, memory
from benchmarks.scheduling.sender import GIVEN_UP, Call
from clickbert.connection import Connection
from serving.server import Server
from tests.benchmarks.conftest import MODEL, Ended, command

BEFORE = """clickbert_request_seconds_count{model="m",up_to="256"} 1
clickbert_request_seconds_sum{model="m",up_to="256"} 100
clickbert_request_waiting_seconds_sum{model="m",up_to="256"} 50
"""
# Since then two of the smallest class: each waited for 0.1 s, and was answered 0.4 s later.
AFTER = """clickbert_request_seconds_count{model="m",up_to="256"} 3
clickbert_request_seconds_sum{model="m",up_to="256"} 101
clickbert_request_waiting_seconds_sum{model="m",up_to="256"} 50.2
clickbert_request_seconds_count{model="m",up_to="1024"} 9
clickbert_request_seconds_sum{model="m",up_to="1024"} 9
"""


@pytest.mark.parametrize(("after", "left"), [(0.05, 200), (0.1, 200), (0.2, 150), (0.3, 100), (0.5, 0), (0.7, 0)])
def test_what_is_left_of_a_call_follows_from_how_its_like_fared(after: float, left: float) -> None:
    call = Call(0, Sample(1.0, 0.0, after, 3, GIVEN_UP, SMALL))
    assert left_of(call, 200, BEFORE, AFTER, "m") == pytest.approx(left)


def test_all_is_left_where_none_of_its_like_was_answered() -> None:
    call = Call(0, Sample(1.0, 0.0, 0.3, 3, GIVEN_UP, SMALL))
    assert left_of(call, 5000, BEFORE, AFTER, "m") == 5000


def run(log: Path, *given: object) -> Ended:
    return command("scheduling", "--data", log, *given, seconds=1, overload_seconds=1)


@pytest.mark.slow
def test_a_server_that_is_started_here_has_all_figures(published_repository: Path, published_log: Path) -> None:
    ended = run(published_log, "--repository", published_repository, "--model", MODEL)
    assert ended.code == 0, ended.err
    found = json.loads(ended.out.splitlines()[-1])
    assert (found["model"], found["server"]["started_here"]) == (MODEL, True)
    groups = {json.loads(line)["group"] for line in published_log.read_text(encoding="utf-8").splitlines()}
    assert found["alone"]["requests"] == phases.TURNS_ALONE * len(groups)
    assert found["alone"]["errors"] == found["saturated"]["errors"] == 0
    assert found["shared"]["rate"] == pytest.approx(0.7 * found["saturated"]["requests_per_second"])
    overload = found["overload"]
    assert overload["step"]["rate"] == pytest.approx(5 * found["saturated"]["requests_per_second"])
    assert 0 < overload["memory_before"] < 10_000
    assert overload["memory"]
    saved = found["saved"]
    assert saved["calls"] == found["given_up"]["error_kinds"][GIVEN_UP] > 0
    assert 0 < saved["dropped"] <= saved["tokens"]
    assert 0 < saved["left"] <= saved["tokens"]
    assert "work saved of calls given up, of what was left" in ended.out


@pytest.mark.slow
def test_of_a_server_elsewhere_the_repository_gives_the_tokenizer(
    published_server: Server, published_repository: Path, published_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "EXCESS", 1.0)  # others use this server
    ended = run(published_log, "--url", published_server.addresses.grpc, "--repository", published_repository)
    assert ended.code == 0, ended.err
    found = json.loads(ended.out.splitlines()[-1])
    assert (found["server"]["started_here"], found["saved"]) == (False, None)
    assert (found["overload"]["memory_before"], found["overload"]["memory"]) == (None, [])
    unknown = [line for line in ended.out.splitlines() if "not known" in line]
    assert {line.split()[0] for line in unknown} >= {"memory", "work"}
    assert memory(Target(Connection("127.0.0.1:1"))) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--repository", "nowhere"), "nowhere/clickbert_tokenizer has no published version"),
        (("--data", "nowhere.jsonl"), "nowhere.jsonl: cannot read"),
    ],
)
def test_an_error_is_told_before_a_server_is_started(given: tuple[str, ...], message: str, published_log: Path) -> None:
    ended = run(published_log, *given)
    assert (ended.code, ended.out) == (1, "")
    assert message in ended.err


def test_a_server_that_answers_nothing_is_an_error(
    published_server: Server, published_repository: Path, published_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Target, "try_out", lambda *_: None)
    given = ("--url", published_server.addresses.grpc, "--repository", published_repository, "--model", "other")
    ended = run(published_log, *given)
    assert (ended.code, ended.out) == (1, "")
    assert "other answered nothing within" in ended.err
    assert "ModelNotFoundError: other at " in ended.err
