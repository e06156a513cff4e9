"""Which segments of which requests are computed next, and which requests are not taken at all.

Order. A request is small if it has at most `SMALL` times the elements of the median one of late. Small ones go first:
the others follow as if they had come `HEAD_START` times a median request's work later. So they are not starved: small
ones that come still later are behind them. Beside that a request's place is the time of its arrival plus `STRETCH`
times its remaining work. So a small request overtakes a large one between two chunks, and what was begun is finished.

Admission. What a request would wait for is the work before it in that order. Where that takes longer than its deadline
allows it is refused at once, and the others do not wait for an answer that nobody would read.

Prefixes. Segments that share a prefix wait until the chunk with it is computed; a request that has no others is parked.

Expiry. A request whose deadline has passed is dropped when a chunk is made up, or by `expired`.

What this module does not know: Triton, ONNX Runtime, threads' cores. Times are seconds of the clock given.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from serving.backends.packed_cpu.segments import Array, Arrays, Room, Segments, Taken

SMALL = 1.1
HEAD_START = 100
STRETCH = 0.5
REMEMBERED = 256  # requests, whose median is the usual size
MARGIN = 1.25  # predictions err: later small requests overtake, other processes take the cores
MEASURED = 31  # chunks whose median is the pace
TELLING = 0.25  # of the budget: smaller chunks take longer an element, and would have large requests refused in vain
LOOK = 16  # requests at most that are looked at to fill a chunk


@dataclass(eq=False)
class Job:
    """A request that was taken.

    Attributes:
        request: whatever the caller knows it by.
        inputs: by name, [1, elements] each.
        wanted: names of the outputs that it asks for.
        segments: those that no chunk has taken yet.
        kept: what the model kept of its prefixes, by their places.
        arrived: when it arrived.
        deadline: when its answer is worth nothing any more.
        outcome: None as long as it is neither answered nor dropped.
        running: how many of its parts are being computed.
        elements, longest: of all its segments together, and of the longest with its prefix.
        small: whether it is among those that go first.
        dropped: elements that were not computed.
        begun: when its first chunk was begun.
        computing: seconds of computing that were its own.
        telling: held while its caller is told how it ended, or Triton is asked whether there still is one.
        done: places and outputs of its parts that are computed.
    """

    request: Any
    inputs: Arrays
    wanted: list[str]
    segments: Segments
    arrived: float
    deadline: float
    kept: dict[int, Array] = field(default_factory=dict)
    elements: int = field(init=False)
    longest: int = field(init=False)
    small: bool = True
    dropped: int = 0
    outcome: str | None = None
    running: int = 0
    begun: float | None = None
    computing: float = 0.0
    done: list[tuple[Array, Arrays]] = field(default_factory=list)
    telling: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.elements, self.longest = self.segments.elements, self.segments.longest()


@dataclass(frozen=True, eq=False)
class Part:
    """What a chunk takes of a request. `keep`: the prefixes begun with it that other segments wait for."""

    job: Job
    taken: Taken
    elements: int
    keep: tuple[int, ...] = ()


class OverloadedError(Exception):
    """A request is not taken: it would be answered too late. `seconds` is how long it would take."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Schedule:
    """The requests of one model that wait. All methods may be called from several threads.

    Args:
        budget: of a chunk, as `Room` has it.
        workers: how many chunks are computed at a time.
        clock: seconds, never going back.
    """

    def __init__(self, budget: int, workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.budget, self.workers, self.clock = budget, workers, clock
        self.changed = threading.Condition()
        self.waiting: list[tuple[float, int, Job]] = []  # a heap; the number decides between equal keys
        self.numbers = itertools.count()
        self.open_jobs: set[Job] = set()
        self.parked: set[Job] = set()  # those of which all segments wait for their prefix
        self.running = 0  # elements
        self.sizes: deque[int] = deque(maxlen=REMEMBERED)
        self.usual = 0.0  # elements of the median request of late
        self.paces: deque[float] = deque(maxlen=MEASURED)
        self.pace = 0.0  # seconds an element on one worker, with its waits for a core; 0: nothing was measured yet
        self.closing = False

    def admit(self, job: Job) -> None:
        """Takes a request.

        Raises:
            OverloadedError: its answer would come too late. Where nobody is before it, it is taken all the same.
        """
        with self.changed:
            self.sizes.append(job.elements)
            self.usual = median(self.sizes)
            job.small = job.elements <= SMALL * self.usual
            key = self.key(job)
            now = self.clock()
            before = self.running + sum(
                other.segments.elements for at, _, other in self.waiting if at <= key and now < other.deadline
            )
            before += sum(other.segments.elements for other in self.parked)
            alone = job.segments.first_chunk(self.budget)  # a chunk is one worker's
            seconds = max((before + job.elements) / self.workers, alone) * self.pace * MARGIN
            if before and now + seconds > job.deadline:
                raise OverloadedError(seconds)
            self.open_jobs.add(job)
            self.push(job, key)
            # All, since a worker's core may be taken, and a request may be more chunks than its elements show.
            self.changed.notify_all()

    def wait(self) -> bool:
        """Returns True when a request waits, and False when there will be no more."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.closing)
            return bool(self.waiting)

    def take(self) -> tuple[list[Part], list[Job]]:
        """The parts of the next chunk, none if nothing waits any more; and the requests that expired."""
        parts: list[Part] = []
        late: list[Job] = []
        looked: list[Job] = []
        with self.changed:
            now, room = self.clock(), Room(self.budget)
            while self.waiting and len(looked) < LOOK and not room.is_full():
                _, _, job = heapq.heappop(self.waiting)
                if job.outcome is not None:
                    continue
                if now >= job.deadline:
                    self.end(job, "expired")
                    late.append(job)
                    continue
                before = job.segments.elements
                taken = job.segments.take(room)
                if taken is not None:
                    elements = before - job.segments.elements
                    parts.append(Part(job, taken, elements, tuple(job.segments.waiting(taken.begun))))
                    job.running += 1
                    job.begun = now if job.begun is None else job.begun
                    self.running += elements
                if job.segments:
                    looked.append(job)
            for job in looked:
                if job.segments.can_be_taken():
                    self.push(job, self.key(job))
                else:
                    self.parked.add(job)
        return parts, late

    def finish(self, parts: list[Part], computing: float, waiting: float = 0.0) -> list[Job]:
        """Takes note of a computed chunk. Returns the requests that are complete with it: they are answered now.

        Args:
            parts: the chunk's.
            computing: how long it took.
            waiting: how long its worker waited for its core before, which others had.
        """
        elements = sum(part.elements for part in parts)
        complete = []
        with self.changed:
            if not self.paces or elements >= TELLING * self.budget:
                self.paces.append((computing + waiting) / elements)
                self.pace = median(self.paces)
            self.running -= elements
            for part in parts:
                job = part.job
                job.running -= 1
                job.computing += computing * part.elements / elements
                self.let_go_on(part)
                if job.outcome is None and not job.segments and not job.running:
                    self.end(job, "answered")
                    complete.append(job)
        return complete

    def drop(self, job: Job, outcome: str) -> bool:
        """Computes no more of a request. Returns False if it was answered or dropped before."""
        with self.changed:
            return self.end(job, outcome)

    def give_back(self, parts: list[Part]) -> None:
        """Takes note of parts that are not computed, because their requests are dropped."""
        with self.changed:
            for part in parts:
                part.job.running -= 1
                self.forget(part.job)
                part.job.dropped += part.elements
                self.running -= part.elements

    def expired(self) -> list[Job]:
        """Drops the requests whose deadline has passed, wherever they stand."""
        with self.changed:
            now = self.clock()
            late = [job for job in self.open_jobs if now >= job.deadline]
            for job in late:
                self.end(job, "expired")
            return late

    def load(self) -> tuple[int, int, float]:
        """How many requests wait, how many elements, and how many seconds all cores need for them."""
        with self.changed:
            jobs = [job for job in (*self.parked, *(job for _, _, job in self.waiting)) if job.outcome is None]
            elements = sum(job.segments.elements for job in jobs)
            return len(jobs), elements, elements * self.pace / self.workers

    def close(self, timeout: float) -> bool:
        """Waits until every request is answered or dropped, then ends the workers. False after `timeout` seconds."""
        with self.changed:
            empty = self.changed.wait_for(lambda: not self.open_jobs, timeout)
            self.closing = True
            self.changed.notify_all()
            return empty

    def key(self, job: Job) -> float:
        """A request's place in the order."""
        ahead = 0.0 if job.small else HEAD_START * self.usual
        return job.arrived + (ahead + STRETCH * job.segments.elements) * self.pace / self.workers

    def push(self, job: Job, key: float) -> None:
        """Puts a request among those that wait."""
        heapq.heappush(self.waiting, (key, next(self.numbers), job))

    def let_go_on(self, part: Part) -> None:
        """Lets segments be taken whose prefix is computed now."""
        job = part.job
        if job.outcome is not None:
            self.forget(job)
        if job.outcome is not None or not part.keep:
            return
        job.segments.computed(part.keep)
        if job in self.parked:
            self.parked.discard(job)
            self.push(job, self.key(job))
        self.changed.notify_all()

    def forget(self, job: Job) -> None:
        """Frees what was kept of a request that has ended, once no worker needs it."""
        if not job.running:
            job.kept = {}

    def end(self, job: Job, outcome: str) -> bool:
        """Computes no more of a request. Returns False if it had ended before."""
        if job.outcome is not None:
            return False
        job.outcome = outcome
        job.dropped += job.segments.elements
        job.segments.clear()
        self.open_jobs.discard(job)
        self.parked.discard(job)
        self.forget(job)
        if not self.open_jobs:
            self.changed.notify_all()
        return True
