"""Many requests at once through the service, without Triton: each gets one answer, its own, or one true error."""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.backends.packed_cpu import cores
from serving.backends.packed_cpu.schedule import Job, Part
from serving.backends.packed_cpu.segments import Arrays
from serving.backends.packed_cpu.service import EDGE, OUTCOMES, SETTLE, Service
from serving.backends.packed_cpu.settings import Settings
from tests.waiting import eventually

CONFIG = {
    "name": "sums",
    "max_batch_size": 8,
    "input": [
        {"name": "x", "data_type": "TYPE_INT64", "dims": ["-1"], "allow_ragged_batch": True},
        {"name": "lengths", "data_type": "TYPE_INT32", "dims": ["-1"], "allow_ragged_batch": True},
    ],
    "output": [{"name": "y", "data_type": "TYPE_INT64", "dims": ["-1", "1"]}],
    "batch_output": [{"target_name": ["y"], "source_input": ["lengths"]}],
    "parameters": {
        "chunk_by": {"string_value": "lengths"},
        "chunk_elements": {"string_value": "64"},
        "intra_op_thread_count": {"string_value": "4"},
        "deadline_seconds": {"string_value": "30"},
    },
}
BAD = -1  # an element with which a request cannot be computed


class Caller:
    """A request, as its sender knows it."""

    def __init__(self, lengths: list[int], first: int) -> None:
        self.inputs = {
            "x": np.arange(first, first + sum(lengths))[np.newaxis],
            "lengths": np.array([lengths], np.int32),
        }
        self.gone = False


def sums(request: Arrays) -> np.ndarray:
    """What each segment is answered with: its own sum."""
    ends = np.cumsum(request["lengths"][0])
    return np.add.reduceat(request["x"][0], np.concatenate([[0], ends[:-1]]))[np.newaxis, :, np.newaxis]


def compute(inputs: list[Arrays], wanted: list[list[str]]) -> list[Arrays | str]:
    return ["it has a bad element" if BAD in request["x"] else {"y": sums(request)} for request in inputs]


class Answers:
    """Keeps all that is sent."""

    def __init__(self) -> None:
        self.sent: dict[Caller, list[Arrays]] = defaultdict(list)
        self.refused: dict[Caller, list[tuple[str, str]]] = defaultdict(list)
        self.breaks = False

    def send(self, request: Caller, answer: Arrays) -> None:
        if self.breaks:
            raise MemoryError("no room")
        self.sent[request].append(answer)

    def refuse(self, request: Caller, outcome: str, reason: str) -> None:
        self.refused[request].append((outcome, reason))

    def is_cancelled(self, request: Caller) -> bool:
        return request.gone

    def of(self, request: Caller) -> int:
        return len(self.sent[request]) + len(self.refused[request])


class Figures:
    """Counts."""

    def __init__(self) -> None:
        self.computed = 0
        self.outcomes: list[str] = []
        self.dropped = 0
        self.answers: list[Arrays] = []

    def chunk(self, parts: list[Part]) -> None:
        self.computed += sum(part.elements for part in parts)

    def answered(self, answer: Arrays) -> None:
        self.answers.append(answer)

    def ended(self, outcome: str, job: Job | None, now: float) -> None:
        self.outcomes.append(outcome)
        self.dropped += job.dropped if job else 0


@contextmanager
def running(
    compute: Any = compute, turns: Path | None = None, longest: float = inf, **parameters: str
) -> Iterator[tuple[Service, Answers, Figures]]:
    answers, figures = Answers(), Figures()
    own = {name: {"string_value": text} for name, text in parameters.items()}
    settings = Settings.of(CONFIG | {"parameters": CONFIG["parameters"] | own})
    service = Service(settings, compute, answers, figures, turns, longest)
    try:
        yield service, answers, figures
    finally:
        service.close()


