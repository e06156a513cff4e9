"""`Ranker`: blocking calls, for threads."""

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from clickbert.calls.arguments import LongDocuments, Truncate
from clickbert.calls.running import Asked, Running
from clickbert.calls.session import MAX_IN_FLIGHT, RankedDocument, Session
from clickbert.calls.steps import Compute, DescribeModel, Done, GetRelease, Infer, Step, advance
from clickbert.channels.forks import Lock
from clickbert.connection import Connection, as_connection
from clickbert.errors import ServerError
from clickbert.telemetry.observer import Observer
from clickbert.wire.protocol import DEFAULT_MODEL, InferRequest, InferResponse, Release
from clickbert.wire.transport import GrpcTransport, Transport

Result = TypeVar("Result")
Answer = TypeVar("Answer")


class Ranker:
    """Ranks documents for a query by click probability, with a model on a Triton server.

    `connection` is a `Connection`, or just the server's host and gRPC port, or several of them. `timeout` is in seconds
    and covers a whole call with all its requests; each call may have its own. A call may have `max_documents`
    documents, and scores one that occurs twice once.

    A request whose error `is_retryable` is sent again, at most `retries` times, within the timeout. All retries
    together add a tenth to the ranker's requests at most. Each text goes through `mask` first, if there is one, which
    returns what the model may see of it; results carry the caller's own text. `observers` are told of every call.

    One ranker serves any number of threads over one connection to each address, opened by the first call, and works
    on in a child process after a fork. Close it, or use it as a context manager. `transport` replaces the connection,
    for tests.

    Raises `InvalidInputError` for bad arguments. Its calls raise the errors of `clickbert.errors`.
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
        transport: Transport | None = None,
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
        self._transport = transport or GrpcTransport(connection)
        self._fetching = Lock()

    def rank(
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
        return self._call(asked, timeout)

    def score_pairs(
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
        return self._call(asked, timeout)

    def classify(self, texts: Sequence[str], *, timeout: float | None = None) -> list[dict[str, float]]:
        """Return each text's probabilities by topic, the most probable first.

        They add up to 1, unless the model was trained on texts of several topics. Raises `InvalidInputError` if it has
        no topics.
        """
        return self._call(self._session.classify(texts), timeout)

    def embed(self, texts: Sequence[str], *, timeout: float | None = None) -> npt.NDArray[np.float32]:
        """Return the embeddings, float32 [texts, size], each of length 1: a product of two is their cosine.

        Raises `InvalidInputError` if the model has no embedding.
        """
        return self._call(self._session.embed(texts), timeout)

    def similarity(self, text: str, others: Sequence[str], *, timeout: float | None = None) -> list[float]:
        """Return the cosine, in [-1, 1], of a text's embedding with that of each of the others, in the order given.

        Raises `InvalidInputError` if the model has no embedding.
        """
        return self._call(self._session.similarity(text, others), timeout)

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

    def _call(self, asked: Asked[Result], timeout: float | None) -> Result:
        with self._session.running(asked.call, timeout) as running:
            return self._run(asked.flow, running)

    def _run(self, flow: Generator[Step, Any, Result], running: Running) -> Result:
        outcome = advance(flow)
        while not isinstance(outcome, Done):
            try:
                reply, error = self._perform(outcome, running), None
            except ServerError as exc:
                reply, error = None, exc
            outcome = advance(flow, reply, error)
        result: Result = outcome.value
        return result

    def _perform(self, step: Step, running: Running) -> object:
        match step:
            case DescribeModel(model):
                return self._send(partial(self._transport.describe, model), running)
            case Infer(requests):
                return self._infer(requests, running)
            case Compute(function):
                running.time_left()  # nothing is begun after the deadline
                return function()
            case GetRelease(version):
                return self._get_release(version, running)

    def _send(self, ask: Callable[..., Answer], running: Running) -> Answer:
        attempts = running.attempts()
        while True:
            try:
                return ask(timeout=attempts.begin(), headers=running.headers)
            except ServerError as exc:
                pause = attempts.pause_after(exc)
            time.sleep(pause)

    def _infer(self, requests: Sequence[Callable[[], InferRequest]], running: Running) -> list[InferResponse]:
        def send(make: Callable[[], InferRequest]) -> InferResponse:
            running.time_left()  # nor is another request made
            return self._send(partial(self._transport.infer, make()), running)

        if len(requests) == 1:
            return [send(requests[0])]
        pool = ThreadPoolExecutor(min(MAX_IN_FLIGHT, len(requests)), thread_name_prefix="clickbert")
        try:
            return list(pool.map(send, requests))
        finally:
            # Waiting for the others' answers would only delay an error, or Ctrl-C.
            pool.shutdown(wait=False, cancel_futures=True)

    def _get_release(self, version: str | None, running: Running) -> Release:
        if not self._fetching.acquire(timeout=running.time_left()):
            raise running.timeout_error()
        try:
            if known := self._session.releases.find(version):
                return known
            return self._run(self._session.fetch_release(version), running)
        finally:
            self._fetching.release()
