"""What is published at the metrics endpoint, with metrics that only keep their values."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from release.expected import SCORES
from serving.backends.packed_cpu import figures
from serving.backends.packed_cpu.figures import Published, size_class
from serving.backends.packed_cpu.schedule import Job, Schedule
from serving.backends.packed_cpu.scores import Scoring
from serving.backends.packed_cpu.segments import Segments
from tests.waiting import eventually


class Metrics:
    def __init__(self) -> None:
        self.values: dict[tuple, list] = defaultdict(list)

    def open(self, name: str, description: str, labels: dict[str, str]) -> Any:
        assert description
        values = self.values[name, tuple(sorted(labels.items()))]

        class Metric:
            increment = set = observe = staticmethod(values.append)

        return Metric()

    def of(self, name: str, **labels: str) -> list:
        return self.values[name, tuple(sorted({"model": "m", "version": "3", **labels}.items()))]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def published(metrics: Metrics) -> Published:
    return Published(metrics.open, {"model": "m", "version": "3"})


def run(
    schedule: Schedule, published: Published, lengths: list[int], seconds: float, outcome: str = "answered"
) -> None:
    job = Job("r", {}, [], Segments(np.array(lengths)), schedule.clock(), schedule.clock() + 60)
    schedule.admit(job)
    parts, _ = schedule.take()
    schedule.finish(parts, seconds)
    published.chunk(parts)
    if outcome != "answered":
        schedule.drop(job, outcome)
    published.ended(outcome, job, schedule.clock())


def test_what_was_computed_and_what_padding_would_have_computed(metrics: Metrics, published: Published) -> None:
    schedule = Schedule(1000, 1)
    run(schedule, published, [10, 20, 30], 0.5)
    run(schedule, published, [100], 0.5)
    published.publish(schedule)
    assert metrics.of(figures.CHUNKS) == [2]
    assert metrics.of(figures.ELEMENTS) == [160]
    assert metrics.of(figures.PADDED) == [3 * 30 + 100]
    assert metrics.of(figures.REQUESTS, outcome="answered") == [2]
    assert metrics.of("clickbert_request_computing_seconds", up_to="256") == [0.5, 0.5]


def test_durations_are_those_of_the_clock(metrics: Metrics, published: Published) -> None:
    now = [10.0]
    schedule = Schedule(1000, 1, lambda: now[0])
    job = Job("r", {}, [], Segments(np.array([300])), 10.0, 60.0)
    schedule.admit(job)
    now[0] = 12.0
    parts, _ = schedule.take()
    now[0] = 12.5
    schedule.finish(parts, 0.5)
    published.ended("answered", job, 13.0)
    published.publish(schedule)
    found = [metrics.of(name, up_to="1024") for name in figures.DURATIONS]
    assert found == [[2.0], [0.5], [3.0]]


def test_dropped_work_is_counted_by_cause(metrics: Metrics, published: Published) -> None:
    schedule = Schedule(100, 1)
    run(schedule, published, [50] * 6, 0.5, "cancelled")
    published.ended("full", None, 0.0)
    published.publish(schedule)
    assert metrics.of(figures.DROPPED, outcome="cancelled") == [200]
    assert metrics.of(figures.REQUESTS, outcome="cancelled") == [1]
    assert metrics.of(figures.REQUESTS, outcome="full") == [1]
    assert not [name for name, _ in metrics.values if name in figures.DURATIONS]


def test_what_waits_is_shown_as_it_is_now(metrics: Metrics, published: Published) -> None:
    schedule = Schedule(100, 2)
    schedule.pace = 0.01
    for _ in range(3):
        schedule.admit(Job("r", {}, [], Segments(np.array([50, 50])), schedule.clock(), schedule.clock() + 60))
    published.publish(schedule)
    schedule.take()
    published.publish(schedule)
    assert [metrics.of(name) for name in figures.LOADS] == [[3, 2], [300, 200], [1.5, 1.0]]


def test_scores_of_answered_requests_are_counted_beside_those_to_expect(metrics: Metrics) -> None:
    expected = dict.fromkeys(SCORES, 0.0) | {"0.50": 1.0}
    published = Published(metrics.open, {"model": "m", "version": "3"}, Scoring(0, expected))
    schedule = Schedule(100, 1)
    published.publish(schedule)
    assert [metrics.of(figures.SCORED, up_to=name) for name in SCORES] == [[0]] * len(SCORES), "every class is there"
    published.answered({"logits": np.zeros((1, 3, 1), np.float32)})
    published.answered({"logits": np.array([[[9.0], [0.0]]], np.float32), "embedding": np.ones((1, 2, 4))})
    published.answered({"embedding": np.ones((1, 2, 4))})
    published.publish(schedule)
    published.publish(schedule)
    assert {name: found[1:] for name in SCORES if (found := metrics.of(figures.SCORED, up_to=name))[1:]} == {
        "0.50": [4],
        "1.00": [1],
    }
    assert [metrics.of(figures.EXPECTED, up_to=name) for name in SCORES] == [[share] for share in expected.values()]


def test_a_version_that_says_nothing_of_scores_has_none(metrics: Metrics, published: Published) -> None:
    schedule = Schedule(100, 1)
    published.answered({"logits": np.zeros((1, 3, 1), np.float32)})
    published.publish(schedule)
    assert not [name for name, _ in metrics.values if name in (figures.SCORED, figures.EXPECTED)]
    of_a_former_release = Published(metrics.open, {"model": "m", "version": "3"}, Scoring(0, {}))
    of_a_former_release.publish(schedule)
    assert [name for name, _ in metrics.values if name in (figures.SCORED, figures.EXPECTED)] == [figures.SCORED] * 20


def test_nothing_is_published_twice(metrics: Metrics, published: Published) -> None:
    schedule = Schedule(100, 1)
    published.ended("full", None, 0.0)
    published.publish(schedule)
    published.publish(schedule)
    assert metrics.of(figures.REQUESTS, outcome="full") == [1]


def test_the_end_publishes_what_is_left(metrics: Metrics, published: Published) -> None:
    published.start(Schedule(100, 1))
    published.ended("full", None, 0.0)
    published.close()
    assert sum(metrics.of(figures.REQUESTS, outcome="full")) == 1


@pytest.mark.parametrize(
    ("elements", "size"), [(1, "256"), (256, "256"), (257, "1024"), (4096, "4096"), (4097, "+Inf")]
)
def test_classes_of_size(elements: int, size: str) -> None:
    assert size_class(elements) == size


def test_every_figure_is_described_in_the_module() -> None:
    assert figures.__doc__
    for name in figures.HELP:
        assert name in figures.__doc__


def test_a_figure_that_cannot_be_published_ends_nothing(metrics: Metrics, capsys: pytest.CaptureFixture[str]) -> None:
    broken = [True]

    def open_metric(name: str, description: str, labels: dict[str, str]) -> Any:
        if broken[0]:
            raise RuntimeError("no metrics")
        return metrics.open(name, description, labels)

    published = Published(open_metric, {"model": "m", "version": "3"})
    published.start(Schedule(100, 1))
    published.ended("full", None, 0.0)
    eventually(lambda: not published.counts)
    broken[0] = False
    published.ended("full", None, 0.0)
    published.close()
    assert metrics.of(figures.REQUESTS, outcome="full") == [1]
    assert capsys.readouterr().err.count("RuntimeError: no metrics") == 1
