"""What a call asks of the model: its items packed into requests, and its results read from the rows of the answers.

A question is made for one release, because packing needs its tokenizer and reading needs its labels and topics. All of
a call's requests share their outputs, and each pair or text that occurs twice is asked once.

Each function raises `InvalidInputError` when the release has no such head.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from clickbert.calls.arguments import DOCUMENT
from clickbert.calls.steps import Compute
from clickbert.errors import InvalidInputError
from clickbert.wire.heads import ATTENTION, Passages, aggregate, topic_probabilities
from clickbert.wire.inputs import Inputs
from clickbert.wire.packing import Packed
from clickbert.wire.protocol import (
    EMBEDDING,
    LOGITS,
    PASSAGE_LOGITS,
    TOPIC_LOGITS,
    Release,
    click_log_odds,
)
from clickbert.wire.tokenization import Window

Pair = tuple[str, str]
Rows = Mapping[str, npt.NDArray[np.float32]]  # an output's rows, by its name
Result = TypeVar("Result")
Item = TypeVar("Item", Pair, str)


@dataclass(frozen=True)
class Batch:
    """What goes into one request; `pack` tokenizes and packs it when the request's turn comes, and counts it."""

    rows: int  # pairs or texts, each a row of every output
    pack: Callable[[Inputs | None], Packed]


@dataclass(frozen=True)
class Question(Generic[Result]):
    """The outputs asked for, the requests, and what to make of the rows of all answers, laid end to end."""

    outputs: tuple[str, ...]
    batches: tuple[Batch, ...]
    read: Callable[[Rows], Result]


def about_clicks(pairs: Sequence[Pair], truncate: str, release: Release) -> Question[npt.NDArray[np.float64]]:
    """Ask for the log-odds of a click of each pair, cut where it is too long as `truncate` says."""
    order = _length_of_pair if release.heads.user_tokens is None else _query_and_length
    pack = partial(release.tokenizer.pack_pairs, keep_queries=truncate == DOCUMENT)
    distinct, batches = _by_length(pairs, order, release, pack)

    def read(rows: Rows) -> npt.NDArray[np.float64]:
        log_odds = dict(zip(distinct, click_log_odds(rows[LOGITS], release.click_label), strict=True))
        return np.array([log_odds[pair] for pair in pairs])

    return Question((LOGITS,), batches, read)


def about_topics(texts: Sequence[str], release: Release) -> Question[list[dict[str, float]]]:
    """Ask for the probability by topic of each text."""
    if not release.heads.topics:
        raise _lacks(release, "has no topic head", "train it with --understanding topic")
    distinct, batches = _by_length(texts, len, release, release.tokenizer.pack_texts)

    def read(rows: Rows) -> list[dict[str, float]]:
        found = dict(zip(distinct, topic_probabilities(rows[TOPIC_LOGITS], release.heads), strict=True))
        return [dict(found[text]) for text in texts]

    return Question((TOPIC_LOGITS,), batches, read)


def about_embeddings(texts: Sequence[str], release: Release) -> Question[npt.NDArray[np.float32]]:
    """Ask for the embedding of each text: [texts, size]."""
    if not release.heads.embedding_size:
        raise _lacks(release, "has no embedding", "train it with --understanding similarity")
    distinct, batches = _by_length(texts, len, release, release.tokenizer.pack_texts)

    def read(rows: Rows) -> npt.NDArray[np.float32]:
        places = {text: place for place, text in enumerate(distinct)}
        return rows[EMBEDDING][[places[text] for text in texts]]

    return Question((EMBEDDING,), batches, read)


def about_passages(pairs: Sequence[Pair], release: Release) -> Compute:
    """Ask for the log-odds of a click of each pair, its document read in passages.

    How many passages a document has is known only when all are tokenized. That takes a while, so this is a step, whose
    reply is a `Question` as that of `about_clicks`.
    """
    passages = release.heads.passages
    if passages is None:
        raise _lacks(release, "was trained on cut documents", "train it with --passages, or leave long_documents out")
    if len(release.labels) != 1:
        names = ", ".join(release.labels)
        raise _lacks(release, f"has the labels {names}", "passages need a single one, so leave long_documents out")
    return Compute(partial(_tokenized_passages, pairs, release, passages))


def _lacks(release: Release, what: str, next_step: str) -> InvalidInputError:
    return InvalidInputError(f"version {release.version} of the model {what}: {next_step}")


def _tokenized_passages(
    pairs: Sequence[Pair], release: Release, passages: Passages
) -> Question[npt.NDArray[np.float64]]:
    distinct = list(dict.fromkeys(pairs))
    split = release.tokenizer.split_into_windows(distinct, passages.overlap)
    windows = [window for of_one in split for window in of_one]
    order = sorted(range(len(windows)), key=lambda index: windows[index].tokens)
    if release.heads.user_tokens is not None:  # those of a query side by side
        order.sort(key=lambda index: windows[index].query)
    batches = tuple(
        Batch(len(batch), partial(release.tokenizer.pack_windows, batch))
        for batch in _within_limits([windows[index] for index in order], release)
    )
    outputs = (LOGITS, PASSAGE_LOGITS) if passages.aggregate == ATTENTION else (LOGITS,)
    places = np.argsort(order)  # of each window's row among the answers
    ends = np.cumsum([len(of_one) for of_one in split])[:-1]

    def read(rows: Rows) -> npt.NDArray[np.float64]:
        by_pair = {name: np.split(rows[name][places, 0], ends) for name in outputs}
        weights = by_pair.get(PASSAGE_LOGITS, [None] * len(split))
        found = [aggregate(*of_one, passages) for of_one in zip(by_pair[LOGITS], weights, strict=True)]
        log_odds = dict(zip(distinct, found, strict=True))
        return np.array([log_odds[pair] for pair in pairs])

    return Question(outputs, batches, read)


def _by_length(
    items: Sequence[Item],
    order: Callable[[Item], Any],
    release: Release,
    pack: Callable[[list[Item], Inputs | None], Packed],
) -> tuple[list[Item], tuple[Batch, ...]]:
    """Divide the distinct items into requests, in an order of their lengths; returns them in that order, too.

    Triton's own backends pad attention to the longest pair of a request, so one long text slows down all the others.
    Lengths are in characters: they cost nothing, and tokens are not counted yet.
    """
    distinct = sorted(dict.fromkeys(items), key=order)
    # However long its pairs are, a request keeps the server's limit of tokens.
    size = int(max(min(release.limits.max_pairs, release.limits.max_tokens // release.tokenizer.max_length), 1))
    parts = [distinct[first : first + size] for first in range(0, len(distinct), size)]
    return distinct, tuple(Batch(len(part), partial(pack, part)) for part in parts)


def _length_of_pair(pair: Pair) -> int:
    return len(pair[0]) + len(pair[1])


def _query_and_length(pair: Pair) -> tuple[int, str, int]:
    """Order pairs so that those of a query are side by side: a request has its tokens once."""
    query, document = pair
    return len(query), query, len(document)


def _within_limits(windows: Sequence[Window], release: Release) -> list[list[Window]]:
    """Divide windows, in their order, into requests that keep the server's limits of pairs and of tokens."""
    batches: list[list[Window]] = [[]]
    tokens = 0
    for window in windows:
        shares = bool(release.heads.user_tokens and batches[-1] and batches[-1][-1].query == window.query)
        tokens += window.tokens - shares * (len(window.query) + 1)
        if batches[-1] and (len(batches[-1]) == release.limits.max_pairs or tokens > release.limits.max_tokens):
            batches.append([])
            tokens = window.tokens
        batches[-1].append(window)
    return batches
