"""The course of one call, without I/O: what to ask, and what to make of the answers.

A call is a generator. It yields steps, the ranker performs each over its transport and sends the reply (or throws the
error) back in, and what the generator returns is the result. `Ranker` and `AsyncRanker` differ only in how they wait.

The guard against stale tokenizers is here. Every answer says which version computed it; scores are returned only if
all of them come from one version, and their request was made with that version's tokenizer or one that reads alike.
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
class Describe:
    """Step: ask the server about a model; the reply is a `ModelDescription`."""

    model: str


@dataclass(frozen=True)
class Ask:
    """Step: make and send these requests, a few at a time; the reply is their answers, in order.

    Each is made when its turn to be sent comes, by a call that takes a while: it tokenizes. So that goes on beside the
    waiting for the others' answers.
    """

    requests: tuple[Callable[[], InferRequest], ...]


@dataclass(frozen=True)
class Compute:
    """Step: call this, which takes a while but needs no server; the reply is what it returns."""

    function: Callable[[], Release]


@dataclass(frozen=True)
class NeedRelease:
    """Step: get a version's tokenizer, fetching it once however many calls want it; None is the newest version's."""

    version: str | None


@dataclass(frozen=True)
class Done:
    """Not a step: the generator returned this value."""

    value: Any


Step = Describe | Ask | Compute | NeedRelease


@dataclass(frozen=True)
class RankedDocument:
    """One document of a ranking: its place in the list that was passed, its text, its click probability in [0, 1]."""

    index: int
    text: str
    score: float


class Releases:
    """The releases that a ranker knows, by version, and the one that answered last. Safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, Release] = {}
        self._current: Release | None = None

    def find(self, version: str | None) -> Release | None:
        """Return a version's release if it is known; None asks for the one that answered last."""
        with self._lock:
            return self._current if version is None else self._known.get(version)

    def use(self, release: Release) -> None:
        """Remember a release, as the one to try first in the next call."""
        with self._lock:
            self._known[release.version] = self._current = release
            while len(self._known) > _KEPT_RELEASES:
                del self._known[next(iter(self._known))]


def advance(course: Generator[Step, Any, Any], reply: object = None, error: ServerError | None = None) -> Step | Done:
    """Run a call up to its next step, or to its end."""
    try:
        return course.send(reply) if error is None else course.throw(error)
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
        """Check the arguments, and return the course of `rank`."""
        self._check_open()
        check_query(query)
        check_top_k(top_k)
        texts = check_documents(documents, self.max_documents)

        def course() -> Generator[Step, Any, list[RankedDocument]]:
            scores = yield from self._score([(query, text) for text in texts])
            # A stable sort: the earlier document wins a tie.
            order = sorted(range(len(texts)), key=lambda index: -scores[index])[:top_k]
            return [RankedDocument(index, texts[index], scores[index]) for index in order]

        return course()

    def score_pairs(self, pairs: Sequence[Pair]) -> Generator[Step, Any, list[float]]:
        """Check the arguments, and return the course of `score_pairs`."""
        self._check_open()
        return self._score(check_pairs(pairs, self.max_documents))

    def fetch_release(self, version: str | None) -> Generator[Step, Any, Release]:
        """Fetch a version's tokenizer and limits; None is the newest version that the server has of the model."""
        description: ModelDescription = yield Describe(self.model)
        version = version or newest_version(description, self._where)
        (answer,) = yield Ask((partial(tokenizer_request, version),))
        where = f"{TOKENIZER_MODEL} at {self.url}"
        release: Release = yield Compute(partial(read_release, answer, version, description, where))
        self.releases.use(release)
        return release

    def deadline(self) -> float:
        """Return when a call that starts now must be over, on the clock of `time.monotonic`."""
        return time.monotonic() + self.timeout

    def left(self, deadline: float) -> float:
        """Return the seconds left of a call, or raise `ServerTimeoutError`."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise self.too_late()
        return left

    def too_late(self) -> ServerTimeoutError:
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
        release: Release = self.releases.find(None) or (yield NeedRelease(None))
        chunks = _chunks(pairs, release.max_pairs)
        answers: list[InferResponse] = []
        try:
            answers = yield Ask(tuple(partial(self._request, "", chunk, release) for chunk in chunks))
        except ServerError as exc:
            successor = yield from self._successor(exc, release)
        else:
            version = _agreed_version(answers, release, self._where)
            successor = release if version == release.version else (yield NeedRelease(version))

        usable: dict[int, InferResponse] = {}
        if successor.reads_like(release):
            usable = {index: answer for index, answer in enumerate(answers) if answer.version == successor.version}
        else:
            chunks = _chunks(pairs, successor.max_pairs)
        missing = [index for index in range(len(chunks)) if index not in usable]
        if missing:
            # Once, and of exactly this version: what comes back now fits, or the call fails.
            again = yield Ask(
                tuple(partial(self._request, successor.version, chunks[index], successor) for index in missing)
            )
            usable |= zip(missing, again, strict=True)
        scores: dict[Pair, float] = {}
        for index, chunk in enumerate(chunks):
            scores |= zip(chunk, self._read(usable[index], len(chunk), successor), strict=True)
        self.releases.use(successor)
        return [scores[pair] for pair in pairs]

    def _request(self, version: str, chunk: Sequence[Pair], release: Release) -> InferRequest:
        packed = release.tokenizer.pack_pairs(chunk)
        return logits_request(self.model, version, packed, takes_longest=release.takes_longest)

    def _successor(self, error: ServerError, release: Release) -> Generator[Step, Any, Release]:
        """Return the release that made the server refuse a request, or raise the error that it answered with.

        To a version with another tokenizer, a request made with the old one may be malformed: ids beyond a smaller
        vocabulary, pairs beyond a lower limit. A refusal does not say which version it comes from, so ask.
        """
        if type(error) not in (ServerError, ProtocolError):
            raise error
        description: ModelDescription = yield Describe(self.model)
        newest = newest_version(description, self._where)
        if newest == release.version:
            raise error
        successor: Release = yield NeedRelease(newest)
        if successor.reads_like(release):
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

    Triton's own backends pad attention to the longest pair of a request, so one long text makes its company slow.
    Characters stand in for tokens, which are not counted yet, and cost nothing.
    """
    distinct = sorted(dict.fromkeys(pairs), key=lambda pair: len(pair[0]) + len(pair[1]))
    return [distinct[first : first + size] for first in range(0, len(distinct), size)]


def _agreed_version(answers: Sequence[InferResponse], release: Release, where: str) -> str:
    """Return the version that all scores are to come from.

    Where several answered, the server changed versions meanwhile: away from the one at hand, so it is another one.
    """
    versions = {answer.version for answer in answers}
    if not all(version.isdecimal() for version in versions):
        raise ProtocolError(
            f"{where}: versions {sorted(versions)} answered, but numbers were expected; is it a Triton server?"
        )
    return max(versions - {release.version} or versions, key=int)
