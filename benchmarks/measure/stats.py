"""From the samples of a load to its figures: rates, percentiles, errors, and whether they are the server's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.measure import schema
from benchmarks.measure.recording import CLASSES, Sample
from benchmarks.measure.schema import GeneratorUse, Latency, Step

SPANNED = 0.8  # the share of a window that its answers must span for its throughput to be that of whole turns
NO_USE = GeneratorUse(processes=0, busy=0.0, cores=0.0, first_messages={})


@dataclass(frozen=True)
class ClientLimits:
    """Beyond these a step is client-bound: its figures are the generator's own."""

    busy: float = 0.8  # the share of its time that its one thread computes; above it, requests queue in the generator
    delay_share: float = 0.25  # of the median latency: requests may start so late (p95)
    delay_ms: float = 5.0  # a delay below this never counts


LIMITS = ClientLimits()


def summarize(
    samples: Sequence[Sample],
    begin: float,
    duration: int,
    *,
    users: int | None = None,
    rate: float | None = None,
    generator: GeneratorUse = NO_USE,
    cycle: int | None = None,
    limits: ClientLimits = LIMITS,
) -> Step:
    """The figures of the window [begin, begin + duration).

    Latencies and errors are those of the requests scheduled in it, however long they took, so a slow answer
    near the end is not lost. Throughput is what was answered in it, whenever it started: past saturation that is less
    than what was offered.

    `begin` counts from the users' start, on the samples' one clock. `cycle` is for `throughput`.
    """
    started = [sample for sample in samples if begin <= sample.intended_start < begin + duration]
    answered = [sample for sample in started if sample.error is None]
    kinds = Counter(sample.error for sample in started if sample.error is not None)
    ended = [(sample.intended_start + sample.latency - begin, sample.pairs) for sample in samples if not sample.error]
    inside = sorted((at, pairs) for at, pairs in ended if 0 <= at < duration)
    requests_per_second, pairs_per_second = throughput(inside, duration, cycle)
    by_second = [0] * duration
    for at, pairs in inside:
        by_second[int(at)] += pairs
    latencies = [sample.latency for sample in answered]
    start_delays = [sample.start_delay for sample in started]
    return Step(
        users=users,
        rate=rate,
        duration=duration,
        requests=len(started),
        errors=len(started) - len(answered),
        error_kinds=dict(kinds.most_common()),
        offered_per_second=len(started) / duration,
        requests_per_second=requests_per_second,
        pairs_per_second=pairs_per_second,
        pairs_by_second=tuple(by_second),
        latency=summarize_latency(latencies),
        latencies_ms=tuple(sorted(round(each * 1000, 1) for each in latencies)),
        latency_by_size={
            size: summarize_latency([sample.latency for sample in answered if sample.size == size]) for size in CLASSES
        },
        start_delay=summarize_latency(start_delays),
        generator=generator,
        client_bound=why_client_bound(generator.busy, start_delays, latencies, limits),
    )


def throughput(answered: Sequence[tuple[float, int]], duration: float, cycle: int | None) -> tuple[float, float]:
    """Requests and pairs a second.

    Where requests take turns: that of as many whole turns as the window holds, averaged over all places where these
    fit. One request may be ten times as large as another, and the window's ends would decide how many large ones are in
    it. A window that holds no whole turn is counted as it is. So is one with a long silence at either end: whole turns
    would hide an outage.

    Args:
        answered: for each request answered in the window, seconds after its begin (ascending) and pairs.
        duration: the window's seconds.
        cycle: how many requests take turns, of all generators together; None if they do not.
    """
    at, pairs = np.array([moment for moment, _ in answered]), np.cumsum([count for _, count in answered])
    whole = (len(answered) - 1) // cycle * cycle if cycle else 0
    if whole > 0 and at[-1] - at[0] > SPANNED * duration:
        lasted = float((at[whole:] - at[:-whole]).mean())
        return whole / lasted, float((pairs[whole:] - pairs[:-whole]).mean()) / lasted
    return len(answered) / duration, float(pairs[-1]) / duration if answered else 0.0


def summarize_latency(seconds: Sequence[float]) -> Latency | None:
    """Percentiles, mean and maximum in milliseconds; None without values."""
    if not seconds:
        return None
    values = np.array(seconds) * 1000
    percentiles = np.percentile(values, schema.PERCENTILES).tolist()
    named = dict(zip(schema.percentile_names(), percentiles, strict=True))
    return Latency(named, float(values.mean()), float(values.max()))


def why_client_bound(
    busy: float, start_delays: Sequence[float], latencies: Sequence[float], limits: ClientLimits
) -> str | None:
    """Why the step is client-bound; None if its figures are the server's."""
    if busy > limits.busy:
        return f"the generator's thread was busy {busy:.0%} of the time"
    if not latencies:  # then a late generator is not to blame
        return None
    late, median = 1000 * np.percentile(start_delays, 95), 1000 * np.median(latencies)
    if late > max(limits.delay_share * median, limits.delay_ms):
        return f"requests started {late:.0f} ms late (p95), with a median latency of {median:.0f} ms"
    return None
