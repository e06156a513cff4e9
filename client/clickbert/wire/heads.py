"""How a model reads texts, and its further heads: what a release says of them, and what the heads' outputs mean.

The outputs are rows of logits for the topics, rows of length 1 for the embedding, and a weight for each passage of a
long document. How passages are aggregated must equal what the model was trained with (`finetune/evaluation`).
"""

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clickbert.errors import ProtocolError

MAX, MEAN, ATTENTION = AGGREGATES = ("max", "mean", "attention")

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Passages:
    """How a document beyond the model's limit is read: in passages, each scored beside the query.

    The document's logit is, by `aggregate`: "max", the highest of its passages' logits; "mean", the mean of the `best`
    highest (of all, if it has fewer); "attention", the mean weighted by the softmax of their `passage_logits`.
    """

    aggregate: str
    overlap: int  # tokens that a passage shares with the one before
    best: int = 1  # for "mean"


@dataclass(frozen=True)
class Heads:
    """What a model has beside the click. `topics` are the names in the order of `topic_logits`."""

    topics: tuple[str, ...] = ()
    several_topics: bool = False  # a text may have several: each has its own sigmoid; False: one softmax
    embedding_size: int = 0  # 0: no embedding
    passages: Passages | None = None  # None: trained on cut documents
    user_tokens: int | None = None  # of a query, which is computed once for its documents; None: with each of them


def read_heads(value: object, where: str) -> Heads:
    """Read the parsed `heads_json`, every field checked; fields of a later release are left alone.

    Raises `ProtocolError` when a field is missing or is not what it should be.
    """
    fields = _Fields(value, "heads_json", where)
    topics = fields.get("topics", "a list of different names", _are_names)
    several = fields.get("several_topics", "true or false", lambda field: isinstance(field, bool))
    size = fields.get("embedding_size", "a whole number from 0 up", lambda field: _is_whole(field, 0))
    passages = fields.get("passages", "an object or null", lambda field: field is None or isinstance(field, dict))
    user_tokens = None
    if isinstance(value, dict) and "user_tokens" in value:  # servers of an older release lack it
        user_tokens = fields.get(
            "user_tokens", "a whole number from 1 up or null", lambda field: field is None or _is_whole(field, 1)
        )
    read = None if passages is None else _read_passages(passages, where)
    return Heads(tuple(topics), several, size, read, user_tokens)


def _read_passages(value: object, where: str) -> Passages:
    fields = _Fields(value, "'passages' of heads_json", where)
    aggregate = fields.get("aggregate", f"one of {', '.join(AGGREGATES)}", lambda field: field in AGGREGATES)
    overlap = fields.get("overlap", "a whole number from 0 up", lambda field: _is_whole(field, 0))
    best = fields.get("best", "a whole number from 1 up", lambda field: _is_whole(field, 1))
    return Passages(aggregate, overlap, best)


@dataclass(frozen=True)
class _Fields:
    """The fields of a JSON object from the server."""

    value: object
    name: str
    where: str

    def get(self, field: str, expected: str, fits: Callable[[Any], bool]) -> Any:
        if not isinstance(self.value, dict):
            raise ProtocolError(
                f"{self.where}: {self.name} is {reprlib.repr(self.value)}, expected a JSON object;"
                " publish the model again"
            )
        if field not in self.value or not fits(self.value[field]):
            found = f"is {reprlib.repr(self.value[field])}" if field in self.value else "is missing"
            raise ProtocolError(
                f"{self.where}: {field!r} {found} in {self.name}, expected {expected}; publish the model again"
            )
        return self.value[field]


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value) and len(set(value)) == len(value)


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def topic_probabilities(logits: Float32Array, heads: Heads) -> list[dict[str, float]]:
    """Turn `topic_logits` [texts, topics] into each text's probability by topic, the most probable first.

    A softmax over the topics, or where a text may have several a sigmoid of each. The earlier topic wins a tie.
    """
    wide = logits.astype(np.float64)
    several = heads.several_topics
    log_probability = -np.logaddexp(0.0, -wide) if several else wide - np.logaddexp.reduce(wide, axis=1, keepdims=True)
    order = np.argsort(-wide, axis=1, kind="stable")
    rows = zip(np.exp(log_probability).tolist(), order.tolist(), strict=True)
    return [{heads.topics[index]: row[index] for index in best_first} for row, best_first in rows]


def aggregate(logits: Float32Array, weights: Float32Array | None, passages: Passages) -> float:
    """Aggregate the logits [passages] of one document's passages; `weights` [passages] are their `passage_logits`."""
    values = logits.astype(np.float64)
    if passages.aggregate == MAX:
        return float(values.max())
    if passages.aggregate == MEAN:
        return float(np.sort(values)[-passages.best :].mean())
    if weights is None:
        raise ValueError("attention over passages needs their passage_logits")
    exponents = np.exp(weights.astype(np.float64) - weights.max())
    return float((values * exponents).sum() / exponents.sum())


def cosines(embeddings: Float32Array) -> list[float]:
    """Return the cosine of the first embedding with each of the others; `embeddings` [texts, size] have length 1."""
    wide = embeddings.astype(np.float64)
    found: list[float] = (wide[1:] @ wide[0]).clip(-1.0, 1.0).tolist()
    return found
