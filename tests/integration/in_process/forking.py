"""Scenarios of test_forks.py: `python forking.py PATH SCENARIO` prints how its calls ended."""

import asyncio
import multiprocessing
import os
import signal
import sys
import threading

from clickbert.in_process import async_ranker, ranker
from tests.client.channels.forking import in_child, rank, rank_in_a_loop, rank_the_shared, say, shared


def unused(path: str) -> None:
    """As with gunicorn's --preload: made at import, called in the workers."""
    with ranker(path) as here:
        in_child(lambda: rank(here))
        say(f"parent {rank(here)}")


def used(path: str) -> None:
    with ranker(path) as here:
        rank(here)
        in_child(lambda: rank(here))
        say(f"parent {rank(here)}")


def exits(path: str) -> None:
    """The child ends as a program does, and not at once by `os._exit`: as gunicorn's workers do."""
    with ranker(path) as here:
        rank(here)
        process = os.fork()
        if process == 0:
            signal.alarm(20)
            say(f"child {rank(here)}")
            sys.exit(0)
        say(f"the child ended with {os.waitpid(process, 0)[1]}")


def awaited(path: str) -> None:
    here = async_ranker(path)
    rank_in_a_loop(here)
    in_child(lambda: rank_in_a_loop(here))
    say(f"parent {rank_in_a_loop(here)}")
    asyncio.run(here.close())


def busy(path: str) -> None:
    """Other threads are in the engine at the moment of the fork."""
    with ranker(path) as here:
        rank(here)
        stop = threading.Event()
        counts: list[int] = []

        def go_on() -> None:
            while not stop.is_set():
                counts.append(rank(here))

        threads = [threading.Thread(target=go_on) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            in_child(lambda: rank(here))
        stop.set()
        for thread in threads:
            thread.join()
        say(f"others {set(counts)}")
        say(f"parent {rank(here)}")


def pool(path: str) -> None:
    with ranker(path) as here:
        rank(here)
        shared.append(here)
        with multiprocessing.get_context("fork").Pool(1) as workers:
            say(f"child {workers.map(rank_the_shared, range(1))[0]}")
        say(f"parent {rank(here)}")


if __name__ == "__main__":
    {each.__name__: each for each in (unused, used, exits, awaited, busy, pool)}[sys.argv[2]](sys.argv[1])
