"""The flow of one call, without I/O: what to request, and what to make of the answers.

A call is a generator. It yields steps; the ranker performs each over its transport and sends the reply (or throws the
error) back in; the generator returns the result. `Ranker` and `AsyncRanker` differ only in how they wait.

The guard against stale tokenizers is here. Every answer says which version computed it. Results are returned only if
all of them come from one version, and if their requests were made with that version's tokenizer or an equal one.
Not known here: a version number that is published twice with different contents. The exporter never does that.
"""

import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from clickbert.calls.arguments import (
    PASSAGES,
    check_long_documents,
    check_pairs,
    check_settings,
    check_text,
    check_texts,
    check_top_k,
)
from clickbert.calls.questions import (
    Batch,
    Pair,
    Question,
    Rows,
    about_clicks,
    about_embeddings,
    about_passages,
    about_topics,
)
from clickbert.calls.steps import Compute, DescribeModel, GetRelease, Infer, Step
from clickbert.errors import InvalidInputError, ProtocolError, RankerClosedError, ServerError, ServerTimeoutError
from clickbert.wire.heads import cosines
from clickbert.wire.protocol import (
    TOKENIZER_MODEL,
    InferRequest,
    InferResponse,
    ModelDescription,
    Release,
    model_request,
    newest_version,
    read_release,
    read_rows,
    tokenizer_request,
)

MAX_IN_FLIGHT = 4  # requests of one call at a time
_KEPT_RELEASES = 4  # as many as the server keeps

Result = TypeVar("Result")


@dataclass(frozen=True)
class RankedDocument:
    """One document of a ranking: its index in the list passed, its text, and its click probability in [0, 1]."""

    index: int
    text: str
    score: float


class Releases:
    """The releases that a ranker knows, by version, and the one that answered last. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, Release] = {}
        self._current: Release | None = None

    def find(self, version: str | None) -> Release | None:
        """Return a version's release if it is known; for None, the one that answered last."""
        with self._lock:
            return self._current if version is None else self._known.get(version)

    def remember(self, release: Release) -> None:
        """Keep a release, and let the next call try it first."""
        with self._lock:
            self._known[release.version] = self._current = release
            while len(self._known) > _KEPT_RELEASES:
                del self._known[next(iter(self._known))]


