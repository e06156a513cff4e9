"""Counts how requests fared, and publishes it at Triton's metrics endpoint.

Triton's own durations end when the backend has taken a request, so they say nothing. Every figure has the labels
`model` and `version`, and the durations `up_to`: the class of the request's size, by its elements (a click model's are
tokens).

    clickbert_requests_total              by `outcome` (service.py names them)
    clickbert_request_waiting_seconds     from its arrival to its first chunk
    clickbert_request_computing_seconds   its share of its chunks' time on a core
    clickbert_request_seconds             from its arrival to its answer
    clickbert_chunks_total                chunks computed
    clickbert_elements_total              elements computed
    clickbert_elements_padded_total       the same, if each request was padded to its longest segment
    clickbert_elements_dropped_total      by `outcome`: elements of requests that were taken, and never computed
    clickbert_scores_total                by `up_to`: pairs of answered requests by their click probability (scores.py)
    clickbert_scores_expected             by `up_to`: the share of the evaluation log's pairs; none of older versions
    clickbert_waiting_requests, clickbert_waiting_elements, clickbert_waiting_seconds
                                          the work that waits now; the seconds are those that all cores need for it

A figure costs a message to Triton. So they are gathered here, and published a few times a second.
"""

from __future__ import annotations

import threading
import traceback
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from release.names import LOGITS
from serving.backends.packed_cpu.schedule import Job, Part, Schedule
from serving.backends.packed_cpu.scores import Scoring, count_scores
from serving.backends.packed_cpu.segments import Array, Arrays

SIZES = (256, 1024, 4096)  # elements; a larger request is of the last class
BOUNDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # seconds
PERIOD = 0.25  # seconds
WAITING, COMPUTING, TOTAL = DURATIONS = (
    "clickbert_request_waiting_seconds",
    "clickbert_request_computing_seconds",
    "clickbert_request_seconds",
)
REQUESTS = "clickbert_requests_total"
ELEMENTS, PADDED = "clickbert_elements_total", "clickbert_elements_padded_total"
DROPPED = "clickbert_elements_dropped_total"
CHUNKS = "clickbert_chunks_total"
SCORED, EXPECTED = "clickbert_scores_total", "clickbert_scores_expected"
LOADS = ("clickbert_waiting_requests", "clickbert_waiting_elements", "clickbert_waiting_seconds")
GAUGES = (*LOADS, EXPECTED)
HELP = {
    REQUESTS: "Requests by outcome",
    WAITING: "Seconds from a request's arrival to its first chunk",
    COMPUTING: "A request's share of its chunks' seconds on a core",
    TOTAL: "Seconds from a request's arrival to its answer",
    ELEMENTS: "Elements computed",
    PADDED: "Elements computed, if each request was padded to its longest segment",
    DROPPED: "Elements of requests that were taken and then dropped before these were computed",
    CHUNKS: "Chunks computed",
    SCORED: "Pairs (or passages) of answered requests by their click probability",
    EXPECTED: "The share of the evaluation log's pairs by their click probability",
    **dict(
        zip(LOADS, ("Requests that wait", "Elements that wait", "Seconds that all cores need for them"), strict=True)
    ),
}
Open = Callable[[str, str, dict[str, str]], Any]


