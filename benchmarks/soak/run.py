"""Mixed traffic for so many minutes: memory, descriptors, /dev/shm and threads must not grow, nor scores change.

    make soak MINUTES=60
    python -m benchmarks soak --minutes 30 --model clickbert_onnx_int8

A server is started for it. The traffic (traffic.py): usual calls, calls of several requests, calls whose deadline
passes, rankers for a single call, wrong calls, cancelled ones. Every ten seconds all callers pause for a moment; then
what server and client hold is looked at, and the same requests are scored one by one: these scores must be those of the
beginning, bit for bit. What counts as growth is in growth.py.

Ctrl-C ends it early, with the figures so far. Exit code: 1 if something grows, a score changed, a call failed that
should not, or there were too few samples to say. The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from benchmarks import BenchmarkError, say
from benchmarks.load_gen import target, workload
from benchmarks.load_gen.target import Target
from benchmarks.load_gen.workload import Request
from benchmarks.measure.environment import find_environment
from benchmarks.measure.schema import Environment, ServerInfo, dump
from benchmarks.report.tables import NONE, make_table
from benchmarks.soak.growth import LEAST, Growth, Sample, judge, take_sample
from benchmarks.soak.traffic import PATIENT, Traffic
from clickbert import Ranker

EXPECTED = target.EXPECTED
INTERVAL = 10.0  # seconds between two samples
TELL = 300.0  # seconds between two lines about the progress
ASKED = 40  # requests, of all sizes
SCORED = 8  # of them, whose scores must not change


@dataclass(frozen=True)
class SoakResult:
    """The JSON document."""

    model: str
    server: ServerInfo
    environment: Environment
    seconds: float
    calls: dict[str, int]  # by kind of caller
    faults: dict[str, str]  # of calls that should not have failed: the first of each kind
    scored: int  # times that the same requests were scored
    changed: int  # times that a score was another than at the beginning
    growth: list[Growth]
    samples: list[Sample]

    @property
    def holds(self) -> bool:
        """Whether nothing grew, changed or failed, as far as can be said."""
        known = len(self.samples) >= LEAST
        return known and not self.faults and not self.changed and not any(each.grows for each in self.growth)


def run(options: argparse.Namespace, interval: float = INTERVAL) -> int:
    """Soaks and prints. Returns the exit code.

    Raises:
        EXPECTED: there are no figures.
    """
    requests = workload.sample_of_all_sizes(workload.from_arguments(options).read(), ASKED)
    with target.log_folder() as folder, target.start_target(options.repository, folder) as server:
        result = soak(server, options.model, requests, 60 * options.minutes, interval)
    print(f"{show(result)}\n{dump(result)}")
    return 0 if result.holds else 1


def soak(server: Target, model: str, requests: Sequence[Request], seconds: float, interval: float) -> SoakResult:
    """So many seconds of traffic, or fewer if Ctrl-C is pressed."""
    samples: list[Sample] = []
    changed = 0
    with Ranker(server.connection, model, timeout=PATIENT) as ranker:
        expected = score(ranker, requests)
        scored = workload.sample_of_all_sizes(requests, SCORED)
        first = score(ranker, scored)
        say("soak", f"{seconds / 60:g} minutes on {model}; Ctrl-C ends it early, with the figures so far")
        began = told = time.monotonic()
        with Traffic(server.connection, model, requests, expected) as traffic:
            try:
                while (elapsed := time.monotonic() - began) < seconds:
                    time.sleep(min(interval, seconds - elapsed))
                    with traffic.quiet():
                        samples.append(look(server, time.monotonic() - began))
                        changed += score(ranker, scored) != first
                    if time.monotonic() - told > TELL:
                        told = time.monotonic()
                        say("soak", progress(samples[-1], traffic.tally.ends.total()))
            except KeyboardInterrupt:
                say("soak", "ended early")
    if not samples:
        raise BenchmarkError(f"it ended before the first sample, after {interval:g} s")
    tally = traffic.tally
    lasted = time.monotonic() - began
    scored_times = len(samples)
    return SoakResult(
        model,
        server.info(),
        find_environment(),
        lasted,
        dict(tally.ends),
        tally.faults,
        scored_times,
        changed,
        judge(samples),
        samples,
    )


def score(ranker: Ranker, requests: Sequence[Request]) -> list[list[float]]:
    """The scores of requests, one by one."""
    return [ranker.score_pairs([(each.query, document) for document in each.documents]) for each in requests]


def look(server: Target, seconds: float) -> Sample:
    """A sample. Raises BenchmarkError if the server has ended."""
    assert server.server
    server.check_alive()
    folder = server.server.folder
    try:
        return take_sample(
            seconds, server.server.running().pid, f"{folder.path.name}-" if folder else "clickbert-none-"
        )
    except psutil.NoSuchProcess as exc:
        raise BenchmarkError(f"a process of the server ended; {server.server.where_the_log_is()}") from exc


def progress(sample: Sample, calls: int) -> str:
    """A line on the way."""
    return (
        f"{sample.seconds / 60:.0f} min, {calls} calls; server {sample.server_memory:.0f} MB, "
        f"{sample.server_descriptors} descriptors, {sample.server_threads} threads, /dev/shm "
        f"{sample.shared_memory:.1f} MB; client {sample.client_memory:.0f} MB"
    )


def show(result: SoakResult) -> str:
    """The figures, for the screen."""

    def digits(value: float | None) -> str:
        return NONE if value is None else f"{value:.1f}"

    def verdict(growth: Growth) -> str:
        if growth.growth is None:
            return f"not known: fewer than {LEAST} samples"
        return "GROWS" if growth.grows else "flat"

    table = make_table(
        {
            "figure": lambda each: each.name.replace("_", " ") + (", MB" if each.name.endswith("memory") else ""),
            "first": lambda each: digits(each.first),
            "last": lambda each: digits(each.last),
            "most": lambda each: digits(each.most),
            "growth": lambda each: digits(each.growth),
            "allowed": lambda each: digits(each.allowed),
            "verdict": verdict,
        },
        result.growth,
    )
    calls = ", ".join(f"{count} x {kind}" for kind, count in sorted(result.calls.items()))
    lines = [
        table.text(),
        "",
        f"{result.seconds / 60:.1f} minutes; calls: {calls}",
        f"scores as at the beginning: {result.scored - result.changed} of {result.scored} times",
        *(f"should not have failed: {fault}" for fault in result.faults.values()),
    ]
    return "\n".join(lines)
