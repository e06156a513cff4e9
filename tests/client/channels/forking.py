"""Scenarios of test_forks.py, and of the real server's: `python forking.py URL SCENARIO` prints how its calls ended."""

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from clickbert import AsyncRanker, Ranker, RankerClosedError
from clickbert.wire.transport import GrpcTransport

TEXTS = ["a bar", "a bank"]
PATIENCE = 30.0


def say(text: str) -> None:
    print(text, flush=True)


def in_child(call: Callable[[], int]) -> None:
    """Makes a call in a child, and waits for the child's end; a call that hangs ends it."""
    process = os.fork()
    if process == 0:
        signal.alarm(20)
        try:
            say(f"child {call()}")
        except RankerClosedError as exc:
            say(f"child refused: {exc}")
        finally:
            os._exit(0)
    status = os.waitpid(process, 0)[1]
    if status:
        say(f"the child ended with {status}")


def rank(ranker: Ranker) -> int:
    return len(ranker.rank("tea", TEXTS, timeout=PATIENCE))


def rank_in_a_loop(ranker: AsyncRanker) -> int:
    return len(asyncio.run(ranker.rank("tea", TEXTS, timeout=PATIENCE)))


def unused(url: str) -> None:
    """As with gunicorn's --preload: made at import, called in the workers."""
    with Ranker(url) as ranker:
        in_child(lambda: rank(ranker))
        in_child(lambda: rank_in_a_loop(AsyncRanker(url)))
        say(f"parent {rank(ranker)}")


def idle(url: str) -> None:
    with Ranker(url) as ranker:
        rank(ranker)
        for _ in range(2):
            in_child(lambda: rank(ranker))
        say(f"parent {rank(ranker)}")


def idle_asyncio(url: str) -> None:
    ranker = AsyncRanker(url)
    rank_in_a_loop(ranker)
    for _ in range(2):
        in_child(lambda: rank_in_a_loop(ranker))
    say(f"parent {rank_in_a_loop(ranker)}")


def both(url: str) -> None:
    """Used one way in the parent, and the other way in the child."""
    blocking, awaited = Ranker(url), AsyncRanker(url)
    rank(blocking)
    rank_in_a_loop(awaited)
    in_child(lambda: rank_in_a_loop(awaited))
    in_child(lambda: rank(blocking))
    say(f"parent {rank(blocking)}")


def grandchild(url: str) -> None:
    with Ranker(url) as ranker:
        rank(ranker)

        def from_below() -> int:
            count = rank(ranker)
            in_child(lambda: rank(ranker))
            return count

        in_child(from_below)
        say(f"parent {rank(ranker)}")


shared: list[Ranker] = []


def rank_the_shared(_: int) -> int:
    return rank(shared[0])


def pool(url: str) -> None:
    """As Celery does: workers of multiprocessing."""
    with Ranker(url) as ranker:
        rank(ranker)
        shared.append(ranker)
        with multiprocessing.get_context("fork").Pool(2) as workers:
            for count in workers.imap(rank_the_shared, range(2)):
                say(f"child {count}")
        say(f"parent {rank(ranker)}")


def busy(url: str) -> None:
    with Ranker(url, retries=0) as ranker:
        rank(ranker)
        counts: list[int] = []
        threads = [threading.Thread(target=lambda: counts.extend(rank(ranker) for _ in range(100))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            time.sleep(0.02)
            in_child(lambda: rank(ranker))
        for thread in threads:
            thread.join()
        say(f"calls answered {counts.count(2)} of {4 * 100}")
        say(f"parent {rank(ranker)}")


def waiting(url: str) -> None:
    """Another thread's call gets no answer as long as its first request counts."""
    with Ranker(url, retries=0) as ranker:
        counts: list[int] = []
        thread = threading.Thread(target=lambda: counts.append(len(ranker.rank("tea", ["a bar"], timeout=PATIENCE))))
        thread.start()
        while not ranker._session.releases.find(None):
            time.sleep(0.01)
        time.sleep(0.3)  # its request is at the server
        in_child(lambda: rank(ranker))
        thread.join()
        say(f"waited {counts[0]}")
        say(f"parent {rank(ranker)}")


def delay(name: str, seconds: float) -> threading.Event:
    """Has the next request to this model wait in the transport, as if the server were slow; set when it is there."""
    reached, infer = threading.Event(), GrpcTransport.infer

    def slow(self, request, **options):
        if request.model == name and not reached.is_set():
            reached.set()
            time.sleep(seconds)
        return infer(self, request, **options)

    GrpcTransport.infer = slow
    return reached


def fetching(url: str) -> None:
    """Another thread holds the lock of those that need the tokenizer."""
    with Ranker(url, retries=0) as ranker:
        reached, counts = delay("clickbert_tokenizer", 0.5), []
        thread = threading.Thread(target=lambda: counts.append(len(ranker.rank("tea", ["a bar"], timeout=PATIENCE))))
        thread.start()
        reached.wait(PATIENCE)
        in_child(lambda: rank(ranker))
        thread.join()
        say(f"waited {counts[0]}")
        say(f"parent {rank(ranker)}")


def waiting_asyncio(url: str) -> None:
    async def run() -> None:
        async with AsyncRanker(url) as ranker:
            call = asyncio.create_task(ranker.rank("tea", TEXTS, timeout=PATIENCE))
            while not ranker._session.releases.find(None):
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)  # its request is at the server
            await asyncio.to_thread(in_child, lambda: rank_in_a_loop(ranker))
            call.cancel()
            say(f"parent {len(await ranker.rank('tea', TEXTS, timeout=PATIENCE))}")

    asyncio.run(run())


SCENARIOS = {each.__name__: each for each in (unused, idle, idle_asyncio, both, grandchild, pool, busy, fetching)}
SCENARIOS |= {"waiting": waiting, "waiting_asyncio": waiting_asyncio}

if __name__ == "__main__":
    SCENARIOS[sys.argv[2]](sys.argv[1])