class Published:
    """The figures of one version of a model.

    Args:
        open_metric: opens a metric of a name (its kind follows from it), with a description and labels.
        labels: of all metrics.
        scoring: what is known of its scores; None: they are not counted.
    """

    def __init__(self, open_metric: Open, labels: dict[str, str], scoring: Scoring | None = None) -> None:
        self.open_metric, self.labels, self.scoring = open_metric, labels, scoring
        self.lock = threading.Lock()
        self.counts: Counter[tuple[str, str, str]] = Counter()  # name, further label, its value
        self.observed: list[tuple[str, str, float]] = []
        self.logits: list[Array] = []  # of answered requests
        self.introduced = False  # whether every class of the scores was published once
        self.metrics: dict[tuple[str, str, str], Any] = {}
        self.ending = threading.Event()
        self.thread: threading.Thread | None = None

    def chunk(self, parts: Sequence[Part]) -> None:
        """A chunk was computed."""
        with self.lock:
            self.counts[CHUNKS, "", ""] += 1
            for part in parts:
                self.counts[ELEMENTS, "", ""] += part.elements
                self.counts[PADDED, "", ""] += len(part.taken.places) * part.job.longest

    def answered(self, answer: Arrays) -> None:
        """A request was answered; told before it has `ended`."""
        if self.scoring and LOGITS in answer:
            with self.lock:
                self.logits.append(answer[LOGITS])

    def ended(self, outcome: str, job: Job | None, now: float) -> None:
        """A request ended; it has no job if it was never taken."""
        with self.lock:
            self.counts[REQUESTS, "outcome", outcome] += 1
            if job is None:
                return
            if outcome != "answered":
                self.counts[DROPPED, "outcome", outcome] += job.dropped
                return
            size = size_class(job.elements)
            begun = job.arrived if job.begun is None else job.begun
            for name, seconds in zip(DURATIONS, (begun - job.arrived, job.computing, now - job.arrived), strict=True):
                self.observed.append((name, size, seconds))

    def start(self, schedule: Schedule) -> None:
        """Publishes from now on, until `close`."""
        self.thread = threading.Thread(target=self.publish_often, args=(schedule,), daemon=True)
        self.thread.start()

    def publish_often(self, schedule: Schedule) -> None:
        """What the publishing thread does."""
        told = last = False
        while True:
            try:
                self.publish(schedule)
            except Exception:  # figures may be lost; requests are answered all the same
                if not told:
                    traceback.print_exc()
                told = True
            if last:
                return
            last = self.ending.wait(PERIOD)

    def publish(self, schedule: Schedule) -> None:
        """Sends Triton what was gathered since the last time."""
        with self.lock:
            counts, self.counts = self.counts, Counter()
            observed, self.observed = self.observed, []
            logits, self.logits = self.logits, []
        for name, size, seconds in observed:
            self.metric(name, "up_to", size).observe(seconds)
        try:
            if self.scoring:
                self.publish_scores(self.scoring, logits)
        finally:  # whatever becomes of the scores, requests are counted
            self.publish_counts(counts)
        for name, value in zip(LOADS, schedule.load(), strict=True):
            self.metric(name).set(value)

    def publish_counts(self, counts: Counter[tuple[str, str, str]]) -> None:
        """Sends Triton the counts."""
        # Requests last: whoever finds one counted finds all that belongs to it.
        for key, count in sorted(counts.items(), key=lambda item: item[0][0] == REQUESTS):
            self.metric(*key).increment(count)

    def publish_scores(self, scoring: Scoring, logits: Sequence[Array]) -> None:
        """Sends Triton the scores of answered requests; the first time all classes, so that an empty one is a zero."""
        counts = count_scores(logits, scoring.click_label)
        if not self.introduced:
            for bound, share in scoring.expected.items():
                self.metric(EXPECTED, "up_to", bound).set(share)
        for bound, count in counts.items():
            if count or not self.introduced:
                self.metric(SCORED, "up_to", bound).increment(count)
        self.introduced = True

    def metric(self, name: str, label: str = "", value: str = "") -> Any:
        """The metric of a name, with a further label if it has one."""
        key = (name, label, value)
        if key not in self.metrics:
            labels = self.labels | ({label: value} if label else {})
            self.metrics[key] = self.open_metric(name, HELP[name], labels)
        return self.metrics[key]

    def close(self) -> None:
        """Publishes what is left, and ends the thread."""
        self.ending.set()
        if self.thread:
            self.thread.join()
        self.metrics.clear()


def size_class(elements: int) -> str:
    """The class of a request's size: the least of `SIZES` that holds it."""
    place = bisect_left(SIZES, elements)
    return str(SIZES[place]) if place < len(SIZES) else "+Inf"
