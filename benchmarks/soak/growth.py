"""What processes hold on to, looked at again and again, and whether it grows.

Growth is the Theil-Sen slope (the median of the slopes between all pairs of samples, which a few high samples cannot
move) times the time looked at. The first quarter of the samples is left out: caches and memory pools fill then. A
figure grows if that is more than it may (ALLOWED), and the slope's 95 % confidence interval lies above zero.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median

import psutil
from scipy.stats import theilslopes

WARM_UP = 0.25  # the share of the samples that is left out
LEAST = 8  # samples; of fewer nothing is said
SHARED_MEMORY = Path("/dev/shm")
MEGABYTE = 1e6


@dataclass(frozen=True)
class Sample:
    """What was held at a moment. `server`: all processes of tritonserver; `client`: this process. Memory in MB.

    `server_memory` and `client_memory` are their own memory and their share of what they share with others; in the
    client without what it has freed.
    `shared_memory` are the server's files in /dev/shm.
    """

    seconds: float
    server_memory: float
    server_descriptors: int
    server_threads: int
    shared_memory: float
    client_memory: float
    client_descriptors: int
    client_threads: int


NAMES = tuple(entry.name for entry in fields(Sample) if entry.name != "seconds")
ALLOWED_MEMORY = 0.05  # of the median
ALLOWED_COUNT = 5.0


@dataclass(frozen=True)
class Growth:
    """How a figure went. `growth` and `allowed` in its own unit; both are None if there are too few samples."""

    name: str
    first: float
    last: float
    most: float
    growth: float | None
    allowed: float | None
    grows: bool


def take_sample(seconds: float, server: int, regions: str) -> Sample:
    """Looks at the processes.

    Args:
        seconds: since the beginning.
        server: tritonserver's process.
        regions: how its files in /dev/shm begin.

    Raises:
        psutil.NoSuchProcess: it is gone.
    """
    root = psutil.Process(server)
    here = psutil.Process()
    give_back_freed()
    servers = measure([root, *root.children(recursive=True)])
    sizes = []
    for path in SHARED_MEMORY.glob(f"{regions}*"):
        with contextlib.suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return Sample(seconds, *servers, sum(sizes) / MEGABYTE, *measure([here]))


def give_back_freed() -> None:
    """Has glibc give this process' freed memory back to the system.

    glibc keeps what was freed, in an arena for each of many threads: here 30 to 50 MB within minutes, and more later.
    That says nothing of what the client holds. (Elsewhere than on glibc nothing is done.)
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def measure(processes: Sequence[psutil.Process]) -> tuple[float, int, int]:
    """Memory, descriptors and threads of all of them together."""
    memory = sum(process.memory_full_info().pss for process in processes) / MEGABYTE
    return memory, sum(each.num_fds() for each in processes), sum(each.num_threads() for each in processes)


def judge(samples: Sequence[Sample]) -> list[Growth]:
    """Each figure's growth. `samples`: at least one."""
    return [judge_one(name, samples) for name in NAMES]


def judge_one(name: str, samples: Sequence[Sample]) -> Growth:
    """One figure's growth."""
    values = [float(getattr(sample, name)) for sample in samples]
    seen = values[0], values[-1], max(values)
    if len(samples) < LEAST:
        return Growth(name, *seen, None, None, False)
    start = int(len(samples) * WARM_UP)
    moments = [sample.seconds for sample in samples[start:]]
    slope, _, low, _ = theilslopes(values[start:], moments)
    growth = float(slope) * (moments[-1] - moments[0])
    allowed = ALLOWED_MEMORY * median(values[start:]) if name.endswith("memory") else ALLOWED_COUNT
    return Growth(name, *seen, growth, allowed, bool(growth > allowed and low > 0))
