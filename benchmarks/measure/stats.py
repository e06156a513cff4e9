"""From a load run's samples to its figures: rates, percentiles, errors, and what they were measured on.

Not known here: who sent the requests, and how.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.load_gen.workload import CLASSES
from release.hardware import find_gpus
from serving.backends.onnxruntime.workers import usable_cores

# Above this share of its time a generator's one thread has queues of its own.
BUSY = 0.8
# A generator that begins this share of a median latency late (p95) measures itself; below LEAST_LAG, ms, never mind.
LAG, LEAST_LAG = 0.25, 5.0
SPANNED = 0.8  # of a window, by its answers, for its throughput to be that of whole turns
PACKAGES = ("locust", "gevent", "grpcio", "tritonclient", "tokenizers")


@dataclass(frozen=True)
class Sample:
    """One request: when it was to begin (seconds after the users' start), how much later it began, how many seconds
    after the planned moment it was answered, its pairs, its error's class, its size class (workload.CLASSES)."""

    planned: float
    lag: float
    took: float
    pairs: int
    error: str | None
    size: str


def summarize(samples: list[Sample], begin: float, duration: float, cycle: int | None = None) -> dict[str, Any]:
    """The figures of the window [begin, begin + duration).

    Latencies and errors are those of the requests that were to begin in it, however long they took, so a slow answer
    near the end is not lost. Throughput is of what was answered in it, whenever it began: past saturation that is less
    than what was offered.

    Args:
        samples: of all generators, on one clock.
        begin: seconds after the users' start.
        duration: seconds, a whole number.
        cycle: how many requests take turns, where they do (a closed loop), for `throughput`.

    Returns:
        duration_s, requests, errors, error_kinds, offered_per_s, requests_per_s, pairs_per_s, pairs_by_second,
        latency_ms (None if nothing was answered), latencies_ms (each, ascending), latency_by_size_ms, lag_ms.
    """
    planned = [sample for sample in samples if begin <= sample.planned < begin + duration]
    answered = [sample for sample in planned if sample.error is None]
    kinds = Counter(sample.error for sample in planned if sample.error is not None)
    ended = [(sample.planned + sample.took - begin, sample.pairs) for sample in samples if sample.error is None]
    inside = sorted((at, pairs) for at, pairs in ended if 0 <= at < duration)
    requests_per_s, pairs_per_s = throughput(inside, duration, cycle)
    by_second = [0] * int(duration)
    for at, pairs in inside:
        by_second[int(at)] += pairs
    return {
        "duration_s": duration,
        "requests": len(planned),
        "errors": len(planned) - len(answered),
        "error_kinds": dict(kinds.most_common()),
        "offered_per_s": len(planned) / duration,
        "requests_per_s": requests_per_s,
        "pairs_per_s": pairs_per_s,
        "pairs_by_second": by_second,
        "latency_ms": latencies([sample.took for sample in answered]),
        "latencies_ms": sorted(round(sample.took * 1000, 1) for sample in answered),
        "latency_by_size_ms": {
            size: latencies([sample.took for sample in answered if sample.size == size]) for size in CLASSES
        },
        "lag_ms": latencies([sample.lag for sample in planned]),
    }


def throughput(answered: Sequence[tuple[float, int]], duration: float, cycle: int | None) -> tuple[float, float]:
    """Requests and pairs a second.

    Where requests take turns: of as many whole turns of all as the window holds, the mean of all places in which these
    fit. One request may be ten times as large as another, and where a window ends would decide how many of the large
    ones are in it. A window that holds no whole turn is counted as it is, and so is one at whose begin or end nothing
    is answered for long: turns would not know of an outage.

    Args:
        answered: seconds after the window's begin, ascending, and pairs of each request that was answered in it.
        duration: the window's seconds.
        cycle: how many requests take turns (of all generators together); None if they do not.
    """
    at, pairs = np.array([moment for moment, _ in answered]), np.cumsum([count for _, count in answered])
    whole = (len(answered) - 1) // cycle * cycle if cycle else 0
    if whole > 0 and at[-1] - at[0] > SPANNED * duration:
        lasted = float((at[whole:] - at[:-whole]).mean())
        return whole / lasted, float((pairs[whole:] - pairs[:-whole]).mean()) / lasted
    return len(answered) / duration, float(pairs[-1]) / duration if answered else 0.0


def latencies(seconds: list[float]) -> dict[str, float] | None:
    """Percentiles (exact, interpolated between neighbours), mean and maximum in milliseconds; None of nothing."""
    if not seconds:
        return None
    values = np.array(seconds) * 1000
    p50, p95, p99 = (float(value) for value in np.percentile(values, [50, 95, 99]))
    return {"p50": p50, "p95": p95, "p99": p99, "mean": float(values.mean()), "max": float(values.max())}


def what_limits_the_generator(figures: dict[str, Any], busy: float) -> str | None:
    """Why the figures would be the generator's own and not the server's; None if they are the server's.

    Args:
        figures: of `summarize`.
        busy: share of its time that the busiest generator's thread computed.
    """
    if busy > BUSY:
        return f"its thread was busy {busy:.0%} of the time"
    lag, latency = figures["lag_ms"], figures["latency_ms"]
    if lag and latency and lag["p95"] > max(LAG * latency["p50"], LEAST_LAG):
        return f"it began requests {lag['p95']:.0f} ms late (p95), where half are answered in {latency['p50']:.0f} ms"
    return None


def left_of_ceiling(ceiling: dict[str, Any], step: dict[str, Any], cores: int) -> float:
    """Pairs per second that the engine could do in process on what the generators of a step leave of its cores.

    A GPU is no core: the generators take nothing of it.
    """
    taken = step["generator"]["cores"] / cores if ceiling["on_cpu"] else 0.0
    return float(ceiling["pairs_per_second"] * (1 - taken))


def is_sound(step: dict[str, Any]) -> bool:
    """Whether a step's figures are the server's. (It may have answered nothing.)"""
    return step["generator"]["limit"] is None


def table(steps: list[dict[str, Any]]) -> str:
    """Steps for the screen: a head, a row a step, and a line for each kind of error.

    Where the generator was the limit the row says so, and has no figures.
    """
    rows = [row(step) for step in steps]
    head, *lines = aligned(list(rows[0]), [list(each.values()) for each in rows]).splitlines()
    shown = [head]
    for line, step in zip(lines, steps, strict=True):
        limit = step["generator"]["limit"]
        shown.append(line + (f"  the generator is the limit: {limit}" if limit else ""))
    shown += [f"{load_name(step)}: {count} x {kind}" for step in steps for kind, count in step["error_kinds"].items()]
    return "\n".join(shown)


def aligned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A head and rows of cells as lines of columns."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    cells = [heads, *rows]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(each, widths, strict=True)) for each in cells)


def alone_and_open(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A model's step of one user, in which nothing waits, and its open loop."""
    return [*(step for step in found["closed"] if step["users"] == 1), *found["open"]]


def by_size(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A model's latencies by the size of a request, alone (one user) and in the open loop: heads, a row a class."""
    steps = alone_and_open(found)
    names = ["one user" if step["users"] else load_name(step) for step in steps]
    rows = [[size, *(percentiles(step, step["latency_by_size_ms"][size]) for step in steps)] for size in CLASSES]
    return ["", *names], [*rows, ["all", *(percentiles(step, step["latency_ms"]) for step in steps)]]


def percentiles(step: dict[str, Any], latency: dict[str, float] | None) -> str:
    """A latency's p50 / p95 / p99, ms; none where the generator was the step's limit, or nothing was answered."""
    if not is_sound(step) or latency is None:
        return "-"
    return " / ".join(f"{latency[name]:.0f}" for name in ("p50", "p95", "p99"))


def load_name(step: dict[str, Any]) -> str:
    """A step's load in words."""
    return f"{step['users']} users" if step["users"] else f"{step['rate']:.1f}/s"


def slo_outcome(slo: dict[str, Any]) -> str:
    """What the search for an SLO found, in words."""
    if any(step["generator"]["limit"] for step in slo["steps"]):
        return f"{slo['aim']} is not known: the generator is the limit"
    rate = slo["requests_per_s"]
    return f"{slo['aim']} " + (f"holds up to {rate:.1f} requests/s" if rate else "never holds")


def beside(found: dict[str, Any]) -> str:
    """How much faster a model is than another one, in words."""
    rounds = ", ".join(f"{ratio:.2f}" for ratio in found["rounds"])
    return f"{found['ratio']:.2f} times {found['model']} (in turns: {rounds})"


def row(step: dict[str, Any]) -> dict[str, str]:
    """A step's cells by their heads."""
    limited = not is_sound(step)
    latency = None if limited else step["latency_ms"]
    return {
        "load": load_name(step),
        "requests": str(step["requests"]),
        "errors": str(step["errors"]),
        "requests/s": "-" if limited else f"{step['requests_per_s']:.1f}",
        "pairs/s": "-" if limited else f"{step['pairs_per_s']:.0f}",
        **{f"{name} ms": f"{latency[name]:.1f}" if latency else "-" for name in ("p50", "p95", "p99")},
    }


def machine() -> dict[str, Any]:
    """This machine: the load's, and the server's too where the run started the server."""
    return {
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [str(gpu) for gpu in find_gpus()],
    }


def processors(machine: dict[str, Any]) -> str:
    """What a result's machine computes with, in words."""
    found = [f"{machine.get('cpu')}, {machine.get('cores')} cores", *machine.get("gpus", ())]
    return "; ".join(found)


def cpu_name() -> str:
    """The processor as Linux names it, else its architecture."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that make the load."""
    return {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}
