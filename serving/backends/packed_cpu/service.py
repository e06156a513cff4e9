"""Answers the requests of one model: admits them, computes them in chunks on all cores, answers each when it is done.

`submit` returns at once. A worker for each core computes the chunk that the schedule says is next; a further thread
puts answers together and sends them, so that no core waits for that, and looks after requests whose deadline has
passed. A request that was cancelled is dropped when its next chunk is made up.

A worker that fails (what a graph or a request does wrong is caught long before) ends the process: a server that says it
is broken is better than one that is silent.

What this module does not know: Triton, ONNX Runtime.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from release.names import KEPT
from serving.backends.packed_cpu.cores import start_workers, turn, usable_cores
from serving.backends.packed_cpu.schedule import Job, OverloadedError, Part, Schedule
from serving.backends.packed_cpu.segments import Array, Arrays, divide, fault, join, select, used_prefixes
from serving.backends.packed_cpu.settings import Settings

SWEEP = 0.05  # seconds between two looks at the deadlines
# Triton before 25.04 may crash if a call is answered between the moment in which its caller goes and the one in which
# Triton has noted that (triton-inference-server/server, issue 8034). A deadline is such a moment, and it is known. So
# who is not answered `EDGE` seconds before his deadline is answered `SETTLE` seconds later: only Triton sees it then.
EDGE = 0.002
SETTLE = 0.1
FAILED = 70  # exit code


class Answers(Protocol):
    """Where answers go, and where it is known whether one is still wanted. Called from several threads."""

    def send(self, request: Any, answer: Arrays) -> None:
        """Sends the outputs."""

    def refuse(self, request: Any, outcome: str, reason: str) -> None:
        """Sends an error. `outcome` is one of `OUTCOMES`."""

    def is_cancelled(self, request: Any) -> bool:
        """Whether nobody waits for the answer any more."""


class Figures(Protocol):
    """What wants to know how requests fared."""

    def chunk(self, parts: Sequence[Part]) -> None:
        """A chunk was computed."""

    def answered(self, answer: Arrays) -> None:
        """A request was answered; told before it has `ended`."""

    def ended(self, outcome: str, job: Job | None, now: float) -> None:
        """A request ended; it has no job if it was never taken."""


OUTCOMES = ("answered", "overloaded", "full", "expired", "cancelled", "malformed", "failed")
Compute = Callable[[list[Arrays], list[list[str]]], list[Arrays | str]]


class Service:
    """A model with `chunk_by`.

    Args:
        settings: the model's.
        compute: requests' outputs, or an error's text for each that is wrong.
        answers: where they go.
        figures: who counts.
        turns: folder of the lock files with which the processes of a server take turns on a core (cores.py).
        longest: elements that a segment may have, with its prefix. A longer one would be a chunk of any size, which
            nobody could overtake, and then malformed.
    """

    def __init__(
        self,
        settings: Settings,
        compute: Compute,
        answers: Answers,
        figures: Figures,
        turns: Any,
        longest: float = inf,
    ) -> None:
        self.settings, self.compute, self.answers, self.figures = settings, compute, answers, figures
        self.longest = longest
        workers = settings.threads or usable_cores()
        self.schedule = Schedule(settings.chunk_elements, workers)
        self.outbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.held_back: deque[tuple[float, Callable[[], None]]] = deque()  # with the times when they may be sent
        self.sender = threading.Thread(target=self.or_die, args=(self.send_answers,), daemon=True)
        self.sender.start()
        self.pool = start_workers(settings.threads, turns)
        for _ in range(workers):
            self.pool.submit(self.or_die, self.work)

    def submit(self, request: Any, inputs: Arrays, wanted: list[str], timeout: float) -> None:
        """Takes a request, or refuses it. `timeout`: seconds that its caller waits; 0: as long as the model allows."""
        reason = fault(inputs, self.settings.names)
        if not reason:
            segments = divide(inputs, self.settings.names)
            if (longest := segments.longest()) > self.longest:
                reason = f"a segment has {longest} elements with its prefix, the model takes {self.longest:g} at most"
        if reason:
            self.refuse(request, "malformed", f"malformed request: {reason}")
            return
        now = self.schedule.clock()
        limit = min(timeout or self.settings.deadline, self.settings.deadline)
        try:
            self.schedule.admit(Job(request, inputs, wanted, segments, now, now + limit))
        except OverloadedError as exc:
            if limit < self.settings.deadline:
                reason = f"overloaded: the answer would take {exc.seconds:.2f} s, and its caller waits {limit:.2f} s"
                self.refuse(request, "overloaded", reason)
            else:
                reason = f"exceeds maximum queue size: work for {exc.seconds:.2f} s waits, {limit:g} s are allowed"
                self.refuse(request, "full", reason)

    def refuse(self, request: Any, outcome: str, reason: str) -> None:
        """Has a request answered that is not taken.

        Not here: a caller that is answered before Triton has handed the request over sends the next one too early for
        Triton 2.51, which then looks at it up to half a second later.
        """
        self.outbox.put(partial(self.tell_refused, request, outcome, reason))

    def tell_refused(self, request: Any, outcome: str, reason: str) -> None:
        """Sends the error of a request that was not taken."""
        self.send_error(request, outcome, reason)
        self.figures.ended(outcome, None, self.schedule.clock())

    def work(self) -> None:
        """What a worker does until the end: a chunk after another."""
        while self.schedule.wait():
            wanted = time.perf_counter()
            with turn():  # the chunk is made up when the core is free: whoever comes meanwhile may be first
                waited = time.perf_counter() - wanted
                parts, late = self.schedule.take()
                for job in late:
                    self.end_late(job)
                parts = self.still_wanted(parts)
                if parts:
                    self.compute_chunk(parts, waited)

    def still_wanted(self, parts: list[Part]) -> list[Part]:
        """The parts of requests that were not cancelled; the others are dropped."""
        gone = [part for part in parts if self.is_cancelled(part.job)]
        self.schedule.give_back(gone)
        for part in gone:
            self.drop(part.job, "cancelled", "cancelled by its caller")
        return [part for part in parts if part not in gone]

    def is_cancelled(self, job: Job) -> bool:
        """Whether nobody waits for a request. Once its answer is out Triton must not be asked: it would crash."""
        with job.telling:
            return job.outcome is not None or self.answers.is_cancelled(job.request)

    def compute_chunk(self, parts: list[Part], waited: float) -> None:
        """Computes a chunk, and has those answered that are complete with it."""
        began = time.perf_counter()
        inputs = [self.inputs_of(part) for part in parts]
        wanted = [part.job.wanted + [KEPT] * bool(part.keep) for part in parts]
        outputs = self.compute(inputs, wanted)
        wrong = []
        for part, output in zip(parts, outputs, strict=True):
            if not isinstance(output, str):
                if part.keep:
                    self.keep(part, output.pop(KEPT))
                part.job.done.append((part.taken.places, output))
            elif self.schedule.drop(part.job, "malformed"):
                wrong.append((part.job, output))
        complete = self.schedule.finish(parts, time.perf_counter() - began, waited)
        self.figures.chunk(parts)  # before its requests are counted
        for job in complete:
            self.post(job, partial(self.answer, job))
        for job, reason in wrong:
            self.post(job, partial(self.tell, job, "malformed", reason))

    def inputs_of(self, part: Part) -> Arrays:
        """What a part brings to its chunk."""
        return select(part.job.inputs, part.taken, self.settings.names, part.job.kept)

    def keep(self, part: Part, kept: Array) -> None:
        """Keeps of a part's prefixes what other segments wait for: copies, so that the whole chunk's can be freed."""
        inputs, names = part.job.inputs, self.settings.names
        used = used_prefixes(inputs, part.taken, names)
        for prefix in part.keep:
            place, length = used.index(prefix), int(inputs[names.prefix_lengths][0, prefix])
            part.job.kept[prefix] = kept[:, place : place + 1, :, :length].copy()

    def answer(self, job: Job) -> None:
        """Sends a complete request's answer; what fails here is its own error, not its neighbours'."""
        outcome = "answered"
        try:
            answer = join([places for places, _ in job.done], [each for _, each in job.done])
            self.answers.send(job.request, answer)
        except Exception as exc:  # no room in shared memory, an output of another shape, ...
            outcome = "failed"
            self.send_error(job.request, outcome, f"the answer cannot be put together: {exc}")
        else:
            self.figures.answered(answer)
        self.figures.ended(outcome, job, self.schedule.clock())

    def send_error(self, request: Any, outcome: str, reason: str) -> None:
        """Tells a caller what went wrong; that this fails, too, is no fault of the others."""
        try:
            self.answers.refuse(request, outcome, reason)
        except Exception:
            traceback.print_exc()

    def drop(self, job: Job, outcome: str, reason: str) -> None:
        """Computes no more of a request, and tells its caller."""
        if self.schedule.drop(job, outcome):
            self.outbox.put(partial(self.tell, job, outcome, reason))

    def end_late(self, job: Job) -> None:
        """Tells the caller of a request that was dropped because its deadline has passed."""
        waited = job.deadline - job.arrived
        reason = f"request timeout expired: not answered within {waited:.2f} s"
        self.post(job, partial(self.tell, job, "expired", reason))

    def tell(self, job: Job, outcome: str, reason: str) -> None:
        """Sends the error of a request that was taken and then dropped."""
        with job.telling:
            self.send_error(job.request, outcome, reason)
        self.figures.ended(outcome, job, self.schedule.clock())

    def post(self, job: Job, message: Callable[[], None]) -> None:
        """Has a message to a request's caller sent: at once, or some time after his deadline (`EDGE`)."""
        now = self.schedule.clock()
        if now < job.deadline - EDGE:
            self.outbox.put(message)
        else:
            self.held_back.append((now + SETTLE, message))

    def send_answers(self) -> None:
        """What the sending thread does until the end."""
        swept = time.monotonic()
        while True:
            try:
                task = self.outbox.get(timeout=SWEEP)
            except Empty:
                pass
            else:
                if task is None:
                    for _, message in self.held_back:
                        message()
                    return
                task()
            while self.held_back and self.held_back[0][0] <= self.schedule.clock():
                self.held_back.popleft()[1]()
            if time.monotonic() - swept > SWEEP:
                swept = time.monotonic()
                for job in self.schedule.expired():
                    self.end_late(job)

    def or_die(self, run: Callable[[], None]) -> None:
        """Runs a thread's work; a fault in it ends the process."""
        try:
            run()
        except BaseException:
            traceback.print_exc()
            print(
                f"{self.settings.name}: a thread failed; its process ends with code {FAILED}",
                file=sys.stderr,
                flush=True,
            )
            os._exit(FAILED)

    def close(self) -> None:
        """Answers what was taken, and ends all threads."""
        self.schedule.close(self.settings.deadline + 1)
        self.pool.shutdown()
        self.outbox.put(None)
        self.sender.join()
