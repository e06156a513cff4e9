"""Threads that compute side by side, each on a core of its own."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor


def start_workers(threads: int) -> ThreadPoolExecutor:
    """So many threads; 0: one for each core that this process may use, bound to it.

    Left to themselves, threads that wake each other were seen to stay on one core while the other one idled. (ONNX
    Runtime binds its own threads, too, where their number is left to it.)
    """
    cores = sorted(os.sched_getaffinity(0))
    first = os.getpid() % len(cores)  # several processes do not all begin on the same core
    free = iter(cores[first:] + cores[:first])

    def bind() -> None:
        with contextlib.suppress(OSError):  # the core was taken away meanwhile, or this is forbidden here
            os.sched_setaffinity(0, {next(free)})  # 0: the calling thread

    return ThreadPoolExecutor(threads) if threads else ThreadPoolExecutor(len(cores), initializer=bind)
