"""Threads that compute side by side."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from pathlib import Path
from threading import Barrier

GROUPS = Path("/sys/fs/cgroup")


def start_workers(threads: int) -> ThreadPoolExecutor:
    """So many threads, all running; 0: one for each core that this process may use, bound to it.

    Left to themselves, threads that wake each other were seen to stay on one core while the other one idled. (ONNX
    Runtime binds its own threads, too, where their number is left to it.) Where a container has a share of a machine's
    cores and not cores of its own, they are as many as its share, and not bound: others would choose the same cores.
    """
    cores = sorted(os.sched_getaffinity(0))
    usable = usable_cores()
    first = os.getpid() % len(cores)  # several processes do not all begin on the same core
    free = iter(cores[first:] + cores[:first])

    def bind() -> None:
        with contextlib.suppress(OSError):  # the core was taken away meanwhile, or this is forbidden here
            os.sched_setaffinity(0, {next(free)})  # 0: the calling thread

    count = threads or usable
    pool = ThreadPoolExecutor(count, initializer=None if threads or usable < len(cores) else bind)
    together = Barrier(count, timeout=60)  # each waits for all others, so that each is one of its own
    try:
        for begun in [pool.submit(together.wait) for _ in range(count)]:
            begun.result()
    except BaseException:  # a limit of threads is met here, when the model is loaded, and not by a request
        together.abort()
        raise
    return pool


def usable_cores() -> int:
    """How many cores this process may use at a time: by its affinity, and by the limit of its control groups."""
    cores = len(os.sched_getaffinity(0))
    limit = cpu_limit(GROUPS, Path("/proc/self/cgroup"))
    return cores if limit is None else min(cores, max(1, ceil(limit)))


def cpu_limit(groups: Path, membership: Path) -> float | None:
    """How many cores' time the control groups of a process allow it (`docker run --cpus`, Kubernetes' limits).

    Args:
        groups: where version 2 of control groups is mounted. (Version 1 is not read: then all cores are taken.)
        membership: the process's /proc/PID/cgroup.

    Returns:
        The least limit of its group and those above it; None without any.
    """
    limits = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = membership.read_text(encoding="utf-8").splitlines()
        group = groups / next(line for line in lines if line.startswith("0::")).removeprefix("0::/")
        for each in (group, *group.parents):
            if not each.is_relative_to(groups):
                break
            if (file := each / "cpu.max").is_file():  # the root of all has none, that of a container has
                quota, period = file.read_text(encoding="utf-8").split()
                limits += [] if quota == "max" else [int(quota) / int(period)]
    return min(limits, default=None)
