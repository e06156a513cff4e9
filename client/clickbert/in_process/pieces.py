"""Cuts a request into pieces of pairs of similar length, and puts the answer together again.

Attention is padded to the longest pair of what is computed at once, so one long pair slows down all its neighbours. And
a piece that fits a core's cache is computed faster. `packed_cpu`, the server's backend, cuts the same way.

A piece is a request of its own. Where each query is sent once, the first piece of a query computes it, and the others
get what the graph kept of it.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from clickbert.in_process.names import KEPT, KEPT_EARLIER, KEPT_PREFIXES, USER_PAIRS
from clickbert.wire.protocol import INPUT_IDS, LENGTHS, USER_LENGTHS, Array

Places = npt.NDArray[np.int64]
Outputs = Mapping[str, Array]


class Piece(NamedTuple):
    """What is computed at once: the inputs [elements] by name, the outputs wanted, and which rows it answers."""

    inputs: Mapping[str, Array]
    outputs: tuple[str, ...]
    places: Places


# Yields pieces that can be computed at the same time, gets their outputs, and returns those of the request.
Work = Generator[Sequence[Piece], Any, dict[str, Array]]
Cut = Callable[[Mapping[str, Array], tuple[str, ...]], Work]


def cut(inputs: Mapping[str, Array], outputs: tuple[str, ...], budget: int) -> Work:
    """Cut a request, its inputs [1, elements] each; `budget`: tokens of a piece, padded to its longest pair."""
    flat = {name: array[0] for name, array in inputs.items()}
    found: list[tuple[Places, Outputs]] = []
    if USER_LENGTHS in flat:
        yield from _cut_users(flat, outputs, budget, found)
    else:
        pieces = [_of_pairs(flat, outputs, places) for places in _runs(flat[LENGTHS], budget)]
        found += zip((piece.places for piece in pieces), (yield pieces), strict=True)
    order = np.argsort(np.concatenate([places for places, _ in found]))
    return {name: np.concatenate([each[name] for _, each in found])[order][np.newaxis] for name in outputs}


def _runs(lengths: Array, budget: int) -> Iterator[Places]:
    """Divide pairs into runs, the longest pairs first."""
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        size = max(1, budget // int(lengths[order[0]]))
        yield np.sort(order[:size])
        order = order[size:]


def _of_pairs(flat: Mapping[str, Array], outputs: tuple[str, ...], places: Places) -> Piece:
    lengths = flat[LENGTHS]
    if len(places) == len(lengths):
        return Piece(flat, outputs, places)
    tokens = _spans(np.cumsum(lengths)[places] - lengths[places], lengths[places])
    inputs = {name: array[places] if name == LENGTHS else array[tokens] for name, array in flat.items()}
    return Piece(inputs, outputs, places)


def _spans(starts: Places, lengths: Array) -> Places:
    """Return the places of several spans of tokens, one after another."""
    return np.concatenate([np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)])


@dataclass(frozen=True)
class _Share:
    """Some documents of one query."""

    user: int
    places: Places  # ascending
    longest: int  # tokens of the longest document


def _cut_users(
    flat: Mapping[str, Array], outputs: tuple[str, ...], budget: int, found: list[tuple[Places, Outputs]]
) -> Generator[Sequence[Piece], Sequence[Outputs], None]:
    lengths, users = flat[LENGTHS], flat[USER_LENGTHS]
    firsts, others = [], []
    ends = np.cumsum(flat[USER_PAIRS])
    for user, (end, count) in enumerate(zip(ends, flat[USER_PAIRS], strict=True)):
        runs = list(_runs(lengths[end - count : end], budget))
        shares = [_Share(user, run + (end - count), int(lengths[run + (end - count)].max())) for run in runs]
        if users[user]:
            firsts.append(shares[0])
            others += shares[1:]
        else:  # single texts
            firsts += shares
    waited_for = {share.user for share in others}
    kept: dict[int, Array] = {}
    for shares, is_first in ((firsts, True), (others, False)):
        together = list(_together(shares, users, budget))
        pieces = []
        for some in together:
            keeps = is_first and any(share.user in waited_for for share in some)
            pieces.append(_of_users(flat, (*outputs, KEPT) if keeps else outputs, some, {} if is_first else kept))
        answers = (yield pieces) if pieces else []
        for some, piece, answer in zip(together, pieces, answers, strict=True):
            found.append((piece.places, answer))
            for index, share in enumerate(some):
                if KEPT in piece.outputs and share.user in waited_for:
                    kept[share.user] = answer[KEPT][:, index : index + 1, :, : users[share.user]]


def _together(shares: list[_Share], users: Array, budget: int) -> Iterator[list[_Share]]:
    """Put shares of different queries together, where they fit the budget of documents, and that of queries."""
    some: list[_Share] = []
    for share in sorted(shares, key=lambda share: -share.longest):
        both = [*some, share]
        pairs = sum(len(each.places) for each in both) * max(each.longest for each in both)
        queries = len(both) * max(int(users[each.user]) for each in both)
        if some and (pairs > budget or queries > budget or any(each.user == share.user for each in some)):
            yield sorted(some, key=lambda each: each.user)
            both = [share]
        some = both
    if some:
        yield sorted(some, key=lambda each: each.user)


def _of_users(
    flat: Mapping[str, Array], outputs: tuple[str, ...], shares: list[_Share], kept: Mapping[int, Array]
) -> Piece:
    """Make a piece of shares; of the queries in `kept` it has what was kept, not the tokens."""
    lengths, users, pairs = flat[LENGTHS], flat[USER_LENGTHS], flat[USER_PAIRS]
    places = np.concatenate([share.places for share in shares])
    owners = np.repeat(np.arange(len(users)), pairs)
    stops = np.cumsum(lengths) + np.cumsum(users)[owners]  # behind each document
    begins = stops[np.cumsum(pairs) - pairs] - lengths[np.cumsum(pairs) - pairs] - users  # of each query
    spans = []
    for share in shares:
        if share.user not in kept:
            spans.append(np.arange(begins[share.user], begins[share.user] + users[share.user]))
        spans.append(_spans(stops[share.places] - lengths[share.places], lengths[share.places]))
    own = [share.user for share in shares]
    inputs = {
        INPUT_IDS: flat[INPUT_IDS][np.concatenate(spans)],
        USER_LENGTHS: users[own],
        USER_PAIRS: np.array([len(share.places) for share in shares], np.int32),
        LENGTHS: lengths[places],
    }
    if kept:
        inputs[KEPT_PREFIXES] = np.arange(1, len(own) + 1, dtype=np.int32)
        inputs[KEPT_EARLIER] = _side_by_side([kept[user] for user in own])
    return Piece(inputs, outputs, places)


def _side_by_side(kept: list[Array]) -> Array:
    """Return what was kept of several queries, [1, 1, parts, tokens, size] each, as one."""
    longest = max(array.shape[3] for array in kept)
    padded = [np.pad(array, [(0, 0)] * 3 + [(0, longest - array.shape[3]), (0, 0)]) for array in kept]
    return np.concatenate(padded, axis=1)
