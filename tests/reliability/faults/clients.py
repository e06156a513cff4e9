"""A client in a process of its own, for tests that kill it or take something from it.

    python clients.py URL COUNT
    python clients.py URL descriptors FREE
    python clients.py URL deadline SECONDS

The first has COUNT calls in flight when a line has come in, and waits for them. The second ranks once while the process
may open FREE more descriptors, and once more without that limit. The third ranks once, and once more for each line
that comes in, each time with so many seconds. They print each call's error's class, or "answered"; the third also how
long it took.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from pathlib import Path

from clickbert import AsyncRanker, Ranker, ServerError

DOCUMENTS = ["w2 w3", "w4"]
TIMEOUT = 60.0  # seconds


async def wait_for_calls(url: str, count: int) -> None:
    """Never returns before all are answered."""
    async with AsyncRanker(url, timeout=TIMEOUT) as ranker:
        await ranker.rank("w1", DOCUMENTS)  # fetches the tokenizer
        print("ready", flush=True)
        sys.stdin.readline()
        calls = [asyncio.create_task(ranker.rank("w1", [f"w{number} w5"])) for number in range(count)]
        await asyncio.gather(*calls)


def rank_with_few_descriptors(url: str, free: int) -> None:
    """Ranks twice."""
    used = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Ranker(url, timeout=TIMEOUT) as ranker:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + free, most))
        print(outcome(ranker), flush=True)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        end = time.monotonic() + 10
        while (found := outcome(ranker)) != "answered" and time.monotonic() < end:
            time.sleep(0.1)
        print(found, flush=True)


def rank_in_time(url: str, seconds: float) -> None:
    """Ranks until stdin ends."""
    with Ranker(url, timeout=seconds) as ranker:
        while outcome(ranker) != "answered":  # fetches the tokenizer
            continue
        print("ready", flush=True)
        for _ in sys.stdin:
            began = time.monotonic()
            print(outcome(ranker), time.monotonic() - began, flush=True)


def outcome(ranker: Ranker) -> str:
    """How a call ends."""
    try:
        ranker.rank("w1", DOCUMENTS)
    except ServerError as exc:
        return type(exc).__name__
    return "answered"


if __name__ == "__main__":
    if sys.argv[2] == "descriptors":
        rank_with_few_descriptors(sys.argv[1], int(sys.argv[3]))
    elif sys.argv[2] == "deadline":
        rank_in_time(sys.argv[1], float(sys.argv[3]))
    else:
        asyncio.run(wait_for_calls(sys.argv[1], int(sys.argv[2])))
