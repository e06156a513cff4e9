"""The client's calls against a real server that is gone, that hangs, or that is not waited for: tests 3, 4, 6 and 7."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from clickbert import (
    AsyncRanker,
    Connection,
    ConnectionFailedError,
    Ranker,
    RankerClosedError,
    ServerError,
    ServerTimeoutError,
)
from clickbert.telemetry.observer import Call
from release.names import ONNX_MODEL
from serving.server import Server
from tests.figures import Figures
from tests.integration.scores import PATIENCE
from tests.integration.test_scheduling import chunks_of, figure, outcomes
from tests.processes import paused
from tests.published import serve
from tests.serving.busy_cores import busy_cores, needs_bound_cores, waiting_in_the_schedule
from tests.waiting import eventually

pytestmark = pytest.mark.reliability

CALLERS = 8
OUTAGE = 4  # seconds


class Counting(grpc.UnaryUnaryClientInterceptor):
    """Counts what goes into gRPC, whatever the client's own counts say."""

    def __init__(self) -> None:
        self.attempts: Counter[str] = Counter()

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        self.attempts[str(details.method).rpartition("/")[2]] += 1
        return continuation(details, request)


class Counted(Connection):
    @cached_property
    def counting(self) -> Counting:
        return Counting()

    def open_channel(self, api: Any, target: str) -> Any:
        return grpc.intercept_channel(super().open_channel(api, target), self.counting)


class Total:
    """An observer that adds up."""

    def __init__(self) -> None:
        self.requests = self.retries = 0
        self.lock = threading.Lock()

    @contextmanager
    def observe(self, call: Call) -> Iterator[None]:
        yield
        with self.lock:
            self.requests += call.requests
            self.retries += call.retries

    def headers(self) -> dict[str, str]:
        return {}


def test_an_outage_brings_no_storm_of_retries(published_repository: Path, tmp_path: Path, figures: Figures) -> None:
    total, stop = Total(), threading.Event()
    ended: Counter[str] = Counter()
    with serve(published_repository, log=tmp_path / "first.log") as server:
        addresses = server.addresses
        counted = Counted(addresses.grpc)
        ranker = Ranker(counted, timeout=PATIENCE, observers=[total])
        ranker.rank("w1", ["w2", "w3"])

        def ask() -> None:
            while not stop.is_set():
                try:
                    ranker.rank("w1", ["w2", "w3"])
                    ended["answered"] += 1
                except ServerError as exc:
                    ended[f"{type(exc).__name__}, {'passing' if exc.is_retryable else 'lasting'}"] += 1
                    time.sleep(0.002)

        with ThreadPoolExecutor(CALLERS) as pool:
            callers = [pool.submit(ask) for _ in range(CALLERS)]
            eventually(lambda: ended["answered"] > 100)
            assert server.process
            server.process.send_signal(signal.SIGTERM)  # it drains, and then it is gone
            server.process.wait(PATIENCE)
            time.sleep(OUTAGE)
            stop.set()
            for each in callers:
                each.result(PATIENCE)
    failed = sum(count for name, count in ended.items() if name != "answered")
    attempts, requests = total.requests, total.requests - total.retries
    sent = counted.counting.attempts
    assert sent["ModelInfer"] + sent["ModelMetadata"] == attempts, "what observers are told is what was sent"
    with serve(published_repository, addresses=addresses, log=tmp_path / "second.log"):
        began = time.monotonic()
        while True:
            try:
                ranker.rank("w1", ["w2", "w3"])
                break
            except ServerError:
                time.sleep(0.02)
        back = time.monotonic() - began
        lost = sum(isinstance(answer, ServerError) for answer in ask_again(ranker, 200))
    ranker.close()
    assert not [name for name in ended if name.endswith("lasting")]
    figures.at_least(3, "requests that failed while the server was gone", failed, 1000)
    figures.at_most(3, "attempts per request, outage included", attempts / requests, 1.1)
    figures.only_told(3, "retries of these", attempts - requests)
    figures.at_most(3, "until calls are answered again once the server is back", back, 3.0, "s")
    figures.exactly(3, "calls that fail after that, of 200", lost, 0)


def ask_again(ranker: Ranker, times: int) -> Iterator[object]:
    for _ in range(times):
        try:
            yield ranker.rank("w1", ["w2", "w3"])
        except ServerError as exc:
            yield exc


