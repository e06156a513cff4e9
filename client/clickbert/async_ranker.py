"""`AsyncRanker`: the same calls as `Ranker`, awaited."""

import asyncio
from collections.abc import Callable, Generator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from clickbert.calls.arguments import LongDocuments
from clickbert.calls.session import MAX_IN_FLIGHT, RankedDocument, Session
from clickbert.calls.steps import Compute, DescribeModel, Done, GetRelease, Infer, Step, advance
from clickbert.connection import Connection, as_connection
from clickbert.errors import ServerError
from clickbert.wire.protocol import DEFAULT_MODEL, InferRequest, InferResponse, Release
from clickbert.wire.transport import AsyncGrpcTransport, AsyncTransport


class AsyncRanker:
    """`Ranker` for asyncio: same arguments, same results, same errors.

    One ranker serves any number of tasks, over one connection for each event loop that they run in: `asyncio.run` may
    be called twice, and loops may run in several threads. Cancelling a call cancels its requests. Texts are tokenized
    in threads, so that long ones do not hold up the loop. Nothing waits for the server there, so any number of calls
    can be in flight.
    """

    def __init__(
        self,
        connection: Connection | str,
        model: str = DEFAULT_MODEL,
        *,
        timeout: float = 10.0,
        max_documents: int = 1000,
        transport: AsyncTransport | None = None,
    ) -> None:
        connection = as_connection(connection)
        self._session = Session(connection.url, model, timeout, max_documents)
        self._transport = transport or AsyncGrpcTransport(connection)
        self._fetching: dict[asyncio.AbstractEventLoop, asyncio.Lock] = {}

    async def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        *,
        long_documents: LongDocuments = "truncate",
    ) -> list[RankedDocument]:
        """Return the documents best first, the `top_k` best if given; the earlier document wins a tie.

        A document beyond the model's limit is cut, or with "passages" read to its end, if the model was trained so.
        """
        flow = self._session.rank(query, documents, top_k, long_documents)
        ranked: list[RankedDocument] = await self._call(flow)
        return ranked

    async def score_pairs(
        self, pairs: Sequence[tuple[str, str]], *, long_documents: LongDocuments = "truncate"
    ) -> list[float]:
        """Return the click probability, in [0, 1], of each (query, document) pair, in the order given."""
        scores: list[float] = await self._call(self._session.score_pairs(pairs, long_documents))
        return scores

    async def classify(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """Return each text's probabilities by topic, the most probable first.

        They add up to 1, unless the model was trained on texts of several topics. Raises `InvalidInputError` if it has
        no topics.
        """
        topics: list[dict[str, float]] = await self._call(self._session.classify(texts))
        return topics

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the embeddings, float32 [texts, size], each of length 1: a product of two is their cosine.

        Raises `InvalidInputError` if the model has no embedding.
        """
        embeddings: npt.NDArray[np.float32] = await self._call(self._session.embed(texts))
        return embeddings

    async def similarity(self, text: str, others: Sequence[str]) -> list[float]:
        """Return the cosine, in [-1, 1], of a text's embedding with that of each of the others, in the order given.

        Raises `InvalidInputError` if the model has no embedding.
        """
        cosines: list[float] = await self._call(self._session.similarity(text, others))
        return cosines

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

    async def _call(self, flow: Generator[Step, Any, Any]) -> Any:
        return await self._run(flow, self._session.deadline())

    async def _run(self, flow: Generator[Step, Any, Any], deadline: float) -> Any:
        outcome = advance(flow)
        while not isinstance(outcome, Done):
            try:
                reply, error = await self._perform(outcome, deadline), None
            except ServerError as exc:
                reply, error = None, exc
            outcome = advance(flow, reply, error)
        return outcome.value

    async def _perform(self, step: Step, deadline: float) -> object:
        match step:
            case DescribeModel(model):
                return await self._transport.describe(model, timeout=self._session.time_left(deadline))
            case Infer(requests):
                return await self._infer(requests, deadline)
            case Compute(function):
                return await asyncio.to_thread(function)
            case GetRelease(version):
                return await self._get_release(version, deadline)

    async def _infer(self, requests: Sequence[Callable[[], InferRequest]], deadline: float) -> list[InferResponse]:
        in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)

        async def send(make: Callable[[], InferRequest]) -> InferResponse:
            async with in_flight:
                request = await asyncio.to_thread(make)
                return await self._transport.infer(request, timeout=self._session.time_left(deadline))

        tasks = [asyncio.create_task(send(request)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _get_release(self, version: str | None, deadline: float) -> Release:
        fetching = self._fetching_lock()
        try:
            async with asyncio.timeout(self._session.time_left(deadline)):
                await fetching.acquire()
        except TimeoutError as exc:
            raise self._session.timeout_error() from exc
        try:
            known = self._session.releases.find(version)
            return known or await self._run(self._session.fetch_release(version), deadline)
        finally:
            fetching.release()

    def _fetching_lock(self) -> asyncio.Lock:
        """Return the running loop's lock: a lock of asyncio works in one loop only."""
        for loop in list(self._fetching):
            if loop.is_closed():
                self._fetching.pop(loop, None)
        return self._fetching.setdefault(asyncio.get_running_loop(), asyncio.Lock())
