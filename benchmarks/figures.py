"""From a load run's samples to its figures: rates, percentiles, errors, and what they were measured on.

Not known here: who sent the requests, and how.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("locust", "gevent", "grpcio", "tritonclient", "tokenizers")


@dataclass(frozen=True)
class Sample:
    """One request: seconds after the users' start when it began, seconds it took, its pairs, its error's class."""

    began: float
    took: float
    pairs: int
    error: str | None


def summarize(samples: list[Sample], begin: float, duration: float) -> dict[str, Any]:
    """The figures of the requests that began in [begin, begin + duration).

    A request belongs to the second in which it began and is counted however long it took, so a slow answer near the
    end is not lost. Rates and latencies are those of the answered requests; the others are counted as errors.

    Args:
        begin: seconds after the users' start.
        duration: seconds.

    Returns:
        requests, errors, requests_per_s, pairs_per_s, latency_ms (None if nothing was answered), error_kinds.
    """
    counted = [sample for sample in samples if begin <= sample.began < begin + duration]
    answered = [sample for sample in counted if sample.error is None]
    kinds = Counter(sample.error for sample in counted if sample.error is not None)
    return {
        "duration_s": duration,
        "requests": len(counted),
        "errors": len(counted) - len(answered),
        "requests_per_s": len(answered) / duration,
        "pairs_per_s": sum(sample.pairs for sample in answered) / duration,
        "latency_ms": latencies([sample.took for sample in answered]),
        "error_kinds": dict(kinds.most_common()),
    }


def latencies(seconds: list[float]) -> dict[str, float] | None:
    """Percentiles (exact, interpolated between neighbours), mean and maximum in milliseconds; None of nothing."""
    if not seconds:
        return None
    values = np.array(seconds) * 1000
    p50, p95, p99 = (float(value) for value in np.percentile(values, [50, 95, 99]))
    return {"p50": p50, "p95": p95, "p99": p99, "mean": float(values.mean()), "max": float(values.max())}


def table(figures: dict[str, Any]) -> str:
    """The figures for the screen: a head, a row, and a line for each kind of error."""
    latency = figures["latency_ms"] or {}
    columns = {
        "users": figures["users"],
        "requests": figures["requests"],
        "errors": figures["errors"],
        "requests/s": f"{figures['requests_per_s']:.1f}",
        "pairs/s": f"{figures['pairs_per_s']:.1f}",
        **{f"{name} ms": f"{latency[name]:.1f}" if latency else "-" for name in ("p50", "p95", "p99")},
    }
    widths = [max(len(name), len(str(value))) for name, value in columns.items()]
    rows = [
        "  ".join(str(cell).rjust(width) for cell, width in zip(cells, widths, strict=True))
        for cells in (columns.keys(), columns.values())
    ]
    return "\n".join([*rows, *(f"{count} x {kind}" for kind, count in figures["error_kinds"].items())])


def machine() -> dict[str, Any]:
    """This machine: the load's, and the server's too where the run started the server."""
    return {
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }


def cpu_name() -> str:
    """The processor as Linux names it, else its architecture."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that make the load."""
    return {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}
