"""`Ranker`: blocking calls, for threads."""

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from clickbert.transport import GrpcTransport, Transport


class Ranker:
    """Ranks documents for a query by click probability, with a model on a Triton server.

    `connection` is a `Connection`, or just the server's host and gRPC port. `timeout` is seconds for a whole call, all
    its requests together. A call may have `max_documents` documents; one that occurs twice in it is scored once.

    One ranker serves any number of threads over one connection, which the first call opens. Close it, or use it as a
    context manager. `transport` replaces the connection, for tests.

    Raises `InvalidInputError` for bad arguments; its calls raise the errors of `clickbert.errors`.
    """

    def __init__(
        self,
        connection: Connection | str,
        model: str = DEFAULT_MODEL,
        *,
        timeout: float = 10.0,
        max_documents: int = 1000,
        transport: Transport | None = None,
    ) -> None:
        connection = as_connection(connection)
        self._session = Session(connection.url, model, timeout, max_documents)
        self._transport = transport or GrpcTransport(connection)
        self._fetching = threading.Lock()

    def rank(self, query: str, documents: Sequence[str], top_k: int | None = None) -> list[RankedDocument]:
        """Return the documents best first, the `top_k` best if given; the earlier document wins a tie."""
        ranked: list[RankedDocument] = self._call(self._session.rank(query, documents, top_k))
        return ranked

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return the click probability, in [0, 1], of each (query, document) pair, in the order given."""
        scores: list[float] = self._call(self._session.score_pairs(pairs))
        return scores

    def close(self) -> None:
        """Close the connection. Calls that are running end with `RankerClosedError`."""
        self._session.closed = True
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, course: Generator[Step, Any, Any]) -> Any:
        return self._run(course, self._session.deadline())

    def _run(self, course: Generator[Step, Any, Any], deadline: float) -> Any:
        outcome = advance(course)
        while not isinstance(outcome, Done):
            try:
                reply, error = self._perform(outcome, deadline), None
            except ServerError as exc:
                reply, error = None, exc
            outcome = advance(course, reply, error)
        return outcome.value

    def _perform(self, step: Step, deadline: float) -> object:
        match step:
            case Describe(model):
                return self._transport.describe(model, timeout=self._session.left(deadline))
            case Ask(requests):
                return self._ask(requests, deadline)
            case Compute(function):
                return function()
            case NeedRelease(version):
                return self._release(version, deadline)

    def _ask(self, requests: Sequence[Callable[[], InferRequest]], deadline: float) -> list[InferResponse]:
        def send(make: Callable[[], InferRequest]) -> InferResponse:
            request = make()
            return self._transport.infer(request, timeout=self._session.left(deadline))

        if len(requests) == 1:
            return [send(requests[0])]
        pool = ThreadPoolExecutor(min(MAX_IN_FLIGHT, len(requests)), thread_name_prefix="clickbert")
        try:
            return list(pool.map(send, requests))
        finally:
            # Waiting for the others' answers would only delay an error, or Ctrl-C.
            pool.shutdown(wait=False, cancel_futures=True)

    def _release(self, version: str | None, deadline: float) -> Release:
        if not self._fetching.acquire(timeout=self._session.left(deadline)):
            raise self._session.too_late()
        try:
            known = self._session.releases.find(version)
            return known or self._run(self._session.fetch_release(version), deadline)
        finally:
            self._fetching.release()
