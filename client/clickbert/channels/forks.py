"""Forks of the process: a ranker that was used before a fork works after it, in the parent and in the child.

gRPC's threads do not live on in a child. It can start them anew there (GRPC_ENABLE_FORK_SUPPORT, which the package
sets before gRPC is imported), but only if no thread is inside gRPC at the moment of the fork. So a fork cuts off the
blocking calls that are in flight: their channels are closed, each call waits until the fork is over, and then it is
sent once more over a new channel. (A ranking computed twice does no harm.) gRPC's own threads, too, must have come to
rest by then: see `threads`. In a child every transport opens its channels anew.

Channels of asyncio keep a thread inside gRPC as long as there is one, so those without calls are dropped before a fork.
One with calls in flight cannot be: in a child of such a fork, asyncio calls are refused, for they would hang or crash.

Nor does any of this help while another library has a gRPC call in flight, such as an exporter of OpenTelemetry (OTLP):
gRPC's fork support holds for the whole process, and then hangs or crashes the child, even one that never ranks. Where
children do not rank, GRPC_ENABLE_FORK_SUPPORT=0 switches it off; calls in a child that cannot work are refused.

Not for `subprocess` without `preexec_fn`, which runs none of this: its children replace the program at once. (gevent's
own `subprocess` forks like any other.)
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol
from weakref import WeakSet

from grpc._cython import cygrpc  # gRPC tells nowhere else whether its fork support is on

from clickbert.channels import threads
from clickbert.errors import RankerClosedError

_LONGEST = 5.0  # seconds that a fork waits for calls to leave gRPC; milliseconds are enough


class Transport(Protocol):
    """What a transport does about a fork."""

    def before_fork(self, *, calls: bool) -> bool:
        """Let go of the channels, if blocking `calls` are in flight at all; False: asyncio calls keep some."""

    def after_fork_in_child(self) -> None:
        """Forget the parent's channels."""


class Lock:
    """A `threading.Lock` that is free in a child, even if another thread held it at the fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _locks.add(self)

    def acquire(self, timeout: float = -1) -> bool:
        """Wait for the lock, `timeout` seconds at most (-1: for ever); tells whether it was got."""
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        """Let others have it."""
        self._lock.release()

    def renew(self) -> None:
        """Become a free lock."""
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()


class _Gate:
    """Counts the blocking calls inside gRPC, and lets none in while the process forks."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._forking = False

    @contextmanager
    def entered(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._forking)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def shut(self) -> bool:
        """Let no call in; tells whether some are inside."""
        with self._changed:
            self._forking = True
            return self._inside > 0

    def is_empty(self, timeout: float) -> bool:
        """Wait until no call is inside, so many seconds at most."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._inside, timeout)

    def open(self) -> None:
        with self._changed:
            self._forking = False
            self._changed.notify_all()


_locks: WeakSet[Lock] = WeakSet()
_transports: WeakSet[Transport] = WeakSet()
_watching = threading.Lock()  # held while `_transports` changes, and during a fork
_gate = _Gate()
_grpc_was_used = False  # by a ranker; its threads may go on for a while when all channels are closed
_asyncio_in_flight = False  # when the process forked
_grpc_is_dead = False  # in this process, and the next one, too
_asyncio_is_dead = False


def watch(transport: Transport) -> None:
    """Tell a transport of each fork, as long as it lives."""
    with _watching:
        _transports.add(transport)


@contextmanager
def calling() -> Iterator[None]:
    """Around a blocking call into gRPC; waits while the process forks."""
    with _gate.entered():
        yield


def check_grpc() -> None:
    """Raise `RankerClosedError` if this process was forked without gRPC's fork support after a ranker was used."""
    if _grpc_is_dead:
        raise RankerClosedError(
            "this process was forked after a ranker was used, and gRPC's fork support is off, so a call would never"
            " end: leave GRPC_ENABLE_FORK_SUPPORT unset or 1 and import clickbert before grpc, fork before the first"
            " call, or have multiprocessing use 'spawn'"
        )


def note_channel() -> None:
    """Before a channel is opened: check that it can work, and remember it."""
    global _grpc_was_used  # noqa: PLW0603
    check_grpc()
    _grpc_was_used = True


def check_asyncio() -> None:
    """Raise `RankerClosedError` as `check_grpc`, or if this process was forked while asyncio calls were in flight."""
    check_grpc()
    if _asyncio_is_dead:
        raise RankerClosedError(
            "this process was forked while asyncio calls were in flight, and gRPC's asyncio does not survive that: fork"
            " before the first call, or have multiprocessing use 'spawn'"
        )


def _before() -> None:
    global _asyncio_in_flight  # noqa: PLW0603
    _watching.acquire()  # released after the fork, by the same thread in both processes
    calls = _gate.shut() or threads.under_gevent()  # there an idle channel keeps a thread, too
    _let_go(calls=calls)
    deadline = time.monotonic() + _LONGEST
    while not _gate.is_empty(0.02) and time.monotonic() < deadline:
        _let_go(calls=True)  # once more: a call that was on its way in may have opened a channel since
    _asyncio_in_flight = not _let_go(calls=calls)  # another thread's asyncio call may have begun meanwhile
    if _grpc_was_used:
        threads.wait_until_idle()


def _let_go(*, calls: bool) -> bool:
    """Have every transport let go of its channels; False: asyncio calls keep some."""
    kept = [each for each in _transports if not each.before_fork(calls=calls)]
    return not kept


def _after_in_parent() -> None:
    _gate.open()
    _watching.release()


def _after_in_child() -> None:
    global _gate, _asyncio_is_dead, _grpc_is_dead  # noqa: PLW0603
    _gate = _Gate()
    _asyncio_is_dead = _asyncio_is_dead or _asyncio_in_flight
    _grpc_is_dead = _grpc_is_dead or (_grpc_was_used and not cygrpc.is_fork_support_enabled())
    for lock in list(_locks):
        lock.renew()
    for transport in _transports:
        transport.after_fork_in_child()
    _watching.release()


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
