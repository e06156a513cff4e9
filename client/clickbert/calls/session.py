"""The flow of one call, without I/O: what to request, and what to make of the answers.

A call is a generator. It yields steps; the ranker performs each over its transport and sends the reply (or throws the
error) back in; the generator returns the result. `Ranker` and `AsyncRanker` differ only in how they wait.

The guard against stale tokenizers is here. Every answer says which version computed it. Results are returned only if
all of them come from one version, and if their requests were made with that version's tokenizer or an equal one.
Not known here: a version number that is published twice with different contents. The exporter never does that.
"""

import logging
import math
import reprlib
import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from clickbert.calls.arguments import (
    PASSAGES,
    Mask,
    apply_mask,
    check_pairs,
    check_reading,
    check_settings,
    check_text,
    check_texts,
    check_timeout,
    check_top_k,
)
from clickbert.calls.questions import (
    Pair,
    Question,
    Rows,
    about_clicks,
    about_embeddings,
    about_passages,
    about_topics,
)
from clickbert.calls.releases import Releases
from clickbert.calls.retries import RetryBudget
from clickbert.calls.running import Asked, Running
from clickbert.calls.steps import Compute, DescribeModel, GetRelease, Infer, Step
from clickbert.channels.forks import Lock
from clickbert.errors import InvalidInputError, ModelNotFoundError, ProtocolError, RankerClosedError, ServerError
from clickbert.telemetry.observer import Call, Observer
from clickbert.telemetry.watching import Observers
from clickbert.wire.heads import cosines
from clickbert.wire.inputs import Inputs
from clickbert.wire.protocol import (
    CALL_HEADER,
    TOKENIZER_MODEL,
    InferRequest,
    InferResponse,
    ModelDescription,
    Release,
    click_probability,
    is_number,
    model_request,
    newest_version,
    read_limits,
    read_release,
    read_rows,
    tokenizer_request,
)

MAX_IN_FLIGHT = 4  # requests of one call at a time
_logger = logging.getLogger("clickbert")

Result = TypeVar("Result")


@dataclass(frozen=True)
class RankedDocument:
    """One document of a ranking: its index in the list passed, its text, and its score.

    The score is the click probability in [0, 1], or with `raw_scores` its log-odds, which is the logit of a model with
    one label.
    In a ranking that fell back to the caller's own order, `score` is NaN and `is_fallback` is true.
    """

    index: int
    text: str
    score: float
    is_fallback: bool = False


