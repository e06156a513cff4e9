"""The segments of a request: which of them a chunk takes, and how its answer is put together again.

A request's inputs are segments laid end to end (a click model's are pairs of texts), and one input, its lengths, says
how many elements each segment has. A chunk costs as much attention as if each of its segments were as long as its
longest, and a chunk that fits the processor's cache is computed faster. So a chunk takes segments of similar length, as
many as `segments x longest` allows within a budget. What a request brings to a chunk is a small request of its own:
whatever the model checks or counts for each request, it checks and counts for each such part.

What this module does not know: Triton, ONNX Runtime, time, what the elements are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = dict[str, Array]


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
    """

    def __init__(self, lengths: Array | None, size: int = 0) -> None:
        self.whole = lengths is None
        counts = np.array([size]) if lengths is None else lengths.astype(np.int64)  # an unsigned one has no minus
        self.places = np.argsort(-counts, kind="stable")
        self.lengths = counts[self.places]
        self.elements = int(counts.sum())

    def __bool__(self) -> bool:
        return bool(self.elements)

    def take(self, room: Room) -> Array | None:
        """The places of segments that a chunk takes, ascending and the longest that fit; None if none fits."""
        first = room.first_fit(self.lengths)
        if first == len(self.lengths) or (self.whole and room.segments):
            return None
        last = first + room.take(int(self.lengths[first]), len(self.lengths) - first)
        if self.whole:
            room.close()
        taken = np.sort(self.places[first:last])
        self.elements -= int(self.lengths[first:last].sum())
        self.places = np.delete(self.places, slice(first, last))
        self.lengths = np.delete(self.lengths, slice(first, last))
        return taken

    def clear(self) -> None:
        """Leaves nothing to take."""
        self.places, self.lengths, self.elements = self.places[:0], self.lengths[:0], 0


def cut(request: Arrays, lengths: str, budget: int) -> Iterator[Arrays]:
    """A request, [1, elements] each, as the parts that chunks of its own would take, the longest first."""
    segments = Segments(request[lengths].reshape(-1))
    while segments:
        taken = segments.take(Room(budget))
        assert taken is not None, "an empty chunk has room for any segment"
        yield select(request, taken, lengths)


def fault(request: Arrays, lengths: str) -> str | None:
    """Why a request cannot be cut; None if every segment has elements, and all of them as many as each other input.

    Computing it anyway could cost whatever its lengths claim: 32 segments of 512 elements, in a request of one element.
    """
    if not request[lengths].size:
        return f"{lengths!r} has no segment"
    if request[lengths].min() < 1:
        return f"{lengths!r} has a segment without elements"
    for place, row in enumerate(request[lengths]):
        total = sum(row.tolist())  # in Python's integers: wild ones must not wrap around to the right sum
        for name, array in request.items():
            elements = array[place].size if place < len(array) else 0
            if name != lengths and elements != total:
                return f"{lengths!r} adds up to {total}, but {name!r} has {elements} elements"
    return None


def select(request: Arrays, segments: Array, lengths: str) -> Arrays:
    """Some segments of a request as a request: every input [1, elements]. `segments` are places, ascending."""
    counts = request[lengths].reshape(-1)
    if len(segments) == len(counts):
        return request
    ends = np.cumsum(counts)
    part = {}
    for name, array in request.items():
        flat = array.reshape(-1)
        if name == lengths:
            chosen = flat[segments]
        else:
            chosen = np.concatenate([flat[ends[one] - counts[one] : ends[one]] for one in segments])
        part[name] = chosen[np.newaxis]
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
