"""The segments of a request: which of them a chunk takes, and how its answer is put together again.

A request's inputs are segments laid end to end (a click model's are pairs of texts), and one input, its lengths, says
how many elements each segment has. A chunk costs as much attention as if each of its segments were as long as its
longest, and a chunk that fits the processor's cache is computed faster. So a chunk takes segments of similar length, as
many as `segments x longest` allows within a budget. What a request brings to a chunk is a small request of its own:
whatever the model checks or counts for each request, it checks and counts for each such part.

Segments may share a prefix (a click model's: the user text of several candidates), which lies before them. A request's
first chunk computes all of its prefixes, and the other chunks get what the model kept of them.

What this module does not know: Triton, ONNX Runtime, time, what the elements are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = dict[str, Array]


KEPT = "kept"  # what the model kept of a part's prefixes: [1, prefixes, parts, longest, size]


class Names(NamedTuple):
    """The inputs that say how a request's elements are divided."""

    lengths: str  # [segments], elements of each
    prefix_lengths: str = ""  # [prefixes], elements of each, 0 or more; "": there are no prefixes
    prefix_shares: str = ""  # [prefixes], how many segments follow each


class Room:
    """What is left of a chunk's budget.

    Args:
        budget: `segments x longest` at most; a longer segment has a chunk of its own.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.segments = 0
        self.longest = 0

    def is_full(self) -> bool:
        """Whether no further segment fits."""
        return bool(self.segments) and (self.segments + 1) * self.longest > self.budget

    def close(self) -> None:
        """Lets nothing more in."""
        self.longest = max(self.longest, self.budget)

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


class Segments:
    """The segments of one request that no chunk has taken yet.

    Args:
        lengths: of all segments, in the request's order, each 1 or more; None for a request that stays whole.
        size: elements of a request that stays whole. It is one segment then, in a chunk of its own: of a request of
            several rows only the model knows which row a segment belongs to.
        prefixes: elements of each prefix; None if there are none.
        shares: how many segments each prefix has.
    """

    def __init__(
        self, lengths: Array | None, size: int = 0, prefixes: Array | None = None, shares: Array | None = None
    ) -> None:
        self.whole = lengths is None
        counts = np.array([size]) if lengths is None else lengths.astype(np.int64)  # an unsigned one has no minus
        self.places = np.argsort(-counts, kind="stable")
        self.lengths = counts[self.places]
        self.prefixes = np.zeros(1, np.int64) if prefixes is None else prefixes.astype(np.int64)
        self.prefix_elements = int(self.prefixes.sum())
        # Which prefix each segment has, in the order of `lengths`; None once a chunk has taken the prefixes.
        self.owners: Array | None = None
        if shares is not None:
            self.owners = np.repeat(np.arange(len(shares)), shares)[self.places]
        self.elements = int(counts.sum()) + self.prefix_elements

    def __bool__(self) -> bool:
        return bool(len(self.places))

    def longest(self) -> int:
        """Elements of the longest segment together with its prefix, of those not taken yet."""
        with_prefix = self.lengths if self.owners is None else self.lengths + self.prefixes[self.owners]
        return int(with_prefix.max())

    def take(self, room: Room) -> Array | None:
        """The places of segments that a chunk takes, ascending and the longest that fit; None if none fits."""
        if self.owners is not None:
            return self.take_first(room, self.owners)
        first = room.first_fit(self.lengths)
        if first == len(self.lengths) or (self.whole and room.segments):
            return None
        last = first + room.take(int(self.lengths[first]), len(self.lengths) - first)
        if self.whole:
            room.close()
        return self.remove(np.arange(first, last))

    def take_first(self, room: Room, owners: Array) -> Array | None:
        """What the first chunk takes: with each prefix the longest of its segments, and then what else fits."""
        _, heads = np.unique(owners, return_index=True)
        longest = max(room.longest, int(self.lengths[0]))
        if room.segments and (room.segments + len(heads)) * longest > room.budget:
            return None
        room.longest, room.segments = longest, room.segments + len(heads)
        rest = np.delete(np.arange(len(self.lengths)), heads)
        first = room.first_fit(self.lengths[rest])
        if first < len(rest):
            rest = rest[first : first + room.take(int(self.lengths[rest[first]]), len(rest) - first)]
            heads = np.concatenate([heads, rest])
        self.owners = None
        self.elements -= self.prefix_elements
        return self.remove(heads)

    def remove(self, chosen: Array) -> Array:
        """Takes some segments out, by their order in `lengths`. Returns their places, ascending."""
        taken = np.sort(self.places[chosen])
        self.elements -= int(self.lengths[chosen].sum())
        self.places, self.lengths = np.delete(self.places, chosen), np.delete(self.lengths, chosen)
        return taken

    def clear(self) -> None:
        """Leaves nothing to take."""
        self.places, self.lengths, self.elements, self.owners = self.places[:0], self.lengths[:0], 0, None


def divide(request: Arrays, names: Names) -> Segments:
    """The segments of a request that has no `fault`."""
    lengths = request[names.lengths]
    if len(lengths) != 1:
        return Segments(None, max(array.size for array in request.values()))
    if not names.prefix_lengths:
        return Segments(lengths[0])
    return Segments(lengths[0], 0, request[names.prefix_lengths][0], request[names.prefix_shares][0])


def cut(request: Arrays, names: Names, budget: int) -> Iterator[Arrays]:
    """A request, [1, elements] each, as the parts that chunks of its own would take, the longest first.

    Of a request with prefixes all parts but the first lack what the model kept.
    """
    segments = divide(request, names)
    first = True
    while segments:
        taken = segments.take(Room(budget))
        assert taken is not None, "an empty chunk has room for any segment"
        yield select(request, taken, names, first=first)
        first = False


def fault(request: Arrays, names: Names) -> str | None:
    """Why a request cannot be cut; None if every segment has elements, and all of them as many as each other input.

    Computing it anyway could cost whatever its lengths claim: 32 segments of 512 elements, in a request of one element.
    """
    lengths = names.lengths
    if not request[lengths].size:
        return f"{lengths!r} has no segment"
    if request[lengths].min() < 1:
        return f"{lengths!r} has a segment without elements"
    totals = [sum(row.tolist()) for row in request[lengths]]  # in Python's integers: wild ones must not wrap around
    counted = lengths
    if names.prefix_lengths:
        if reason := prefix_fault(request, names):
            return reason
        counted = f"{lengths} and {names.prefix_lengths}"
        totals = [total + sum(row.tolist()) for total, row in zip(totals, request[names.prefix_lengths], strict=True)]
    for place, total in enumerate(totals):
        for name, array in request.items():
            elements = array[place].size if place < len(array) else 0
            if name not in names and elements != total:
                return f"{counted!r} adds up to {total}, but {name!r} has {elements} elements"
    return None


def prefix_fault(request: Arrays, names: Names) -> str | None:
    """Why a request's prefixes are wrong; None if each has segments, and each segment its prefix."""
    lengths, shares = request[names.prefix_lengths], request[names.prefix_shares]
    if lengths.shape != shares.shape or len(lengths) != len(request[names.lengths]):
        return f"{names.prefix_lengths!r} has the shape {lengths.shape}, but {names.prefix_shares!r} {shares.shape}"
    if not lengths.size or lengths.min() < 0 or shares.min() < 1:
        return f"{names.prefix_lengths!r} has a prefix of less than no element, or one without a segment"
    for row, segments in zip(shares, request[names.lengths], strict=True):
        total = sum(row.tolist())
        if total != segments.size:
            return f"{names.prefix_shares!r} adds up to {total}, but {names.lengths!r} has {segments.size} elements"
    return None