class Session:
    """What a ranker keeps between calls: its settings and the releases it knows. `timeout` is in seconds."""

    def __init__(self, url: str, model: str, timeout: float, max_documents: int) -> None:
        self.url = url
        check_settings(model, timeout, max_documents)
        self.model, self.timeout, self.max_documents = model, timeout, max_documents
        self.releases = Releases()
        self.closed = False

    def rank(
        self, query: str, documents: Sequence[str], top_k: int | None, long_documents: str
    ) -> Generator[Step, Any, list[RankedDocument]]:
        """Check the arguments, and return the flow of `rank`."""
        self._check_open()
        check_text(query, "query")
        check_top_k(top_k)
        check_long_documents(long_documents)
        texts = check_texts(documents, "documents", self.max_documents)

        def flow() -> Generator[Step, Any, list[RankedDocument]]:
            scores = yield from self._score([(query, text) for text in texts], long_documents)
            # A stable sort: the earlier document wins a tie.
            order = sorted(range(len(texts)), key=lambda index: -scores[index])[:top_k]
            return [RankedDocument(index, texts[index], scores[index]) for index in order]

        return flow()

    def score_pairs(self, pairs: Sequence[Pair], long_documents: str) -> Generator[Step, Any, list[float]]:
        """Check the arguments, and return the flow of `score_pairs`."""
        self._check_open()
        check_long_documents(long_documents)
        return self._score(check_pairs(pairs, self.max_documents), long_documents)

    def classify(self, texts: Sequence[str]) -> Generator[Step, Any, list[dict[str, float]]]:
        """Check the arguments, and return the flow of `classify`."""
        self._check_open()
        return self._ask(partial(about_topics, check_texts(texts, "texts", self.max_documents)))

    def embed(self, texts: Sequence[str]) -> Generator[Step, Any, npt.NDArray[np.float32]]:
        """Check the arguments, and return the flow of `embed`."""
        self._check_open()
        return self._ask(partial(about_embeddings, check_texts(texts, "texts", self.max_documents)))

    def similarity(self, text: str, others: Sequence[str]) -> Generator[Step, Any, list[float]]:
        """Check the arguments, and return the flow of `similarity`."""
        self._check_open()
        check_text(text, "text")
        texts = (text, *check_texts(others, "others", self.max_documents))

        def flow() -> Generator[Step, Any, list[float]]:
            return cosines((yield from self._ask(partial(about_embeddings, texts))))

        return flow()

    def fetch_release(self, version: str | None) -> Generator[Step, Any, Release]:
        """Fetch a version's tokenizer and limits; None is the newest version of the model on the server."""
        description: ModelDescription = yield DescribeModel(self.model)
        version = version or newest_version(description, self._where)
        (answer,) = yield Infer((partial(tokenizer_request, version),))
        where = f"{TOKENIZER_MODEL} at {self.url}"
        release: Release = yield Compute(partial(read_release, answer, version, description, where))
        self.releases.remember(release)
        return release

    def deadline(self) -> float:
        """Return when a call that starts now must be over, on the clock of `time.monotonic`."""
        return time.monotonic() + self.timeout

    def time_left(self, deadline: float) -> float:
        """Return the seconds left of a call, or raise `ServerTimeoutError`."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise self.timeout_error()
        return left

    def timeout_error(self) -> ServerTimeoutError:
        """Return the error of a call that ran out of time."""
        return ServerTimeoutError(
            f"{self._where}: no result within {self.timeout:g} s; allow a longer timeout or send fewer documents"
        )

    @property
    def _where(self) -> str:
        return f"{self.model} at {self.url}"

    def _check_open(self) -> None:
        if self.closed:
            raise RankerClosedError("this ranker was closed: make a new one")

    def _score(self, pairs: Sequence[Pair], long_documents: str) -> Generator[Step, Any, list[float]]:
        return self._ask(partial(about_passages if long_documents == PASSAGES else about_clicks, pairs))

    def _ask(self, make: Callable[[Release], Question[Result] | Compute]) -> Generator[Step, Any, Result]:
        """Ask the model a question, made for the release that answers; returns what the question reads from it."""
        release: Release = self.releases.find(None) or (yield GetRelease(None))
        try:
            question = yield from _made(make, release)
        except InvalidInputError as exc:  # no such head; a newer version may have it
            release = yield from self._successor(exc, release)
            question = yield from _made(make, release)
        answers: list[InferResponse] = []
        try:
            answers = yield Infer(
                tuple(partial(self._request, "", batch, question.outputs, release) for batch in question.batches)
            )
        except ServerError as exc:
            successor = yield from self._successor(exc, release)
        else:
            version = _agreed_version(answers, release, self._where)
            successor = release if version == release.version else (yield GetRelease(version))

        usable: dict[int, InferResponse] = {}
        if successor.is_interchangeable_with(release):
            usable = {index: answer for index, answer in enumerate(answers) if answer.version == successor.version}
        else:
            question = yield from _made(make, successor)
        outputs, batches = question.outputs, question.batches
        missing = [index for index in range(len(batches)) if index not in usable]
        if missing:
            # Only once, and from exactly this version: the answers fit now, or the call fails.
            again = yield Infer(
                tuple(
                    partial(self._request, successor.version, batches[index], outputs, successor) for index in missing
                )
            )
            usable |= zip(missing, again, strict=True)
        rows = [self._read(usable[index], batch.rows, outputs, successor) for index, batch in enumerate(batches)]
        result = question.read({name: np.concatenate([part[name] for part in rows]) for name in outputs})
        self.releases.remember(successor)
        return result

    def _request(self, version: str, batch: Batch, outputs: tuple[str, ...], release: Release) -> InferRequest:
        return model_request(self.model, version, batch.pack(), outputs, takes_longest=release.takes_longest)

    def _successor(self, error: ServerError | InvalidInputError, release: Release) -> Generator[Step, Any, Release]:
        """Return the newer release that explains why a question was refused, here or by the server, or raise the error.

        A version with another tokenizer may find a request made with the old one malformed: ids beyond a smaller
        vocabulary, pairs beyond a lower limit, a head that is gone. A refusal does not say which version it comes from,
        so ask the server.
        """
        if type(error) not in (ServerError, ProtocolError, InvalidInputError):
            raise error
        description: ModelDescription = yield DescribeModel(self.model)
        newest = newest_version(description, self._where)
        if newest == release.version:
            raise error
        successor: Release = yield GetRelease(newest)
        if successor.is_interchangeable_with(release):
            raise error
        return successor

    def _read(self, answer: InferResponse, rows: int, outputs: Sequence[str], release: Release) -> Rows:
        if answer.version != release.version:
            raise ProtocolError(
                f"{self._where}: asked for version {release.version}, but version {answer.version!r} answered;"
                " are there servers of different versions behind one address?"
            )
        return read_rows(answer, rows, outputs, release, self._where)


def _made(
    make: Callable[[Release], Question[Result] | Compute], release: Release
) -> Generator[Step, Any, Question[Result]]:
    """Return the question for a release; one that takes a while to make comes as a step."""
    made = make(release)
    question: Question[Result] = (yield made) if isinstance(made, Compute) else made
    return question


def _agreed_version(answers: Sequence[InferResponse], release: Release, where: str) -> str:
    """Return the version that all scores must come from.

    If several versions answered, the server changed versions during the call, so it is not the one known before.
    """
    versions = {answer.version for answer in answers}
    if not all(version.isdecimal() for version in versions):
        raise ProtocolError(
            f"{where}: versions {sorted(versions)} answered, but numbers were expected; is it a Triton server?"
        )
    return max(versions - {release.version} or versions, key=int)
