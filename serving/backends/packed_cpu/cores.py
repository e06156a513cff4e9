"""The cores that a process may use, and threads that are bound to them."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from pathlib import Path
from threading import Barrier, local
from typing import IO

GROUPS = Path("/sys/fs/cgroup")
BOUND = local()  # `core`: the Core that the calling thread is bound to, where it takes turns there


class Core:
    """A core on which threads of several processes (the models of one Triton, and their versions) compute in turns.

    Two chunks at a time on a core drive each other out of its cache. The thread that computes locks the file `busy`,
    the next in line locks `next`; so a thread with many chunks cannot take `busy` again before the next one has had it.
    A lock ends with its process, however that ends.

    Raises:
        OSError: the files cannot be made or locked.
    """

    def __init__(self, folder: Path, core: int) -> None:
        self.next = (folder / f"core{core}.next").open("ab")  # both close with the thread
        self.busy = (folder / f"core{core}.busy").open("ab")
        with contextlib.suppress(BlockingIOError):  # a file system without locks raises now
            fcntl.flock(self.next, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(self.next, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Waits for the core, and keeps it until the end of the block."""
        with contextlib.ExitStack() as held:
            with locked(self.next):
                held.enter_context(locked(self.busy))
            yield


@contextlib.contextmanager
def locked(file: IO[bytes]) -> Iterator[None]:
    """Holds a file's lock until the end of the block."""
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """Waits until a worker's core is free, where threads take turns, and keeps it until the end of the block."""
    core: Core | None = getattr(BOUND, "core", None)
    with contextlib.ExitStack() as held:
        if core:
            try:
                held.enter_context(core.turn())
            except OSError:  # the file system lost its locks (a network's): no request may fail because of that
                BOUND.core = None
        yield


def start_workers(threads: int, turns: Path | None = None) -> ThreadPoolExecutor:
    """Starts worker threads, and returns when all of them run.

    Unbound threads that wake each other stayed on one core while the other one idled. (ONNX Runtime binds its own
    threads, too, unless their number is given.) A container with a share of a machine's cores instead of cores of its
    own gets as many threads as its share, and they are not bound: other containers would choose the same cores.

    Args:
        threads: how many; 0: one for each core that this process may use, bound to it.
        turns: the folder in which the processes whose bound threads take turns lock files (`turn`). None, or a
            folder that cannot be written to: there are no turns, which costs some speed.
    """
    cores = sorted(os.sched_getaffinity(0))
    usable = usable_cores()
    first = os.getpid() % len(cores)  # several processes do not all begin on the same core
    free = iter(cores[first:] + cores[:first])

    def bind() -> None:
        with contextlib.suppress(OSError):  # the core was taken away meanwhile, or binding or writing is forbidden
            core = next(free)
            os.sched_setaffinity(0, {core})  # 0: the calling thread
            if turns:
                BOUND.core = Core(turns, core)

    count = threads or usable
    pool = ThreadPoolExecutor(count, initializer=None if threads or usable < len(cores) else bind)
    together = Barrier(count, timeout=60)  # each task waits for all others, so that each needs a thread of its own
    try:
        for begun in [pool.submit(together.wait) for _ in range(count)]:
            begun.result()
    except BaseException:  # a limit on threads shows itself here, when the model is loaded, and not in a request
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
        groups: where version 2 of control groups is mounted. (Version 1 is not read: there, all cores count.)
        membership: the process's /proc/PID/cgroup.

    Returns:
        The least limit of its group and those above it; None if there is no limit.
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