def select(request: Arrays, segments: Array, names: Names, *, first: bool = True, kept: Array | None = None) -> Arrays:
    """Some segments of a request as a request: every input [1, elements].

    Args:
        request: with one row.
        segments: their places, ascending.
        names: how the request is divided.
        first: whether the prefixes go with them.
        kept: what the model kept of all of the request's prefixes; for a part that is not the first.
    """
    counts = request[names.lengths].reshape(-1)
    if len(segments) == len(counts):
        return request
    ends = np.cumsum(counts)
    divided = {names.lengths: counts[segments]}
    slices: list[tuple[int, int]] = []
    if names.prefix_lengths:
        prefixes, shares = (request[name].reshape(-1) for name in (names.prefix_lengths, names.prefix_shares))
        owners = np.repeat(np.arange(len(shares)), shares)
        ends = ends + np.cumsum(prefixes)[owners]
        used, shares = np.unique(owners[segments], return_counts=True)
        divided |= {
            names.prefix_lengths: prefixes[used],
            names.prefix_shares: shares.astype(request[names.prefix_shares].dtype),
        }
        if first:
            heads = np.searchsorted(owners, used)  # the segment behind each prefix
            stops = ends[heads] - counts[heads]
            slices += zip(stops - prefixes[used], stops, strict=True)
    slices += zip(ends[segments] - counts[segments], ends[segments], strict=True)
    slices.sort()
    part = {}
    for name, array in request.items():
        chosen = divided.get(name)
        if chosen is None:
            chosen = np.concatenate([array.reshape(-1)[start:stop] for start, stop in slices])
        part[name] = chosen[np.newaxis]
    if kept is not None:
        part[KEPT] = kept if len(used) == kept.shape[1] else kept[:, used]
    return part


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