def test_ten_thousand_requests_get_each_its_own_answer_or_its_own_error() -> None:
    chance, first = random.Random(0), 0
    callers: list[Caller] = []
    kinds: dict[Caller, str] = {}
    with running() as (service, answers, figures):
        for _ in range(10_000):
            lengths = [chance.randint(1, 40) for _ in range(chance.choice([1, 2, 5, 20]))]
            caller = Caller(lengths, first)
            first += sum(lengths)
            kind = chance.choices(["good", "bad sum", "bad element", "cancelled"], [80, 5, 5, 10])[0]
            if kind == "bad sum":
                caller.inputs["lengths"][0, 0] += 1
            elif kind == "bad element":
                caller.inputs["x"][0, chance.randrange(sum(lengths))] = BAD
            callers.append(caller)
            kinds[caller] = kind
            service.submit(caller, caller.inputs, ["y"], 0)
            if kind == "cancelled":
                caller.gone = True
    assert len(callers) == 10_000
    for caller in callers:
        assert answers.of(caller) == 1, "one answer, or one error"
        if answers.sent[caller]:
            assert kinds[caller] in ("good", "cancelled")  # a cancelled one may have been done before
            assert np.array_equal(answers.sent[caller][0]["y"], sums(caller.inputs))
        else:
            ((outcome, reason),) = answers.refused[caller]
            expected = {"bad sum": "adds up to", "bad element": "bad element", "cancelled": "cancelled"}[kinds[caller]]
            assert expected in reason
            assert outcome == ("cancelled" if kinds[caller] == "cancelled" else "malformed")
    assert len(figures.outcomes) == 10_000
    assert set(figures.outcomes) <= set(OUTCOMES)


def test_a_request_that_could_not_be_cut_is_refused_and_not_computed() -> None:
    """It would be a chunk of any size, which nobody overtakes."""
    rows, long = Caller([3, 2], 0), Caller([5, 7], 0)
    rows.inputs = {"x": np.zeros((2, 5), np.int64), "lengths": np.array([[3, 2], [4, 1]], np.int32)}
    with running(longest=6) as (service, answers, figures):
        for caller in (rows, long):
            service.submit(caller, caller.inputs, ["y"], 0)
    assert "has one row" in answers.refused[rows][0][1]
    assert "a segment has 7 elements" in answers.refused[long][0][1]
    assert figures.outcomes == ["malformed"] * 2
    assert figures.computed == 0


class Held:
    """Computes one chunk at a time, when the test says so."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, inputs: list[Arrays], wanted: list[list[str]]) -> list[Arrays | str]:
        self.begun.release()
        assert self.go_on.acquire(timeout=30)
        return compute(inputs, wanted)


def test_what_was_given_up_midway_is_not_computed_to_its_end() -> None:
    held = Held()
    caller = Caller([32] * 20, 0)  # ten chunks
    with running(held, intra_op_thread_count="1") as (service, answers, figures):
        service.submit(caller, caller.inputs, ["y"], 0)
        for _ in range(4):
            assert held.begun.acquire(timeout=30)
            held.go_on.release()
        assert held.begun.acquire(timeout=30)
        caller.gone = True  # in the middle: the fifth chunk is being computed
        held.go_on.release()
        eventually(lambda: answers.of(caller) == 1)
    assert answers.refused[caller][0][0] == "cancelled"
    assert figures.computed == 5 * 64
    assert figures.dropped == 5 * 64, "all that was left"


def test_a_deadline_that_passes_midway_ends_the_request() -> None:
    held = Held()
    caller = Caller([32] * 20, 0)
    with running(held, intra_op_thread_count="1") as (service, answers, figures):
        began = time.monotonic()
        service.submit(caller, caller.inputs, ["y"], 0.2)
        assert held.begun.acquire(timeout=30)
        eventually(lambda: answers.of(caller) == 1)  # while its chunk is being computed
        assert time.monotonic() - began >= 0.2 + SETTLE, "not in the moment in which its caller goes"
        held.go_on.release()
    assert answers.refused[caller][0] == ("expired", "request timeout expired: not answered within 0.20 s")
    assert figures.computed == 64


def test_an_answer_that_comes_at_the_deadline_is_sent_when_its_caller_has_gone() -> None:
    held = Held()
    first, second = Caller([3], 0), Caller([3], 3)
    with running(held, intra_op_thread_count="1") as (service, answers, _):
        service.submit(first, first.inputs, ["y"], 0)
        assert held.begun.acquire(timeout=30)
        with service.schedule.changed:
            (job,) = service.schedule.open_jobs
        job.deadline = time.monotonic() + EDGE / 2
        held.go_on.release(2)
        service.submit(second, second.inputs, ["y"], 0)
        eventually(lambda: answers.of(second) == 1)
        eventually(lambda: answers.of(first) == 1)
        assert time.monotonic() >= job.deadline + SETTLE - EDGE


@pytest.mark.parametrize(("timeout", "outcome"), [(0.5, "overloaded"), (0, "full"), (60, "full")])
def test_who_would_be_too_late_is_refused_at_once_and_told_why(timeout: float, outcome: str) -> None:
    """The limit is the caller's, or, if he has more patience than the model's config, that of the config."""
    held = Held()
    first, second = Caller([64] * 20, 0), Caller([64], 0)
    with running(held, intra_op_thread_count="1", deadline_seconds="5") as (service, answers, _):
        service.submit(first, first.inputs, ["y"], 0)
        assert held.begun.acquire(timeout=30)
        with service.schedule.changed:
            service.schedule.pace = 1.0  # seconds an element
        service.submit(second, second.inputs, ["y"], timeout)
        eventually(lambda: answers.of(second) == 1)  # while the first one is still computed
        ((found, reason),) = answers.refused[second]
        assert found == outcome
        assert ("exceeds maximum queue size" in reason) == (outcome == "full")
        assert ("overloaded: the answer would take" in reason) == (outcome == "overloaded")
        first.gone = True
        held.go_on.release(20)


def test_an_answer_that_cannot_be_sent_is_an_error_of_its_own_request() -> None:
    caller, other = Caller([3], 0), Caller([4], 0)
    with running() as (service, answers, figures):
        answers.breaks = True
        service.submit(caller, caller.inputs, ["y"], 0)
        eventually(lambda: answers.of(caller) == 1)
        answers.breaks = False
        service.submit(other, other.inputs, ["y"], 0)
        eventually(lambda: answers.of(other) == 1)
    assert answers.refused[caller] == [("failed", "the answer cannot be put together: no room")]
    assert len(answers.sent[other]) == 1
    assert sorted(figures.outcomes) == ["answered", "failed"]
    assert figures.answers == answers.sent[other], "what was not sent is not among the scores"


def test_time_that_other_models_take_on_the_core_is_in_the_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a server with two models would take twice as much as it can answer in time."""
    core = min(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {core})
    monkeypatch.setattr(cores, "GROUPS", tmp_path)
    with running(turns=tmp_path, intra_op_thread_count="0") as (service, answers, _):
        with (tmp_path / f"core{core}.busy").open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            caller = Caller([10], 0)
            service.submit(caller, caller.inputs, ["y"], 0)
            time.sleep(0.3)
        eventually(lambda: answers.of(caller) == 1)
        assert service.schedule.pace * 10 > 0.1  # computing alone takes microseconds here


