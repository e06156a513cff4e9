"""`AsyncRanker`: the same calls as `Ranker`, awaited."""

import asyncio
from collections.abc import Callable, Generator, Sequence
from types import TracebackType
from typing import Any, Self

from clickbert.connection import Connection, as_connection
from clickbert.errors import ServerError
from clickbert.protocol import DEFAULT_MODEL, InferRequest, InferResponse, Release
from clickbert.session import (
    MAX_IN_FLIGHT,
    Ask,
    Compute,
    Describe,
    Done,
    NeedRelease,
    RankedDocument,
    Session,
    Step,
    advance,
)
from clickbert.transport import AsyncGrpcTransport, AsyncTransport


class AsyncRanker:
    """`Ranker` for asyncio: same arguments, same results, same errors.

    One ranker serves any number of tasks of one event loop, the loop of its first call. Cancelling a call cancels its
    requests. Texts are tokenized in threads, so that long ones do not hold up the loop. Nothing waits for the server
    there, so any number of calls can be in flight.
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
        self._fetching = asyncio.Lock()

    async def rank(self, query: str, documents: Sequence[str], top_k: int | None = None) -> list[RankedDocument]:
        """Return the documents best first, the `top_k` best if given; the earlier document wins a tie."""
        ranked: list[RankedDocument] = await self._call(self._session.rank(query, documents, top_k))
        return ranked

    async def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return the click probability, in [0, 1], of each (query, document) pair, in the order given."""
        scores: list[float] = await self._call(self._session.score_pairs(pairs))
        return scores

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

    async def _call(self, course: Generator[Step, Any, Any]) -> Any:
        return await self._run(course, self._session.deadline())

    async def _run(self, course: Generator[Step, Any, Any], deadline: float) -> Any:
        outcome = advance(course)
        while not isinstance(outcome, Done):
            try:
                reply, error = await self._perform(outcome, deadline), None
            except ServerError as exc:
                reply, error = None, exc
            outcome = advance(course, reply, error)
        return outcome.value

    async def _perform(self, step: Step, deadline: float) -> object:
        match step:
            case Describe(model):
                return await self._transport.describe(model, timeout=self._session.left(deadline))
            case Ask(requests):
                return await self._ask(requests, deadline)
            case Compute(function):
                return await asyncio.to_thread(function)
            case NeedRelease(version):
                return await self._release(version, deadline)

    async def _ask(self, requests: Sequence[Callable[[], InferRequest]], deadline: float) -> list[InferResponse]:
        in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)

        async def send(make: Callable[[], InferRequest]) -> InferResponse:
            async with in_flight:
                request = await asyncio.to_thread(make)
                return await self._transport.infer(request, timeout=self._session.left(deadline))

        tasks = [asyncio.create_task(send(request)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _release(self, version: str | None, deadline: float) -> Release:
        try:
            async with asyncio.timeout(self._session.left(deadline)):
                await self._fetching.acquire()
        except TimeoutError as exc:
            raise self._session.too_late() from exc
        try:
            known = self._session.releases.find(version)
            return known or await self._run(self._session.fetch_release(version), deadline)
        finally:
            self._fetching.release()
