"""`AsyncRanker` in more than one event loop: one after another, at once in threads, and closed from elsewhere."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import grpc
import pytest

from clickbert import AsyncRanker, Connection, RankerClosedError
from tests.client.fakes import held

DOCUMENTS = ["a bar", "a bank", "a cafe"]


class Watched(Connection):
    """A connection that knows its channels."""

    @cached_property
    def channels(self) -> list[Any]:
        return []

    def open_channel(self, api: Any, target: str) -> Any:
        self.channels.append(super().open_channel(api, target))
        return self.channels[-1]

    @property
    def open(self) -> int:
        return sum(channel.get_state() != grpc.ChannelConnectivity.SHUTDOWN for channel in self.channels)


@pytest.fixture
def watched(url) -> Watched:
    return Watched(url)


@pytest.fixture
def ranker(watched) -> AsyncRanker:
    return AsyncRanker(watched)


async def rank_at_once(ranker: AsyncRanker, calls: int = 5) -> list[list[int]]:
    ranked = await asyncio.gather(*(ranker.rank("tea", DOCUMENTS) for _ in range(calls)))
    return [[item.index for item in each] for each in ranked]


def test_a_ranker_works_in_one_loop_after_another(server, ranker, watched):
    results = [asyncio.run(rank_at_once(ranker)) for _ in range(3)]
    assert results == [results[0]] * 3
    assert len(watched.channels) == 3 and watched.open == 1, "the channels of former loops are closed"
    assert server.asked.count(("clickbert_tokenizer", "1")) == 1, "what was learned in one loop is known in the next"
    asyncio.run(ranker.close())
    assert watched.open == 0


def test_a_loop_that_was_closed_with_calls_in_flight_leaves_nothing_behind(server, ranker, watched):
    with held(server) as requests:
        loop = asyncio.new_event_loop()
        call = loop.create_task(ranker.rank("tea", DOCUMENTS))
        loop.run_until_complete(asyncio.to_thread(requests.wait_until_reached))
        call.cancel()
        loop.run_until_complete(asyncio.gather(call, return_exceptions=True))
        loop.close()
    assert len(asyncio.run(rank_at_once(ranker))) == 5
    assert watched.open == 1


def test_a_ranker_works_in_two_loops_at_once(server, ranker, watched):
    together = threading.Barrier(2, timeout=30)

    def meet(response):
        if "logits" in response.outputs:
            together.wait()  # each loop's answer waits for the other's: both are in flight
        return response

    server.after_infer = meet
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(lambda _: asyncio.run(rank_at_once(ranker, 1)), range(2))
    assert one == other
    assert len(watched.channels) == 2

    server.after_infer = lambda response: response
    with ThreadPoolExecutor(2) as threads:
        many = list(threads.map(lambda _: asyncio.run(rank_at_once(ranker, 50)), range(2)))
    assert many == [one * 50] * 2
    asyncio.run(ranker.close())
    assert watched.open == 0


def test_closing_in_one_loop_ends_the_calls_of_another(server, ranker, watched):
    with ThreadPoolExecutor(1) as thread, held(server) as requests:
        running = thread.submit(lambda: asyncio.run(rank_at_once(ranker, 1)))
        requests.wait_until_reached()
        asyncio.run(ranker.close())
        with pytest.raises(RankerClosedError):
            running.result(timeout=30)
    assert watched.open == 0
    with pytest.raises(RankerClosedError):
        asyncio.run(rank_at_once(ranker))
