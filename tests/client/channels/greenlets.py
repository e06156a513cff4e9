"""Scenarios of test_gevent.py: `python greenlets.py URL SCENARIO` prints how its calls ended."""
# ruff: noqa: E402

from gevent import monkey

monkey.patch_all()

import asyncio
import os
import sys

import gevent
import gevent.socket
from grpc.experimental.gevent import init_gevent

from clickbert import AsyncRanker, InvalidInputError, Ranker

init_gevent()
CALLS = 48
PATIENCE = 60.0


def rank_in_greenlets(ranker: Ranker, documents: int) -> str:
    """Says how many documents each call ranked, which differ, so that no call is another's."""
    counts = [documents + number for number in range(CALLS)]
    calls = [gevent.spawn(ranker.rank, "tea", [f"a{n}" for n in range(count)], timeout=PATIENCE) for count in counts]
    right = [len(call.get()) == count for call, count in zip(calls, counts, strict=True)]
    return f"{sum(right)} of {CALLS}"


def rank(ranker: Ranker) -> None:
    print(rank_in_greenlets(ranker, documents=1))
    # Calls of several requests take threads of their own, which are greenlets here.
    print(rank_in_greenlets(ranker, documents=200))


def unanswered_call(ranker: Ranker) -> gevent.Greenlet:
    """A call that is at the server: the test says so by a line on stdin."""
    call = gevent.spawn(ranker.rank, "tea", ["a bar"], timeout=PATIENCE)
    gevent.socket.wait_read(sys.stdin.fileno())
    return call


def fork(ranker: Ranker) -> None:
    """As gunicorn's workers of gevent, but also while a greenlet waits for the server."""
    call = unanswered_call(ranker)
    process = os.fork()
    if process == 0:
        try:
            print("child", rank_in_greenlets(ranker, documents=1), flush=True)
        finally:
            os._exit(0)
    os.waitpid(process, 0)
    print("parent", len(call.get()))


def idle_fork(ranker: Ranker) -> None:
    """As gunicorn's workers of gevent with `preload_app`: each uses the ranker, and ends by itself."""
    ranker.rank("tea", ["a bar"])
    children = []
    for _ in range(2):
        process = os.fork()
        if process == 0:
            found = len(ranker.rank("tea", ["a bar", "a bank"], timeout=PATIENCE))
            os.write(1, f"child {found}\n".encode())  # in one piece, beside the other child's
            ranker.close()
            sys.exit(3)
        children.append(process)
    print("ended", *(os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) for each in children))
    print("parent", len(ranker.rank("tea", ["a bar"])))


def give_up(ranker: Ranker) -> None:
    """gevent ends a call from outside, and the ranker works on."""
    unanswered_call(ranker).kill()
    print(len(ranker.rank("tea", ["a bar", "a bank"], timeout=PATIENCE)))


def awaited(_: Ranker) -> None:
    try:
        asyncio.run(AsyncRanker(sys.argv[1]).rank("tea", ["a bar"]))
    except InvalidInputError as exc:
        print(exc)


if __name__ == "__main__":
    with Ranker(sys.argv[1], retries=0) as ranker:
        {each.__name__: each for each in (rank, fork, idle_fork, give_up, awaited)}[sys.argv[2]](ranker)