DOCUMENTS = [["w2", "w3"], ["w4 w5 w6", "w7"], ["w8", "w9 w10"]]


def test_of_two_servers_a_killed_one_fails_no_call(
    published_repository: Path, tmp_path: Path, figures: Figures
) -> None:
    total, stop = Total(), threading.Event()
    with (
        serve(published_repository, log=tmp_path / "first.log") as first,
        serve(published_repository, log=tmp_path / "second.log") as second,
        Ranker([first.addresses.grpc, second.addresses.grpc], timeout=PATIENCE, observers=[total]) as ranker,
    ):
        expected = [[item.score for item in ranker.rank("w1", each)] for each in DOCUMENTS]

        def ask(caller: int) -> list[tuple[str, float, float]]:
            """How each call ended, when it began, and when it was over."""
            calls: list[tuple[str, float, float]] = []
            while not stop.is_set():
                which, began = (caller + len(calls)) % len(DOCUMENTS), time.monotonic()
                try:
                    scores = [item.score for item in ranker.rank("w1", DOCUMENTS[which])]
                    ended = "right" if scores == pytest.approx(expected[which], abs=1e-5) else "wrong"
                except ServerError as exc:
                    ended = type(exc).__name__
                calls.append((ended, began, time.monotonic()))
            return calls

        with ThreadPoolExecutor(CALLERS) as pool:
            callers = [pool.submit(ask, number) for number in range(CALLERS)]
            try:
                eventually(lambda: total.requests > 300)  # which allow ten retries, more than there are callers
                before, killed = total.retries, time.monotonic()
                first.kill()
                time.sleep(2)  # the killed one is tried again after half a second, and after one more
            finally:
                stop.set()
            calls = [call for each in callers for call in each.result(PATIENCE)]
    ended = Counter(how for how, _, _ in calls)
    seconds = [over - began for _, began, over in calls if over > killed]
    figures.only_told(7, "without a gateway: calls after one of two servers was killed", len(seconds))
    figures.exactly(7, "without a gateway: wrong scores", ended.pop("wrong", 0), 0)
    figures.exactly(7, "without a gateway: failed calls", len(calls) - ended["right"], 0)
    figures.at_least(7, "without a gateway: calls sent again: the fault met some", total.retries - before, 1)
    figures.at_most(7, "without a gateway: longest call from then on", max(seconds), 3, "s")


TIMEOUT = 0.4  # seconds


def test_a_server_that_hangs_does_not_hold_callers_beyond_their_deadline(
    published_server: Server, figures: Figures
) -> None:
    assert published_server.process
    hung = [published_server.process.pid]
    overruns = {"blocking": hang_blocking(published_server, hung), "asyncio": hang_awaited(published_server, hung)}
    for way, seconds in overruns.items():
        late = sorted(1000 * each for each in seconds)
        figures.at_least(4, f"{way}: calls to a stopped server", len(late), 150)
        figures.at_most(4, f"{way}: longest overrun of a deadline of {TIMEOUT:g} s", late[-1], 50, "ms")
        figures.only_told(4, f"{way}: median overrun", float(np.median(late)), "ms")


def hang_blocking(server: Server, hung: list[int]) -> list[float]:
    """Four seconds of calls, as after eight keepalive ends the connection, and calls fail before their deadline."""
    with Ranker(server.addresses.grpc, timeout=PATIENCE) as ranker, ThreadPoolExecutor(2 * CALLERS) as pool:
        ranker.rank("w1", ["w2"])

        def ask(_: int) -> float:
            began = time.monotonic()
            with pytest.raises(ServerTimeoutError):
                ranker.rank("w1", ["w2", "w3"], timeout=TIMEOUT)
            return time.monotonic() - began - TIMEOUT

        with paused(hung):
            overruns = list(pool.map(ask, range(20 * CALLERS)))
        assert len(ranker.rank("w1", ["w2"])) == 1
    return overruns


