"""`Ranker`: blocking calls, for threads."""

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from clickbert.wire.transport import GrpcTransport, Transport


class Ranker:
    """Ranks documents for a query by click probability, with a model on a Triton server.

    `connection` is a `Connection`, or just the server's host and gRPC port. `timeout` is in seconds and covers a whole
    call with all its requests. A call may have `max_documents` documents, and scores one that occurs twice once.

    One ranker serves any number of threads over one connection, which the first call opens. Close it, or use it as a
    context manager. `transport` replaces the connection, for tests.

    Raises `InvalidInputError` for bad arguments. Its calls raise the errors of `clickbert.errors`.
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

    def rank(
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
        ranked: list[RankedDocument] = self._call(flow)
        return ranked

    def score_pairs(
        self, pairs: Sequence[tuple[str, str]], *, long_documents: LongDocuments = "truncate"
    ) -> list[float]:
        """Return the click probability, in [0, 1], of each (query, document) pair, in the order given."""
        scores: list[float] = self._call(self._session.score_pairs(pairs, long_documents))
        return scores

    def classify(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """Return each text's probabilities by topic, the most probable first.

        They add up to 1, unless the model was trained on texts of several topics. Raises `InvalidInputError` if it has
        no topics.
        """
        topics: list[dict[str, float]] = self._call(self._session.classify(texts))
        return topics

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the embeddings, float32 [texts, size], each of length 1: a product of two is their cosine.

        Raises `InvalidInputError` if the model has no embedding.
        """
        embeddings: npt.NDArray[np.float32] = self._call(self._session.embed(texts))
        return embeddings

    def similarity(self, text: str, others: Sequence[str]) -> list[float]:
        """Return the cosine, in [-1, 1], of a text's embedding with that of each of the others, in the order given.

        Raises `InvalidInputError` if the model has no embedding.
        """
        cosines: list[float] = self._call(self._session.similarity(text, others))
        return cosines

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

    def _call(self, flow: Generator[Step, Any, Any]) -> Any:
        return self._run(flow, self._session.deadline())

    def _run(self, flow: Generator[Step, Any, Any], deadline: float) -> Any:
        outcome = advance(flow)
        while not isinstance(outcome, Done):
            try:
                reply, error = self._perform(outcome, deadline), None
            except ServerError as exc:
                reply, error = None, exc
            outcome = advance(flow, reply, error)
        return outcome.value

    def _perform(self, step: Step, deadline: float) -> object:
        match step:
            case DescribeModel(model):
                return self._transport.describe(model, timeout=self._session.time_left(deadline))
            case Infer(requests):
                return self._infer(requests, deadline)
            case Compute(function):
                return function()
            case GetRelease(version):
                return self._get_release(version, deadline)

    def _infer(self, requests: Sequence[Callable[[], InferRequest]], deadline: float) -> list[InferResponse]:
        def send(make: Callable[[], InferRequest]) -> InferResponse:
            request = make()
            return self._transport.infer(request, timeout=self._session.time_left(deadline))

        if len(requests) == 1:
            return [send(requests[0])]
        pool = ThreadPoolExecutor(min(MAX_IN_FLIGHT, len(requests)), thread_name_prefix="clickbert")
        try:
            return list(pool.map(send, requests))
        finally:
            # Waiting for the others' answers would only delay an error, or Ctrl-C.
            pool.shutdown(wait=False, cancel_futures=True)

    def _get_release(self, version: str | None, deadline: float) -> Release:
        if not self._fetching.acquire(timeout=self._session.time_left(deadline)):
            raise self._session.timeout_error()
        try:
            known = self._session.releases.find(version)
            return known or self._run(self._session.fetch_release(version), deadline)
        finally:
            self._fetching.release()
