"""Lays tokenized pairs out as the packed graph reads them, in process. (On the wire, Triton does the merging.)"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, groupby

import numpy as np
from numpy.typing import NDArray

from release.names import (
    GRAPH_INPUTS,
    LONGEST,
    LONGEST_SHAPE,
    LONGEST_USER,
    LONGEST_USER_SHAPE,
    ONCE_GRAPH_INPUTS,
)

Pair = dict[str, list[int]]
Feed = dict[str, NDArray[np.int32]]
Logits = NDArray[np.float32]  # [pairs, labels]
Outputs = dict[str, NDArray[np.float32]]  # of a click model, by name: the logits and the further heads' [pairs, width]


def pack(requests: Sequence[Sequence[Pair]], *, once: bool = False) -> Feed:
    """Packs requests, each a sequence of pairs with `input_ids` and `token_type_ids`, into one batch.

    Args:
        requests: of one pair or more each.
        once: for the graph that computes a user text once (`user_once`): pairs of a request that stand side by side
            and have the same user text share it.

    Returns:
        The graph's inputs by name, int32.
    """
    return pack_once(requests) if once else pack_whole(requests)


def pack_whole(requests: Sequence[Sequence[Pair]]) -> Feed:
    """The inputs [tokens], [tokens], [pairs], and three counts [requests]."""
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


def pack_once(requests: Sequence[Sequence[Pair]]) -> Feed:
    """The inputs [tokens], [users], [users], [pairs], and four counts [requests]."""
    columns: tuple[list[int], ...] = ([], [], [], [])
    tokens, user_lengths, user_pairs, lengths = columns
    counts: tuple[list[int], ...] = ([], [], [], [])
    for request in requests:
        before = [len(column) for column in columns]
        for user, pairs in groupby(map(split_pair, request), key=lambda parts: parts[0]):
            candidates = [candidate for _, candidate in pairs]
            tokens += [*user, *chain.from_iterable(candidates)]
            user_lengths.append(len(user))
            user_pairs.append(len(candidates))
            lengths += map(len, candidates)
        for column, length, found in zip(columns, before, counts, strict=True):
            found.append(len(column) - length)
    named = zip(ONCE_GRAPH_INPUTS, (*columns, *counts), strict=True)
    return {name: np.array(column, dtype=np.int32) for name, column in named}


def split_pair(pair: Pair) -> tuple[list[int], list[int]]:
    """A pair's segments `user [SEP]` and `[CLS] candidate [SEP]`; the first of a single text is empty."""
    ids, types = pair["input_ids"], pair["token_type_ids"]
    if 1 not in types:
        return [], ids
    end = types.index(1)
    return ids[1:end], ids[:1] + ids[end:]


def add_longest(feed: Feed) -> Feed:
    """The feed of a TensorRT graph: adds the inputs whose sizes say how long the longest pair is.

    Where a user text is computed once: how long the longest candidate and the longest user text are.
    """
    names = {"lengths": (LONGEST, LONGEST_SHAPE), "user_lengths": (LONGEST_USER, LONGEST_USER_SHAPE)}
    sizes = {name: int(feed[source].max(initial=1)) for source, own in names.items() if source in feed for name in own}
    return feed | {name: np.zeros(size, dtype=np.int32) for name, size in sizes.items()}
