"""gRPC's own threads at a fork: they must be at rest, for gRPC can tell nobody when they are.

When a channel was closed, threads of gRPC clear away behind it. If one is still inside gRPC at the moment of the fork,
gRPC skips what it does about forks, with no error, and the child hangs in its first call: once in some thirty forks
amid calls where the processor is busy.

Under gevent, gRPC has one thread more as long as any channel is open. It takes a lock whenever a channel is closed,
waits for Python's own lock while it holds that, and never lets go of it in a child: that hangs in its first call, or at
its end.
"""

import time
from pathlib import Path

from grpc._cython import cygrpc  # gRPC shows its thread under gevent nowhere else

_LOOKS = 3  # on end at which all sleep: one hands work on to another, which is awake before the first one sleeps
_BETWEEN = 0.002  # seconds
_LONGEST = 1.0  # seconds; they never rest while another library sends calls


def wait_until_idle() -> None:
    """Wait until gRPC's threads sleep, a second at most.

    Linux alone tells the states of threads: elsewhere it is a pause.
    """
    if cygrpc.g_gevent_activated:
        # Another library's open channel keeps the thread, which then holds no lock.
        cygrpc.g_gevent_pool.join(_LONGEST)
    asleep, deadline = 0, time.monotonic() + _LONGEST
    while asleep < _LOOKS and time.monotonic() < deadline:
        asleep = asleep + 1 if _all_sleep() else 0
        time.sleep(_BETWEEN)


def _all_sleep() -> bool:
    for thread in Path("/proc/self/task").glob("*/stat"):
        try:
            name, _, state = thread.read_text().partition("(")[2].rpartition(")")
        except OSError:  # it has ended
            continue
        if name == "event_engine" and state.split()[0] != "S":
            return False
    return True
