"""The order of requests, what is refused, and what is dropped, by a clock that only the test moves."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.backends.packed_cpu.schedule import HEAD_START, MARGIN, MEASURED, Job, OverloadedError, Part, Schedule
from serving.backends.packed_cpu.segments import Segments

BUDGET = 100
PACE = 0.001  # seconds an element


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Machine:
    """A schedule, and one worker that needs PACE seconds for each element."""

    def __init__(self, workers: int = 1) -> None:
        self.clock = Clock()
        self.schedule = Schedule(BUDGET, workers, self.clock)
        self.answered: dict[str, float] = {}
        self.late: list[str] = []
        for _ in range(MEASURED):  # so that the pace is known
            self.schedule.paces.append(PACE)
        self.schedule.pace = PACE

    def ask(self, name: str, *lengths: int, within: float = 1000) -> Job:
        job = Job(name, {}, [], Segments(np.array(lengths)), self.clock.now, self.clock.now + within)
        self.schedule.admit(job)
        return job

    def step(self) -> list[Part]:
        """Computes the next chunk."""
        parts, late = self.schedule.take()
        self.late += [job.request for job in late]
        if parts:
            seconds = PACE * sum(part.elements for part in parts)
            self.clock.now += seconds
            for job in self.schedule.finish(parts, seconds):
                self.answered[job.request] = self.clock.now
        return parts

    def run(self) -> None:
        while self.step() or self.schedule.waiting:
            pass


def test_of_two_that_arrive_together_the_smaller_is_first() -> None:
    machine = Machine()
    machine.ask("large", *[50] * 20)
    machine.ask("small", 50, 50)
    machine.run()
    assert machine.answered == {"small": pytest.approx(0.1), "large": pytest.approx(1.1)}


def test_a_small_one_overtakes_a_large_one_between_two_chunks() -> None:
    machine = Machine()
    machine.ask("large", *[50] * 20)
    machine.step()
    machine.ask("small", 50, 50)
    machine.step()
    assert list(machine.answered) == ["small"]
    assert machine.answered["small"] == pytest.approx(0.2)


def test_what_is_begun_is_not_put_off_by_an_equal_one() -> None:
    machine = Machine()
    machine.ask("first", *[50] * 10)
    for number in range(5):
        machine.step()
        machine.ask(f"later {number}", *[50] * 10)
    machine.run()
    assert next(iter(machine.answered)) == "first"


def test_a_large_one_is_not_starved() -> None:
    """Small ones that fill the core arrive for ever; the large one waits so long for them, and no longer."""
    machine = Machine()
    for number in range(3):  # so that it is known what is usual
        machine.ask(f"before {number}", 50, 50)
    machine.ask("large", *[50] * 10)
    own, small = 0.5, 0.1
    number = 0
    while "large" not in machine.answered:
        number += 1
        machine.ask(f"small {number}", 50, 50)
        machine.step()
        assert machine.clock.now < HEAD_START * small + 3 * own
    assert machine.answered["large"] > HEAD_START * small, "they went first"


def test_of_requests_of_one_size_the_first_is_first() -> None:
    machine = Machine()
    for number in range(5):
        machine.ask(f"{number}", *[50] * 10)
        machine.step()
    machine.run()
    assert list(machine.answered) == [f"{number}" for number in range(5)]


def test_what_is_usual_decides_what_is_small() -> None:
    machine = Machine()
    for number in range(9):
        machine.ask(f"{number}", *[10] * (number + 1))
    machine.run()
    before, after = machine.ask("before", *[10] * 5), machine.ask("after", *[10] * 6)
    assert before.small
    assert not after.small


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 30)), min_size=1, max_size=30), st.integers(0, 10**6))
def test_every_request_is_answered_once_with_all_its_segments(sizes: list[tuple[int, int]], seed: int) -> None:
    chance, machine = random.Random(seed), Machine()
    wanted = {}
    taken: dict[str, list[int]] = {}
    pending = [
        (f"{number}", [chance.randint(1, longest) for _ in range(count)])
        for number, (longest, count) in enumerate(sizes)
    ]
    while pending or machine.schedule.open_jobs:
        if pending and chance.random() < 0.5:
            name, lengths = pending.pop()
            wanted[name] = list(range(len(lengths)))
            machine.ask(name, *lengths)
        for part in machine.step():
            taken.setdefault(part.job.request, []).extend(part.taken.places.tolist())
    assert {name: sorted(places) for name, places in taken.items()} == wanted
    assert machine.answered.keys() == wanted.keys()
    assert machine.schedule.load() == (0, 0, 0.0)
    assert machine.schedule.running == 0


def test_small_requests_share_a_chunk() -> None:
    machine = Machine()
    for number in range(5):
        machine.ask(f"{number}", 20)
    assert len(machine.step()) == 5
    assert len(machine.answered) == 5


def test_a_request_that_would_come_too_late_is_refused_at_once() -> None:
    machine = Machine()
    machine.ask("before", *[50] * 20)
    with pytest.raises(OverloadedError) as caught:
        machine.ask("impatient", *[50] * 20, within=2.0)
    assert caught.value.seconds == pytest.approx(2.0 * MARGIN)
    machine.ask("patient", *[50] * 20, within=2.0 * MARGIN + 0.01)
    machine.ask("small", 50, within=0.1)  # nothing is before it
    machine.run()
    assert set(machine.answered) == {"before", "patient", "small"}


def test_work_behind_a_request_does_not_count() -> None:
    machine = Machine()
    for number in range(10):
        machine.ask(f"large {number}", *[50] * 40)
    machine.ask("small", 50, within=0.1)
    machine.step()
    assert "small" in machine.answered


def test_a_request_alone_is_never_refused() -> None:
    """What was measured may be wrong: the first chunks after a start, a machine that was busy."""
    machine = Machine()
    machine.schedule.pace = 1000.0
    machine.ask("alone", 50, within=0.1)


def test_more_workers_take_more() -> None:
    machine = Machine(workers=4)
    machine.ask("before", *[50] * 20)
    machine.ask("other", *[50] * 20, within=1.0)


def test_a_chunk_is_one_workers_however_many_there_are() -> None:
    machine = Machine(workers=64)
    machine.ask("before", 50)
    with pytest.raises(OverloadedError):
        machine.ask("impatient", 100, within=0.05)


def test_before_the_first_chunk_everybody_is_taken() -> None:
    machine = Machine()
    machine.schedule.pace = 0.0
    for number in range(100):
        machine.ask(f"{number}", *[50] * 20, within=0.1)


def test_a_request_past_its_deadline_is_dropped_at_the_next_chunk() -> None:
    machine = Machine()
    late = machine.ask("late", *[50] * 20, within=0.25)
    machine.ask("other", 100)
    machine.run()
    assert machine.late == ["late"]
    assert late.outcome == "expired"
    assert late.dropped == 1000 - 200, "two chunks of its own, and one of the other, before it was late"
    assert list(machine.answered) == ["other"]


def test_late_ones_are_found_wherever_they_stand() -> None:
    machine = Machine()
    late = machine.ask("late", *[50] * 20, within=0.5)
    for number in range(3):
        machine.ask(f"{number}", *[50] * 4)
    machine.clock.now = 0.6
    assert machine.schedule.expired() == [late]
    assert machine.schedule.expired() == []
    machine.run()
    assert "late" not in machine.answered
    assert machine.late == []


def test_a_dropped_request_is_not_computed_and_not_answered() -> None:
    machine = Machine()
    job = machine.ask("given up", *[50] * 20)
    machine.step()
    assert machine.schedule.drop(job, "cancelled")
    assert not machine.schedule.drop(job, "expired"), "it ends once"
    assert machine.step() == []
    assert machine.answered == {}
    assert (job.outcome, job.dropped) == ("cancelled", 900)


def test_a_part_that_is_computed_when_its_request_is_dropped_answers_nobody() -> None:
    machine = Machine()
    job = machine.ask("given up", 50)
    parts, _ = machine.schedule.take()
    machine.schedule.drop(job, "cancelled")
    assert machine.schedule.finish(parts, 0.05) == []
    assert machine.schedule.running == 0


def test_small_chunks_do_not_have_large_requests_refused() -> None:
    """An element takes longer in a small chunk: one caller's tiny requests made the pace that of nobody else."""
    machine = Machine()
    for number in range(2 * MEASURED):
        machine.ask(f"tiny {number}", 5)
        parts, _ = machine.schedule.take()
        machine.schedule.finish(parts, 5 * 10 * PACE)
    machine.ask("tiny", 5)
    machine.ask("large", *[50] * 10, within=1)
    with pytest.raises(OverloadedError):
        machine.ask("too large", *[50] * 10, within=1)


def test_the_pace_follows_the_median() -> None:
    machine = Machine()
    machine.ask("a", *[50] * 200)
    for seconds in (*[0.2] * MEASURED, 60.0):  # one chunk that was held up says nothing
        parts, _ = machine.schedule.take()
        machine.schedule.finish(parts, seconds)
    assert machine.schedule.pace == pytest.approx(0.002)


def test_closing_waits_for_what_was_taken() -> None:
    machine = Machine()
    machine.ask("a", 50)
    closed: list[bool] = []
    thread = threading.Thread(target=lambda: closed.append(machine.schedule.close(30)))
    thread.start()
    assert machine.schedule.wait()
    machine.run()
    thread.join(30)
    assert closed == [True]
    assert not machine.schedule.wait()


def test_closing_does_not_wait_for_ever() -> None:
    machine = Machine()
    machine.ask("a", 50)
    assert not machine.schedule.close(0.05)
