"""The segments of a request: which of them a chunk takes, and how its answer is put together again.

A request's inputs are segments laid end to end (a click model's are pairs of texts), and one input, its lengths, says
how many elements each segment has. A chunk costs as much attention as if each of its segments were as long as its
longest, and a chunk that fits the processor's cache is computed faster. So a chunk takes segments of similar length, as
many as `segments x longest` allows within a budget. What a request brings to a chunk is a small request of its own:
whatever the model checks or counts for each request, it checks and counts for each such part.

Segments may share a prefix (a click model's: the user text of several candidates), which lies before them. The first
chunk with a prefix computes it; the prefix's other segments wait until it is computed, and then get what the model kept
of it. For prefixes a chunk has a budget of its own: `prefixes x longest prefix`.

What this module does not know: Triton, ONNX Runtime, time, what the elements are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from release.names import KEPT, KEPT_PREFIXES

Array = NDArray[Any]
Arrays = dict[str, Array]


class Names(NamedTuple):
    """The inputs that say how a request's elements are divided."""

    lengths: str  # [segments], elements of each
    prefix_lengths: str = ""  # [prefixes], elements of each, 0 or more; "": there are no prefixes
    prefix_shares: str = ""  # [prefixes], how many segments follow each


class Room:
    """What is left of a chunk's budget.

    Args:
        budget: `segments x longest` at most, and `prefixes x longest prefix`; a longer one has a chunk of its own.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.segments = 0
        self.longest = 0
        self.prefixes = 0
        self.longest_prefix = 0

    def is_full(self) -> bool:
        """Whether no further segment fits."""
        return bool(self.segments) and (self.segments + 1) * self.longest > self.budget

    def first_fit(self, lengths: Array) -> int:
        """The place of the longest of these segments that still fits, or their number. `lengths` descend."""
        if not self.segments:
            return 0
        if self.is_full():
            return len(lengths)
        most = self.budget // (self.segments + 1)
        return int(np.searchsorted(-lengths, -most))

    def take(self, longest: int, available: int) -> int:
        """Makes room for segments, and says for how many: at least one of `first_fit`, as many as are `available`."""
        self.longest = max(self.longest, longest)
        taken = min(available, max(1, self.budget // self.longest - self.segments))
        self.segments += taken
        return taken

    def fits_prefix(self, length: int) -> bool:
        """Whether a further prefix fits."""
        return not self.prefixes or (self.prefixes + 1) * max(self.longest_prefix, length) <= self.budget

    def take_prefix(self, length: int) -> None:
        """Makes room for a prefix."""
        self.prefixes, self.longest_prefix = self.prefixes + 1, max(self.longest_prefix, length)


class Taken(NamedTuple):
    """What a chunk takes of a request.

    Attributes:
        places: of its segments, ascending.
        begun: the prefixes that are computed with them.
    """

    places: Array
    begun: tuple[int, ...] = ()


NEW, WAITING, READY = range(3)  # a prefix: no chunk has taken it; it is being computed; it is computed


class Segments:
    """The segments of one request that no chunk has taken yet.

    Args:
        lengths: of all segments, in the request's order, each 1 or more.
        prefixes: elements of each prefix; one without elements need not be computed.
        shares: how many segments each prefix has; None: one has them all.
    """

    def __init__(self, lengths: Array, prefixes: Array | None = None, shares: Array | None = None) -> None:
        counts = lengths.astype(np.int64)  # an unsigned one has no minus
        self.places = np.argsort(-counts, kind="stable")
        self.lengths = counts[self.places]
        self.prefixes = np.zeros(1, np.int64) if prefixes is None else prefixes.astype(np.int64)
        self.state = np.where(self.prefixes > 0, NEW, READY)
        # Which prefix each segment has, in the order of `lengths`.
        self.owners = np.zeros_like(counts) if shares is None else owners_of(shares)[self.places]
        self.elements = int(counts.sum() + self.prefixes.sum())

    def __bool__(self) -> bool:
        return bool(len(self.places))

    def longest(self) -> int:
        """Elements of the longest segment together with its prefix."""
        return int((self.lengths + self.prefixes[self.owners]).max())

    def first_chunk(self, budget: int) -> int:
        """Elements of the first chunk, at most."""
        most = max(budget, int(self.lengths[0]))
        if self.prefixes.any():
            most += max(budget, int(self.prefixes.max()))
        return min(self.elements, most)

    def can_be_taken(self) -> bool:
        """Whether there are segments that need not wait for their prefix."""
        return bool((self.state[self.owners] != WAITING).any())

    def take(self, room: Room) -> Taken | None:
        """What a chunk takes: the longest that fit, first of those whose prefix is computed; None if none fits."""
        states = self.state[self.owners]
        chosen = [self.fit(room, np.flatnonzero(states == READY))]
        begun = []
        for prefix in dict.fromkeys(self.owners[states == NEW].tolist()):  # by their longest segments
            length = int(self.prefixes[prefix])
            if not room.fits_prefix(length):
                continue
            own = np.flatnonzero(self.owners == prefix)
            fitting = self.fit(room, own)
            if len(fitting):
                room.take_prefix(length)
                chosen.append(fitting)
                begun.append(prefix)
                self.elements -= length
                self.state[prefix] = WAITING if len(fitting) < len(own) else READY
        taken = np.concatenate(chosen)
        if not len(taken):
            return None
        places = np.sort(self.places[taken])
        self.elements -= int(self.lengths[taken].sum())
        left = np.ones(len(self.places), np.bool_)
        left[taken] = False
        self.places, self.lengths, self.owners = self.places[left], self.lengths[left], self.owners[left]
        return Taken(places, tuple(begun))

    def fit(self, room: Room, some: Array) -> Array:
        """Those of `some` segments that fit, given and returned by their order in `lengths`."""
        lengths = self.lengths[some]
        first = room.first_fit(lengths)
        if first == len(some):
            return some[:0]
        return some[first : first + room.take(int(lengths[first]), len(some) - first)]

    def computed(self, prefixes: Sequence[int]) -> None:
        """Lets the segments of these prefixes be taken."""
        self.state[list(prefixes)] = READY

    def waiting(self, prefixes: Sequence[int]) -> list[int]:
        """Those of these prefixes whose other segments wait for them."""
        return [prefix for prefix in prefixes if self.state[prefix] == WAITING]

    def clear(self) -> None:
        """Leaves nothing to take."""
        self.places, self.lengths, self.owners, self.elements = self.places[:0], self.lengths[:0], self.owners[:0], 0


def owners_of(shares: Array) -> Array:
    """Which prefix each segment of a request has, by how many segments each prefix has."""
    return np.repeat(np.arange(len(shares)), shares.astype(np.int64))


def divide(request: Arrays, names: Names) -> Segments:
    """The segments of a request that has no `fault`."""
    lengths = request[names.lengths][0]
    if not names.prefix_lengths:
        return Segments(lengths)
    return Segments(lengths, request[names.prefix_lengths][0], request[names.prefix_shares][0])


def cut(request: Arrays, names: Names, budget: int) -> Iterator[Arrays]:
    """A request, [1, elements] each, as the parts that chunks of its own would take, the longest first.

    A part whose prefix an earlier part has lacks what the model kept of it.
    """
    segments = divide(request, names)
    while segments:
        taken = segments.take(Room(budget))
        assert taken is not None, "an empty chunk has room for any segment"
        yield select(request, taken, names, {})
        segments.computed(taken.begun)


def fault(request: Arrays, names: Names) -> str | None:
    """Why a request cannot be cut; None if every segment has elements, and all of them as many as each other input.

    Computing it anyway could cost whatever its lengths claim: 32 segments of 512 elements, in a request of one element.
    Of a request of several rows only the model knows which row a segment belongs to, so it could not be cut.
    """
    lengths = names.lengths
    if rows := [array.shape for array in request.values() if array.ndim != 2 or len(array) != 1]:
        return f"an input has the shape {rows[0]}, but a request has one row: [1, elements]"
    if not request[lengths].size:
        return f"{lengths!r} has no segment"
    if request[lengths].min() < 1:
        return f"{lengths!r} has a segment without elements"
    total = sum(request[lengths][0].tolist())  # in Python's integers: wild ones must not wrap around
    counted = lengths
    if names.prefix_lengths:
        if reason := prefix_fault(request, names):
            return reason
        counted = f"{lengths} and {names.prefix_lengths}"
        total += sum(request[names.prefix_lengths][0].tolist())
    for name, array in request.items():
        if name not in names and array.size != total:
            return f"{counted!r} adds up to {total}, but {name!r} has {array.size} elements"
    return None


def prefix_fault(request: Arrays, names: Names) -> str | None:
    """Why a request's prefixes are wrong; None if each has segments, and each segment its prefix."""
    lengths, shares = request[names.prefix_lengths], request[names.prefix_shares]
    if lengths.shape != shares.shape:
        return f"{names.prefix_lengths!r} has the shape {lengths.shape}, but {names.prefix_shares!r} {shares.shape}"
    if not lengths.size or lengths.min() < 0 or shares.min() < 1:
        return f"{names.prefix_lengths!r} has a prefix of less than no element, or one without a segment"
    total, segments = sum(shares[0].tolist()), request[names.lengths].size
    if total != segments:
        return f"{names.prefix_shares!r} adds up to {total}, but {names.lengths!r} has {segments} elements"
    return None


