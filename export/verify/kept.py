"""Proves that what a graph keeps of a user text stands for it.

A server computes a large request in chunks (`serving/backends/packed_cpu`): a user text's keys and values come from the
first of them, and the others run on these without its tokens. Here the pairs of some users are computed so, and held
to the logits that the same graph gave them beside their user texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.graph.packing import Feed, Logits, Outputs, Pair, pack, split_pair
from export.verify.heads import evenly
from export.verify.parity import ParityError, differ
from release.names import KEPT, KEPT_EARLIER, KEPT_PREFIXES, LOGITS

USERS = 8  # from the shortest text to the longest
MOST = 8  # pairs of each


def prove_kept(
    run: Callable[[Feed], Outputs], model: str, pairs: Sequence[Pair], logits: Logits, tolerance: float
) -> None:
    """Computes pairs of some users from what was kept of the users' texts.

    Args:
        run: computes the outputs of one packed batch; with KEPT_PREFIXES in it, KEPT is one of them.
        model: what the error calls the graph.
        pairs: tokenized.
        logits: float32 [pairs, labels], the graph's own, computed beside the user texts.
        tolerance: largest difference of a logit that is allowed.

    Raises:
        ParityError: a logit is off, or not a number; says by how much. Or the graph keeps nothing.
    """
    users = choose_users(pairs)
    chosen = [index for members in users for index in members]
    if not chosen:
        return
    first = pack([[pairs[members[0]]] for members in users], once=True)
    answer = run(first | {KEPT_PREFIXES: np.zeros(len(users), np.int32)})
    if KEPT not in answer:
        raise ParityError(f"{model} does not answer with {KEPT!r}, so a request's chunks cannot share a user text")
    rest = without_users([[pairs[index] for index in members] for members in users])
    earlier: dict[str, NDArray[Any]] = {
        KEPT_PREFIXES: np.arange(1, len(users) + 1, dtype=np.int32),
        KEPT_EARLIER: answer[KEPT],
    }
    difference, (row, label) = differ(run(rest | earlier)[LOGITS], logits[chosen])
    if difference[row, label] > tolerance:
        raise ParityError(
            f"parity failed: {model} gives other logits where it computes a user text once for a request's chunks "
            f"(its output {KEPT!r} instead of the text's tokens); the difference of pair {chosen[row] + 1}, label "
            f"{label}, {difference[row, label]:.3g}, is over {tolerance:g} "
            f"({int((difference > tolerance).any(1).sum())} of {len(chosen)} pairs are)"
        )


def choose_users(pairs: Sequence[Pair]) -> list[list[int]]:
    """The places of the pairs of some users with several, or with one where no user has more."""
    places: dict[tuple[int, ...], list[int]] = {}
    for index, pair in enumerate(pairs):
        places.setdefault(tuple(split_pair(pair)[0]), []).append(index)
    places.pop((), None)  # single texts
    several = [user for user, members in places.items() if len(members) > 1] or [*places]
    several.sort(key=len)
    return [places[several[place]][:MOST] for place in evenly(len(several), USERS)]


def without_users(requests: Sequence[Sequence[Pair]]) -> Feed:
    """Requests of one user each, packed without the tokens of the users."""
    feed = pack(requests, once=True)
    own = [[token for pair in request for token in split_pair(pair)[1]] for request in requests]
    return feed | {
        "input_ids": np.array([token for tokens in own for token in tokens], dtype=np.int32),
        "token_counts": np.array([len(tokens) for tokens in own], dtype=np.int32),
    }
