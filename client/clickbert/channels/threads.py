"""gRPC's own threads at a fork: they must be at rest, and gRPC does not tell when they are.

When a channel was closed, threads of gRPC clear away behind it. If one is still inside gRPC at the moment of the fork,
gRPC skips what it does about forks, with no error, and the child hangs in its first call: once in some thirty forks
amid calls where the processor is busy. A thread that waits for a lock inside gRPC looks as if it were at rest, so this
is no proof; in hundreds of such forks no child hung.

Under gevent, gRPC has one thread more as long as any channel is open. It takes a lock whenever the last one is closed,
waits for Python's own lock while it holds that, and never lets go of it in a child: that hangs in its first call, or at
its end.
"""

import time
from pathlib import Path

from grpc._cython import cygrpc  # gRPC shows its thread under gevent nowhere else

NAME = b"event_engine"  # of gRPC's threads
_TASKS = Path("/proc/self/task")
_LOOKS = 3  # on end at which all sleep: one hands work on to another, which is awake before the first one sleeps
_BETWEEN = 0.002  # seconds
_LONGEST = 1.0  # seconds; they never rest while another library sends calls
_GEVENT = 0.25  # seconds; another library's open channel keeps gevent's thread, which then holds no lock


def under_gevent() -> bool:
    """Whether gRPC waits through gevent."""
    return bool(getattr(cygrpc, "g_gevent_activated", False))


def wait_until_idle() -> None:
    """Wait until gRPC's threads sleep, a second at most. Linux alone tells the states of threads."""
    deadline = time.monotonic() + _LONGEST
    if under_gevent():
        cygrpc.g_gevent_pool.join(_GEVENT)
    asleep = 0
    while time.monotonic() < deadline:
        states = _states()
        asleep = asleep + 1 if states <= {b"S"} else 0
        if not states or asleep == _LOOKS:
            return
        time.sleep(_BETWEEN)


def _states(tasks: Path = _TASKS) -> set[bytes]:
    """The states that gRPC's threads are in, such as S for asleep. Without any: none."""
    states = set()
    for thread in tasks.glob("*/stat"):
        try:
            name, _, rest = thread.read_bytes().partition(b"(")[2].rpartition(b")")
        except OSError:  # it has ended
            continue
        if name == NAME:
            states.add(rest.split()[0])
    return states