def select(request: Arrays, taken: Taken, names: Names, kept: Mapping[int, Array]) -> Arrays:
    """What a chunk takes of a request, as a request: every input [1, elements].

    Args:
        request: with one row.
        taken: which segments, and which prefixes go with them.
        names: how the request is divided.
        kept: what the model kept of the prefixes that were begun earlier, [1, 1, parts, longest, size] each. The part
            has those that it needs as KEPT and, as KEPT_PREFIXES, the place there of each of its prefixes, from 1 (0:
            this one goes with the part).
    """
    counts, segments = request[names.lengths].reshape(-1), taken.places
    if len(segments) == len(counts):
        return request
    ends = np.cumsum(counts)
    divided = {names.lengths: counts[segments]}
    slices: list[tuple[int, int]] = []
    part: Arrays = {}
    if names.prefix_lengths:
        prefixes, shares = (request[name].reshape(-1) for name in (names.prefix_lengths, names.prefix_shares))
        owners = owners_of(shares)
        ends = ends + np.cumsum(prefixes)[owners]
        used, shares = np.unique(owners[segments], return_counts=True)
        divided |= {
            names.prefix_lengths: prefixes[used],
            names.prefix_shares: shares.astype(request[names.prefix_shares].dtype),
        }
        begun = np.array(taken.begun, np.int64)
        heads = np.searchsorted(owners, begun)  # the segment behind each prefix
        stops = ends[heads] - counts[heads]
        slices += zip(stops - prefixes[begun], stops, strict=True)
        there = np.array([prefix in kept and prefix not in taken.begun for prefix in used.tolist()])
        if there.any():
            part[KEPT] = side_by_side([kept[prefix] for prefix in used[there].tolist()])
            part[KEPT_PREFIXES] = np.where(there, np.cumsum(there), 0)
    slices += zip(ends[segments] - counts[segments], ends[segments], strict=True)
    slices.sort()
    for name, array in request.items():
        chosen = divided.get(name)
        if chosen is None:
            chosen = np.concatenate([array.reshape(-1)[start:stop] for start, stop in slices])
        part[name] = chosen[np.newaxis]
    return part


def used_prefixes(request: Arrays, taken: Taken, names: Names) -> list[int]:
    """The prefixes of what a chunk takes, in the order in which a part has them."""
    used: list[int] = np.unique(owners_of(request[names.prefix_shares][0])[taken.places]).tolist()
    return used


def side_by_side(kept: Sequence[Array]) -> Array:
    """What was kept of several prefixes, [1, prefixes, parts, longest, size] each, as one."""
    if len(kept) == 1:
        return kept[0]
    longest = max(array.shape[3] for array in kept)
    padded = [np.pad(array, [(0, 0)] * 3 + [(0, longest - array.shape[3]), (0, 0)]) for array in kept]
    return np.concatenate(padded, axis=1)


def join(places: Sequence[Array], outputs: Sequence[Arrays]) -> Arrays:
    """One request's outputs, [1, segments, ...] each, put together from those of its parts; `places` are theirs."""
    if len(outputs) == 1:
        return outputs[0]
    order = np.concatenate(places)
    joined = {}
    for name in outputs[0]:
        rows = np.concatenate([output[name] for output in outputs], axis=1)
        joined[name] = np.empty_like(rows)
        joined[name][:, order] = rows
    return joined
