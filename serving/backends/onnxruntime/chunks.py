"""Cuts requests whose inputs are segments laid end to end into chunks of segments of similar length.

A chunk costs as much as if every segment were as long as its longest (attention is padded to it), and a chunk that fits
the processor's cache is computed faster. So the segments are sorted by length and cut where `segments x longest` would
exceed a budget. A chunk holds *parts* of requests, each a small request of its own: whatever the model checks or counts
for each request, it checks and counts for each part.

What this module does not know: Triton, ONNX Runtime, what the elements are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class Part:
    """Some segments of one request.

    Attributes:
        request: the request's place.
        segments: int64, places of the segments within the request, ascending; None for a request left whole.
        inputs: the part as a request, every input [1, elements].
    """

    request: int
    segments: Array | None
    inputs: Arrays


def cut(requests: Sequence[Arrays], lengths: str, budget: int) -> Iterator[list[Part]]:
    """Chunks of all requests; those of small requests first, so that nobody waits long for a much larger one.

    A request of several rows stays whole, in a chunk of its own: only the model knows which row a segment belongs to.

    Args:
        requests: inputs by name, [1, elements] each, without a `fault`.
        lengths: the input that says how many elements of the others each segment has.
        budget: `segments x longest` of a chunk at most; a longer segment has a chunk of its own.
    """
    sizes = [max(array.size for array in request.values()) for request in requests]
    group: list[int] = []
    total = 0
    for place in sorted(range(len(requests)), key=sizes.__getitem__):
        if len(requests[place][lengths]) != 1:
            yield [Part(place, None, requests[place])]
            continue
        if group and total + sizes[place] > budget:
            yield from cut_group(requests, group, lengths, budget)
            group, total = [], 0
        group.append(place)
        total += sizes[place]
    if group:
        yield from cut_group(requests, group, lengths, budget)


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


def cut_group(requests: Sequence[Arrays], group: Sequence[int], lengths: str, budget: int) -> Iterator[list[Part]]:
    """Chunks of the segments of some requests, the longest first, so that the last chunk is a small one."""
    counts = [requests[place][lengths].reshape(-1).astype(np.int64) for place in group]  # an unsigned one has no minus
    segment_lengths = np.concatenate(counts)
    owners = np.repeat(np.arange(len(group)), [len(each) for each in counts])
    own_places = np.concatenate([np.arange(len(each)) for each in counts])
    order = np.argsort(-segment_lengths, kind="stable")
    first = 0
    while first < len(order):
        fitting = max(1, budget // int(segment_lengths[order[first]]))
        last = min(first + fitting, len(order))
        chosen = np.sort(order[first:last])  # back in the requests' order, each request's segments side by side
        yield [
            select(requests[group[owner]], group[owner], own_places[chosen[owners[chosen] == owner]], lengths)
            for owner in np.unique(owners[chosen])
        ]
        first = last


def select(request: Arrays, place: int, segments: Array, lengths: str) -> Part:
    """Some segments of a request as a part."""
    counts = request[lengths].reshape(-1)
    if len(segments) == len(counts):
        return Part(place, segments, request)
    ends = np.cumsum(counts)
    inputs = {}
    for name, array in request.items():
        flat = array.reshape(-1)
        if name == lengths:
            chosen = flat[segments]
        else:
            chosen = np.concatenate([flat[ends[one] - counts[one] : ends[one]] for one in segments])
        inputs[name] = chosen[np.newaxis]
    return Part(place, segments, inputs)


def join(parts: Sequence[Part], outputs: Sequence[Arrays]) -> Arrays:
    """One request's outputs, [1, segments, ...] each, put together from those of its parts."""
    if parts[0].segments is None or len(parts) == 1:
        return outputs[0]
    places = np.concatenate([part.segments for part in parts if part.segments is not None])
    joined = {}
    for name in outputs[0]:
        rows = np.concatenate([output[name] for output in outputs], axis=1)
        joined[name] = np.empty_like(rows)
        joined[name][:, places] = rows
    return joined
