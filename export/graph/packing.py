"""Lays tokenized pairs out as the packed graph reads them, in process. (On the wire, Triton does the merging.)"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from release.names import GRAPH_INPUTS, LONGEST, LONGEST_SHAPE

Pair = dict[str, list[int]]
Feed = dict[str, NDArray[np.int32]]
Logits = NDArray[np.float32]  # [pairs, labels]
Outputs = dict[str, NDArray[np.float32]]  # of a click model, by name: the logits and the further heads' [pairs, width]


def pack(requests: Sequence[Sequence[Pair]]) -> Feed:
    """Packs requests, each a sequence of pairs with `input_ids` and `token_type_ids`, into one batch.

    Returns:
        The graph's inputs by name, int32: [tokens], [tokens], [pairs], and the three counts [requests].
    """
    pairs = [pair for request in requests for pair in request]
    tokens_of_request = [sum(len(pair["input_ids"]) for pair in request) for request in requests]
    columns: tuple[list[int], ...] = (
        [token for pair in pairs for token in pair["input_ids"]],
        [token_type for pair in pairs for token_type in pair["token_type_ids"]],
        [len(pair["input_ids"]) for pair in pairs],
        tokens_of_request,
        tokens_of_request,
        [len(request) for request in requests],
    )
    return {name: np.array(column, dtype=np.int32) for name, column in zip(GRAPH_INPUTS, columns, strict=True)}


def add_longest(feed: Feed) -> Feed:
    """The feed of a TensorRT graph: adds the two inputs whose sizes say how long the longest pair is."""
    longest = int(feed["lengths"].max(initial=1))
    return {**feed, LONGEST: np.zeros(longest, dtype=np.int32), LONGEST_SHAPE: np.zeros(longest, dtype=np.int32)}
