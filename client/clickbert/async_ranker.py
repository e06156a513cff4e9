"""`AsyncRanker`: the same calls as `Ranker`, awaited."""

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from clickbert.calls.arguments import LongDocuments, Truncate
from clickbert.calls.running import Asked, Running
from clickbert.calls.session import MAX_IN_FLIGHT, RankedDocument, Session
from clickbert.calls.steps import Compute, DescribeModel, Done, GetRelease, Infer, Step, advance
from clickbert.channels.forks import check_asyncio
from clickbert.connection import Connection, as_connection
from clickbert.errors import ServerError
from clickbert.telemetry.observer import Observer
from clickbert.wire.protocol import DEFAULT_MODEL, InferRequest, InferResponse, Release
from clickbert.wire.transport import AsyncGrpcTransport, AsyncTransport

Result = TypeVar("Result")
Answer = TypeVar("Answer")
Value = TypeVar("Value")


class AsyncRanker:
    """`Ranker` for asyncio: same arguments, same results, same errors.

    One ranker serves any number of tasks, over one connection for each event loop that they run in: `asyncio.run` may
    be called twice, and loops may run in several threads. Cancelling a call cancels its requests. Texts are tokenized
    in threads, so that long ones do not hold up the loop. Nothing waits for the server there, so any number of calls
    can be in flight.
    """

    def __init__(
        self,
        connection: Connection | str | Sequence[str],
        model: str = DEFAULT_MODEL,
        *,
        timeout: float = 10.0,
        max_documents: int = 1000,
        retries: int = 2,
        mask: Callable[[str], str] | None = None,
        observers: Sequence[Observer] = (),
        transport: AsyncTransport | None = None,
    ) -> None:
        connection = as_connection(connection)
        self._session = Session(
            connection.url,
            model,
            timeout=timeout,
            max_documents=max_documents,
            retries=retries,
            mask=mask,
            observers=observers,
        )
        self._transport = transport or AsyncGrpcTransport(connection)
        self._fetching: dict[asyncio.AbstractEventLoop, asyncio.Lock] = {}

    async def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        *,
        long_documents: LongDocuments = "truncate",
        truncate: Truncate = "longest",
        raw_scores: bool = False,
        timeout: float | None = None,
        fallback: bool = False,
    ) -> list[RankedDocument]:
        """Return the documents best first, the `top_k` best if given; the earlier document wins a tie.

        A document beyond the model's limit is cut, or with "passages" read to its end, if the model was trained so.
        Where a pair is cut, the longer of its texts is, and then both; with truncate="document" only the document is,
        and a query that leaves it no room is refused. With `raw_scores` a score is not the click probability, but its
        log-odds (the model's logit, where it has one label), which ranks alike.

        With `fallback` a `ServerError` is logged, not raised: the documents come in the caller's own order, each with
        `is_fallback` and the score NaN.
        """
        asked = self._session.rank(
            query,
            documents,
            top_k,
            long_documents=long_documents,
            truncate=truncate,
            raw_scores=raw_scores,
            fallback=fallback,
        )
        return await self._call(asked, timeout)

    async def score_pairs(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        long_documents: LongDocuments = "truncate",
        truncate: Truncate = "longest",
        raw_scores: bool = False,
        timeout: float | None = None,
    ) -> list[float]:
        """Return the click probability, in [0, 1], of each (query, document) pair, in the order given.

        `long_documents`, `truncate` and `raw_scores` are those of `rank`.
        """
        asked = self._session.score_pairs(
            pairs, long_documents=long_documents, truncate=truncate, raw_scores=raw_scores
        )
        return await self._call(asked, timeout)

    async def classify(self, texts: Sequence[str], *, timeout: float | None = None) -> list[dict[str, float]]:
        """Return each text's probabilities by topic, the most probable first.

        They add up to 1, unless the model was trained on texts of several topics. Raises `InvalidInputError` if it has
        no topics.
        """
        return await self._call(self._session.classify(texts), timeout)

    async def embed(self, texts: Sequence[str], *, timeout: float | None = None) -> npt.NDArray[np.float32]:
        """Return the embeddings, float32 [texts, size], each of length 1: a product of two is their cosine.

        Raises `InvalidInputError` if the model has no embedding.
        """
        return await self._call(self._session.embed(texts), timeout)

    async def similarity(self, text: str, others: Sequence[str], *, timeout: float | None = None) -> list[float]:
        """Return the cosine, in [-1, 1], of a text's embedding with that of each of the others, in the order given.

        Raises `InvalidInputError` if the model has no embedding.
        """
        return await self._call(self._session.similarity(text, others), timeout)

    async def close(self) -> None:
        """Close the connection. Calls that are running end with `RankerClosedError`."""
        self._session.closed = True
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, asked: Asked[Result], timeout: float | None) -> Result:
        check_asyncio()  # here and not only at the first request: before that, threads are started
        with self._session.running(asked.call, timeout) as running:
            return await self._run(asked.flow, running)

    async def _run(self, flow: Generator[Step, Any, Result], running: Running) -> Result:
        outcome = advance(flow)
        while not isinstance(outcome, Done):
            try:
                reply, error = await self._perform(outcome, running), None
            except ServerError as exc:
                reply, error = None, exc
            outcome = advance(flow, reply, error)
        result: Result = outcome.value
        return result

    async def _perform(self, step: Step, running: Running) -> object:
        match step:
            case DescribeModel(model):
                return await self._send(partial(self._transport.describe, model), running)
            case Infer(requests):
                return await self._infer(requests, running)
            case Compute(function):
                return await _in_thread(function, running)
            case GetRelease(version):
                return await self._get_release(version, running)

    async def _send(self, ask: Callable[..., Awaitable[Answer]], running: Running) -> Answer:
        attempts = running.attempts()
        while True:
            try:
                return await ask(timeout=attempts.begin(), headers=running.headers)
            except ServerError as exc:
                pause = attempts.pause_after(exc)
            await asyncio.sleep(pause)

    async def _infer(self, requests: Sequence[Callable[[], InferRequest]], running: Running) -> list[InferResponse]:
        in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)

        async def send(make: Callable[[], InferRequest]) -> InferResponse:
            async with in_flight:
                request = await _in_thread(make, running)
                return await self._send(partial(self._transport.infer, request), running)

        tasks = [asyncio.create_task(send(request)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _get_release(self, version: str | None, running: Running) -> Release:
        fetching = self._fetching_lock()
        try:
            async with asyncio.timeout(running.time_left()):
                await fetching.acquire()
        except TimeoutError as exc:
            raise running.timeout_error() from exc
        try:
            if known := self._session.releases.find(version):
                return known
            return await self._run(self._session.fetch_release(version), running)
        finally:
            fetching.release()

    def _fetching_lock(self) -> asyncio.Lock:
        """Return the running loop's lock: a lock of asyncio works in one loop only."""
        for loop in list(self._fetching):
            if loop.is_closed():
                self._fetching.pop(loop, None)
        return self._fetching.setdefault(asyncio.get_running_loop(), asyncio.Lock())


async def _in_thread(function: Callable[[], Value], running: Running) -> Value:
    """Call a function that takes a while; at the call's deadline it is not waited for any longer."""
    try:
        async with asyncio.timeout(running.time_left()):
            return await asyncio.to_thread(function)
    except TimeoutError as exc:
        raise running.timeout_error() from exc