class Session:
    """What a ranker keeps between calls: its settings, the releases it knows, and its budget of retries."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        timeout: float,
        max_documents: int,
        retries: int,
        mask: Mask | None,
        observers: Sequence[Observer],
    ) -> None:
        check_settings(model, timeout, max_documents, retries, mask, observers)
        self.url, self.model, self.max_documents = url, model, max_documents
        self.releases = Releases()
        self._reading = Lock()
        self.closed = False
        self._timeout, self._retries, self._mask = timeout, retries, mask
        self._budget = RetryBudget()
        self._observers = Observers(observers)

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None,
        *,
        long_documents: str,
        truncate: str,
        raw_scores: bool,
        fallback: bool,
    ) -> Asked[list[RankedDocument]]:
        """Check the arguments of `rank`."""
        self._check_open()
        check_text(query, "query")
        check_top_k(top_k)
        check_reading(long_documents, truncate)
        texts = check_texts(documents, "documents", self.max_documents)
        call = Call("rank", self.model, len(texts))

        def flow() -> Generator[Step, Any, list[RankedDocument]]:
            try:
                pairs = [(query, text) for text in texts]
                log_odds = yield from self._score(pairs, long_documents, truncate, call)
            except ServerError as exc:
                if not fallback:
                    raise
                call.error, call.is_fallback = type(exc).__name__, True
                _logger.warning("ranking fell back to the caller's order: %s: %s", type(exc).__name__, exc)
                return [RankedDocument(index, text, math.nan, True) for index, text in enumerate(texts)][:top_k]
            # By the log-odds: probabilities near 1 are the same number. A stable sort: the earlier document wins a tie.
            order = np.argsort(-log_odds, kind="stable")[:top_k].tolist()
            scores = log_odds.tolist() if raw_scores else call.scores
            return [RankedDocument(index, texts[index], scores[index]) for index in order]

        return Asked(call, flow())

    def score_pairs(
        self, pairs: Sequence[Pair], *, long_documents: str, truncate: str, raw_scores: bool
    ) -> Asked[list[float]]:
        """Check the arguments of `score_pairs`."""
        self._check_open()
        check_reading(long_documents, truncate)
        checked = check_pairs(pairs, self.max_documents)
        call = Call("score_pairs", self.model, len(checked))

        def flow() -> Generator[Step, Any, list[float]]:
            log_odds = yield from self._score(checked, long_documents, truncate, call)
            return log_odds.tolist() if raw_scores else list(call.scores)

        return Asked(call, flow())

    def classify(self, texts: Sequence[str]) -> Asked[list[dict[str, float]]]:
        """Check the arguments of `classify`."""
        self._check_open()
        checked = check_texts(texts, "texts", self.max_documents)
        call = Call("classify", self.model, len(checked))
        return Asked(call, self._ask_of_texts(about_topics, checked, call))

    def embed(self, texts: Sequence[str]) -> Asked[npt.NDArray[np.float32]]:
        """Check the arguments of `embed`."""
        self._check_open()
        checked = check_texts(texts, "texts", self.max_documents)
        call = Call("embed", self.model, len(checked))
        return Asked(call, self._ask_of_texts(about_embeddings, checked, call))

    def similarity(self, text: str, others: Sequence[str]) -> Asked[list[float]]:
        """Check the arguments of `similarity`."""
        self._check_open()
        check_text(text, "text")
        texts = (text, *check_texts(others, "others", self.max_documents))
        call = Call("similarity", self.model, len(texts))

        def flow() -> Generator[Step, Any, list[float]]:
            return cosines((yield from self._ask_of_texts(about_embeddings, texts, call)))

        return Asked(call, flow())

    @contextmanager
    def running(self, call: Call, timeout: float | None) -> Iterator[Running]:
        """Run a call, watched by the observers. Its deadline begins now; None is the ranker's own timeout."""
        if timeout is None:
            timeout = self._timeout
        check_timeout(timeout)
        with self._observers.watch(call) as headers:
            numbered = {CALL_HEADER: str(secrets.randbits(63)), **headers}
            running = Running(call, self._where, timeout, numbered, self._retries, self._budget)
            try:
                yield running
            finally:
                running.end()

    def fetch_release(self, version: str | None) -> Generator[Step, Any, Release]:
        """Fetch a version's tokenizer and limits; None is the newest version of the model on the server."""
        description: ModelDescription = yield DescribeModel(self.model)
        version = version or newest_version(description, self._where)
        (answer,) = yield Infer((partial(tokenizer_request, version),))
        where = f"{TOKENIZER_MODEL} at {self.url}"
        release: Release = yield Compute(partial(self._read_release, answer, version, description, where))
        return release

    def _read_release(self, answer: InferResponse, version: str, description: ModelDescription, where: str) -> Release:
        """Read a release, and remember it here: the call may be over before it is read, and the next ones wait for it.

        One reads at a time: who has waited finds it read.
        """
        with self._reading:
            release = self.releases.find(version) or read_release(answer, version, description, where)
            self.releases.hear(read_limits(description, self._where))
            self.releases.remember(release)
        return release

    @property
    def _where(self) -> str:
        return f"{self.model} at {self.url}"

    def _check_open(self) -> None:
        if self.closed:
            raise RankerClosedError("this ranker was closed: make a new one")

    def _score(
        self, pairs: Sequence[Pair], long_documents: str, truncate: str, call: Call
    ) -> Generator[Step, Any, npt.NDArray[np.float64]]:
        """Return the pairs' log-odds; the call has their probabilities."""
        queries, documents = zip(*pairs, strict=True)
        masked = yield from self._masked((*queries, *documents))
        pairs = list(zip(masked[: len(pairs)], masked[len(pairs) :], strict=True))
        make = partial(about_passages, pairs) if long_documents == PASSAGES else partial(about_clicks, pairs, truncate)
        log_odds: npt.NDArray[np.float64] = yield from self._ask(make, call)
        call.scores = click_probability(log_odds).tolist()
        return log_odds

    def _ask_of_texts(
        self,
        about: Callable[[Sequence[str], Release], Question[Result]],
        texts: Sequence[str],
        call: Call,
    ) -> Generator[Step, Any, Result]:
        masked = yield from self._masked(texts)
        return (yield from self._ask(partial(about, masked), call))

    def _masked(self, texts: Sequence[str]) -> Generator[Step, Any, Sequence[str]]:
        if self._mask is None:
            return texts
        masked: list[str] = yield Compute(partial(apply_mask, self._mask, texts))
        return masked

    def _ask(self, make: Callable[[Release], Question[Result] | Compute], call: Call) -> Generator[Step, Any, Result]:
        """Ask the model a question, made for the release that answers; returns what the question reads from it.

        A version that has answered, or was listed, may be gone at the next request: it was rolled back. So the call
        begins anew, once, when one is not found.
        """
        try:
            return (yield from self._ask_once(make, call))
        except ModelNotFoundError as exc:
            if not exc.is_version:
                raise
            call.retries += 1
            return (yield from self._ask_once(make, call))

    def _ask_once(
        self, make: Callable[[Release], Question[Result] | Compute], call: Call
    ) -> Generator[Step, Any, Result]:
        release: Release = self.releases.find(None) or (yield GetRelease(None))
        try:
            question = yield from _made(make, release)
        except InvalidInputError as exc:  # no such head; a newer version may have it
            release = yield from self._successor(exc, release)
            question = yield from _made(make, release)
        answers: list[InferResponse] = []
        counts = _no_counts(call)
        try:
            answers = yield Infer(
                tuple(
                    partial(self._request, "", question, index, release, counts)
                    for index in range(len(question.batches))
                )
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
            counts = _no_counts(call)  # threads may still be busy with the former requests, and count them
        outputs, batches = question.outputs, question.batches
        missing = [index for index in range(len(batches)) if index not in usable]
        if missing:
            # Only once, and from exactly this version: the answers fit now, or the call fails.
            again = yield Infer(
                tuple(
                    partial(self._request, successor.version, question, index, successor, counts) for index in missing
                )
            )
            usable |= zip(missing, again, strict=True)
        rows = [self._read(usable[index], batch.rows, outputs, successor) for index, batch in enumerate(batches)]
        result = question.read({name: np.concatenate([part[name] for part in rows]) for name in outputs})
        self.releases.remember(successor)
        call.version, call.expected = successor.version, successor.expected
        if call.inputs is not None and counts is not None:
            for index in range(len(batches)):
                call.inputs.add(counts[index])
        return result

    def _request(
        self,
        version: str,
        question: Question[Any],
        index: int,
        release: Release,
        counts: dict[int, Inputs] | None,
    ) -> InferRequest:
        inputs = None if counts is None else Inputs()
        packed = question.batches[index].pack(inputs)
        if counts is not None and inputs is not None:
            counts[index] = inputs  # in place of those of a request that was answered by another version
        if packed.input_ids.size > release.limits.max_tokens:
            raise ProtocolError(
                f"{self._where}: a request has {packed.input_ids.size} tokens, but the server takes"
                f" {release.limits.max_tokens:g} (max_elements.input_ids in config.pbtxt): raise that to the"
                f" {release.tokenizer.max_length} that a pair may have, or more"
            )
        return model_request(self.model, version, packed, question.outputs, takes_longest=release.limits.takes_longest)

    def _successor(self, error: ServerError | InvalidInputError, release: Release) -> Generator[Step, Any, Release]:
        """Return the newer release that explains why a question was refused, here or by the server, or raise the error.

        The limits of a request may have changed, even those of a version. A version with another tokenizer may find a
        request made with the old one malformed: ids beyond a smaller vocabulary, pairs beyond a lower limit, a head
        that is gone. A refusal does not say which version it comes from, so ask the server.
        """
        if type(error) not in (ServerError, ProtocolError, InvalidInputError):
            raise error
        description: ModelDescription = yield DescribeModel(self.model)
        newest = newest_version(description, self._where)
        # The same version may have been loaded again with another configuration.
        self.releases.hear(limits := read_limits(description, self._where))
        successor: Release = (
            replace(release, limits=limits) if newest == release.version else (yield GetRelease(newest))
        )
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


def _no_counts(call: Call) -> dict[int, Inputs] | None:
    """Return where the inputs of each request are to be counted; None if no observer asks for them."""
    return None if call.inputs is None else {}


def _agreed_version(answers: Sequence[InferResponse], release: Release, where: str) -> str:
    """Return the version that all scores must come from.

    If several versions answered, the server changed versions during the call, so it is not the one known before.
    """
    versions = {answer.version for answer in answers}
    if not all(is_number(version) for version in versions):
        raise ProtocolError(
            f"{where}: versions {reprlib.repr(sorted(versions))} answered, but numbers were expected;"
            " is it a Triton server?"
        )
    return max(versions - {release.version} or versions, key=int)