def hang_awaited(server: Server, hung: list[int]) -> list[float]:
    async def run() -> list[float]:
        async with AsyncRanker(server.addresses.grpc, timeout=PATIENCE) as ranker:
            await ranker.rank("w1", ["w2"])

            async def ask() -> list[float]:
                overruns = []
                for _ in range(10):
                    began = time.monotonic()
                    with pytest.raises(ServerTimeoutError):
                        await ranker.rank("w1", ["w2", "w3"], timeout=TIMEOUT)
                    overruns.append(time.monotonic() - began - TIMEOUT)
                return overruns

            with paused(hung):
                each = await asyncio.gather(*(ask() for _ in range(2 * CALLERS)))
            assert len(await ranker.rank("w1", ["w2"])) == 1
            return [seconds for overruns in each for seconds in overruns]

    return asyncio.run(run())


def test_a_server_that_hangs_is_noticed_before_a_long_deadline(published_server: Server, figures: Figures) -> None:
    assert published_server.process
    with Ranker(published_server.addresses.grpc, timeout=PATIENCE) as ranker:
        ranker.rank("w1", ["w2"])
        with paused([published_server.process.pid]):
            began = time.monotonic()
            with pytest.raises(ConnectionFailedError):
                ranker.rank("w1", ["w2", "w3"])
            noticed = time.monotonic() - began
        eventually(lambda: answers(ranker))
    figures.at_most(4, f"until a call with {PATIENCE} s learns that the server hangs", noticed, 20, "s")


def answers(ranker: Ranker) -> bool:
    try:
        return len(ranker.rank("w1", ["w2"])) == 1
    except ServerError:
        return False


@needs_bound_cores
def test_of_a_thousand_calls_that_are_given_up_none_keeps_its_place(published_server: Server, figures: Figures) -> None:
    url = published_server.addresses.grpc
    with Ranker(url, timeout=PATIENCE) as ranker:
        ranker.rank("w1", ["w2"])
    chunks, before = chunks_of(published_server), outcomes(published_server, "cancelled")
    arrived = figure(published_server, "clickbert_requests_total", model=ONNX_MODEL)
    given_up = 0

    def until_all_are_dropped() -> None:
        eventually(lambda: outcomes(published_server, "cancelled") - before >= given_up)
        eventually(lambda: waiting_in_the_schedule(published_server, ONNX_MODEL) == 0)

    for _ in range(8):
        with busy_cores(published_server):
            asyncio.run(cancel_in_any_order(published_server, 100))
        given_up += 100
        until_all_are_dropped()
    for _ in range(4):
        with busy_cores(published_server):
            close_in_the_middle(published_server, 50)
        given_up += 50
        until_all_are_dropped()
    leaked = waiting_in_the_schedule(published_server, ONNX_MODEL) + figure(
        published_server, "nv_inference_pending_request_count", model=ONNX_MODEL
    )
    computed = chunks_of(published_server) - chunks  # it waits until the figures of what was asked before are out
    ended = figure(published_server, "clickbert_requests_total", model=ONNX_MODEL) - arrived
    figures.exactly(6, "places still taken after 1,000 calls were given up", leaked, 0)
    figures.exactly(
        6, "of them counted as cancelled at the server", outcomes(published_server, "cancelled") - before, 1000
    )
    figures.exactly(6, "chunks computed for them", computed, 0)
    figures.exactly(6, "requests that the server got", ended, 1000)
    with Ranker(url, timeout=PATIENCE) as ranker:
        assert len(ranker.rank("w1", ["w2", "w3"])) == 2


async def cancel_in_any_order(server: Server, count: int) -> None:
    """Cancels that many calls that all wait at the server, in any order."""
    async with AsyncRanker(server.addresses.grpc, timeout=PATIENCE) as ranker:
        tasks = [asyncio.create_task(ranker.rank("w1", ["w2", f"w{n % 40}"])) for n in range(count)]
        while waiting_in_the_schedule(server, ONNX_MODEL) < count:
            await asyncio.sleep(0.05)
        random.shuffle(tasks)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in ended)


def close_in_the_middle(server: Server, count: int) -> None:
    """Closes a ranker, from this thread, whose calls in that many others all wait at the server."""
    ranker = Ranker(server.addresses.grpc, timeout=PATIENCE)
    with ThreadPoolExecutor(count) as pool:
        running = [pool.submit(ranker.rank, "w1", ["w2", f"w{n % 40}"]) for n in range(count)]
        while waiting_in_the_schedule(server, ONNX_MODEL) < count:
            time.sleep(0.05)
        ranker.close()
        assert all(isinstance(each.exception(PATIENCE), RankerClosedError) for each in running)
