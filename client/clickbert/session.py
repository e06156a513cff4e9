"""The flow of one call, without I/O: what to request, and what to make of the answers.

A call is a generator. It yields steps; the ranker performs each over its transport and sends the reply (or throws the
error) back in; the generator returns the result. `Ranker` and `AsyncRanker` differ only in how they wait.

The guard against stale tokenizers is here. Every answer says which version computed it. Scores are returned only if
all of them come from one version, and if their requests were made with that version's tokenizer or an equal one.
Not known here: a version number that is published twice with different contents. The exporter never does that.
"""

import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from clickbert.arguments import check_documents, check_pairs, check_query, check_settings, check_top_k
from clickbert.errors import ProtocolError, RankerClosedError, ServerError, ServerTimeoutError
from clickbert.protocol import (
    TOKENIZER_MODEL,
    InferRequest,
    InferResponse,
    ModelDescription,
    Release,
    logits_request,
    newest_version,
    read_release,
    read_scores,
    tokenizer_request,
)

MAX_IN_FLIGHT = 4  # requests of one call at a time
_KEPT_RELEASES = 4  # as many as the server keeps

Pair = tuple[str, str]


@dataclass(frozen=True)
class DescribeModel:
    """Step: ask the server about a model; the reply is a `ModelDescription`."""

    model: str


@dataclass(frozen=True)
class Infer:
    """Step: make and send these requests, a few at a time; the reply is their answers, in order.

    Each request is made when its turn comes. Making one tokenizes, which takes a while, and so goes on while others are
    in flight.
    """

    requests: tuple[Callable[[], InferRequest], ...]


@dataclass(frozen=True)
class Compute:
    """Step: call a function that takes a while, but needs no server; the reply is what it returns."""

    function: Callable[[], Release]


@dataclass(frozen=True)
class GetRelease:
    """Step: get the release of a version, None for the newest. Calls that need it at the same time fetch it once."""

    version: str | None


@dataclass(frozen=True)
class Done:
    """Not a step: the generator returned this value."""

    value: Any


Step = DescribeModel | Infer | Compute | GetRelease


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


def advance(flow: Generator[Step, Any, Any], reply: object = None, error: ServerError | None = None) -> Step | Done:
    """Run a call up to its next step, or to its end."""
    try:
        return flow.send(reply) if error is None else flow.throw(error)
    except StopIteration as stop:
        return Done(stop.value)


class Session:
    """What a ranker keeps between calls: its settings and the releases it knows. `timeout` is in seconds."""

    def __init__(self, url: str, model: str, timeout: float, max_documents: int) -> None:
        self.url = url
        check_settings(model, timeout, max_documents)
        self.model, self.timeout, self.max_documents = model, timeout, max_documents
        self.releases = Releases()
        self.closed = False

    def rank(
        self, query: str, documents: Sequence[str], top_k: int | None
    ) -> Generator[Step, Any, list[RankedDocument]]:
        """Check the arguments, and return the flow of `rank`."""
        self._check_open()
        check_query(query)
        check_top_k(top_k)
        texts = check_documents(documents, self.max_documents)

        def flow() -> Generator[Step, Any, list[RankedDocument]]:
            scores = yield from self._score([(query, text) for text in texts])
            # A stable sort: the earlier document wins a tie.
            order = sorted(range(len(texts)), key=lambda index: -scores[index])[:top_k]
            return [RankedDocument(index, texts[index], scores[index]) for index in order]

        return flow()

    def score_pairs(self, pairs: Sequence[Pair]) -> Generator[Step, Any, list[float]]:
        """Check the arguments, and return the flow of `score_pairs`."""
        self._check_open()
        return self._score(check_pairs(pairs, self.max_documents))

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

    def _score(self, pairs: Sequence[Pair]) -> Generator[Step, Any, list[float]]:
        """Score pairs, each distinct one once; returns their click probabilities in the order given."""
        release: Release = self.releases.find(None) or (yield GetRelease(None))
        chunks = _chunks(pairs, release.max_pairs)
        answers: list[InferResponse] = []
        try:
            answers = yield Infer(tuple(partial(self._request, "", chunk, release) for chunk in chunks))
        except ServerError as exc:
            successor = yield from self._successor(exc, release)
        else:
            version = _agreed_version(answers, release, self._where)
            successor = release if version == release.version else (yield GetRelease(version))

        usable: dict[int, InferResponse] = {}
        if successor.is_interchangeable_with(release):
            usable = {index: answer for index, answer in enumerate(answers) if answer.version == successor.version}
        else:
            chunks = _chunks(pairs, successor.max_pairs)
        missing = [index for index in range(len(chunks)) if index not in usable]
        if missing:
            # Only once, and from exactly this version: the answers fit now, or the call fails.
            again = yield Infer(
                tuple(partial(self._request, successor.version, chunks[index], successor) for index in missing)
            )
            usable |= zip(missing, again, strict=True)
        scores: dict[Pair, float] = {}
        for index, chunk in enumerate(chunks):
            scores |= zip(chunk, self._read(usable[index], len(chunk), successor), strict=True)
        self.releases.remember(successor)
        return [scores[pair] for pair in pairs]

    def _request(self, version: str, chunk: Sequence[Pair], release: Release) -> InferRequest:
        packed = release.tokenizer.pack_pairs(chunk)
        return logits_request(self.model, version, packed, takes_longest=release.takes_longest)

    def _successor(self, error: ServerError, release: Release) -> Generator[Step, Any, Release]:
        """Return the newer release that explains why the server refused a request, or raise the server's error.

        A version with another tokenizer may find a request made with the old one malformed: ids beyond a smaller
        vocabulary, pairs beyond a lower limit. A refusal does not say which version it comes from, so ask the server.
        """
        if type(error) not in (ServerError, ProtocolError):
            raise error
        description: ModelDescription = yield DescribeModel(self.model)
        newest = newest_version(description, self._where)
        if newest == release.version:
            raise error
        successor: Release = yield GetRelease(newest)
        if successor.is_interchangeable_with(release):
            raise error
        return successor

    def _read(self, answer: InferResponse, pairs: int, release: Release) -> list[float]:
        if answer.version != release.version:
            raise ProtocolError(
                f"{self._where}: asked for version {release.version}, but version {answer.version!r} answered;"
                " are there servers of different versions behind one address?"
            )
        scores: list[float] = read_scores(answer, pairs, release, self._where).tolist()
        return scores


def _chunks(pairs: Sequence[Pair], size: int) -> list[list[Pair]]:
    """Divide the distinct pairs into requests of at most `size`, pairs of similar length together.

    Triton's own backends pad attention to the longest pair of a request, so one long text slows down all the others.
    Lengths are in characters: they cost nothing, and tokens are not counted yet.
    """
    distinct = sorted(dict.fromkeys(pairs), key=lambda pair: len(pair[0]) + len(pair[1]))
    return [distinct[first : first + size] for first in range(0, len(distinct), size)]


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