def test_a_worker_whose_core_is_taken_leaves_the_request_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core only")
    monkeypatch.setattr(cores, "GROUPS", tmp_path)
    with running(turns=tmp_path, intra_op_thread_count="0") as (service, answers, _):
        for core in sorted(os.sched_getaffinity(0)):
            with (tmp_path / f"core{core}.busy").open("rb") as other:
                fcntl.flock(other, fcntl.LOCK_EX)
                for _ in range(5):
                    caller = Caller([10], 0)
                    service.submit(caller, caller.inputs, ["y"], 0)
                    eventually(lambda caller=caller: answers.of(caller) == 1)


def test_errors_that_cannot_be_sent_harm_nobody_else() -> None:
    with running() as (service, answers, figures):
        monkeyed = answers.refuse
        answers.refuse = lambda *_: (_ for _ in ()).throw(RuntimeError("the response is out"))
        wrong, right = Caller([3], 0), Caller([4], 0)
        wrong.inputs["lengths"][0, 0] = 7
        service.submit(wrong, wrong.inputs, ["y"], 0)
        bad = Caller([1], BAD)
        service.submit(bad, bad.inputs, ["y"], 0)
        service.submit(right, right.inputs, ["y"], 0)
        eventually(lambda: answers.of(right) == 1)
        answers.refuse = monkeyed
    assert sorted(figures.outcomes) == ["answered", "malformed", "malformed"]


BROKEN = """
import numpy as np
from tests.serving.packed_cpu.test_service import Caller, running

def break_(inputs, wanted):
    raise RuntimeError("what nobody thought of")

with running(break_) as (service, answers, figures):
    caller = Caller([3], 0)
    service.submit(caller, caller.inputs, ["y"], 0)
    service.sender.join(60)
"""


def test_a_worker_that_fails_takes_its_process_along() -> None:
    done = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 70
    assert "what nobody thought of" in done.stderr
    assert "sums: a thread failed; its process ends with code 70" in done.stderr
