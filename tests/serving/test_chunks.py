"""Chunks of merged requests: what is computed part by part is what would be computed whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.backends.onnxruntime.chunks import Arrays, Part, cut, fault, join

requests = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=12), min_size=1, max_size=6)


def make(lengths: list[int], seed: int) -> Arrays:
    values = np.random.default_rng(seed).integers(0, 1000, (2, 1, sum(lengths)), dtype=np.int32)
    return {"ids": values[0], "types": values[1], "lengths": np.array([lengths], np.int32)}


def compute(request: Arrays) -> Arrays:
    """Per segment, something that depends on every element and its place: [1, segments, 2]."""
    ends = np.cumsum(request["lengths"][0])
    starts = ends - request["lengths"][0]
    rows = [
        [np.sum(request[name][0, start:end] * np.arange(1, end - start + 1)) for name in ("ids", "types")]
        for start, end in zip(starts, ends, strict=True)
    ]
    return {"logits": np.array([rows], np.float32)}


def answer(chunks: list[list[Part]], place: int) -> Arrays:
    parts = [part for chunk in chunks for part in chunk if part.request == place]
    return join(parts, [compute(part.inputs) for part in parts])


@given(requests, st.integers(1, 200))
def test_parts_put_together_are_the_whole(lengths: list[list[int]], budget: int) -> None:
    whole = [make(each, seed) for seed, each in enumerate(lengths)]
    chunks = list(cut(whole, "lengths", budget))
    for place, request in enumerate(whole):
        assert np.array_equal(answer(chunks, place)["logits"], compute(request)["logits"])
    for chunk in chunks:
        segments = np.concatenate([part.inputs["lengths"][0] for part in chunk])
        assert len(segments) == 1 or len(segments) * segments.max() <= budget


@given(requests, st.integers(1, 200))
def test_a_request_is_one_part_of_a_chunk_at_most_and_every_segment_is_there_once(
    lengths: list[list[int]], budget: int
) -> None:
    whole = [make(each, seed) for seed, each in enumerate(lengths)]
    found: dict[int, list[int]] = {place: [] for place in range(len(whole))}
    for chunk in cut(whole, "lengths", budget):
        assert len({part.request for part in chunk}) == len(chunk)
        for part in chunk:
            assert part.segments is not None
            assert np.array_equal(part.inputs["lengths"][0], whole[part.request]["lengths"][0][part.segments])
            found[part.request] += part.segments.tolist()
    assert {place: sorted(segments) for place, segments in found.items()} == {
        place: list(range(len(each))) for place, each in enumerate(lengths)
    }


@given(requests, st.integers(1, 200))
def test_nobody_waits_for_a_larger_request_but_in_its_own_chunks(lengths: list[list[int]], budget: int) -> None:
    whole = [make(each, seed) for seed, each in enumerate(lengths)]
    chunks = list(cut(whole, "lengths", budget))
    last = {part.request: place for place, chunk in enumerate(chunks) for part in chunk}
    first = {part.request: place for place, chunk in reversed(list(enumerate(chunks))) for part in chunk}
    sizes = [sum(each) for each in lengths]
    for small, end in last.items():
        for large, begin in first.items():
            if sizes[small] < sizes[large] and sizes[small] + sizes[large] > budget:
                assert end < begin


wild = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5)


@given(wild | st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 30), st.integers(0, 30))
def test_what_does_not_add_up_has_a_fault(lengths: list[int], ids: int, types: int) -> None:
    request: Arrays = {
        "ids": np.zeros((1, ids), np.int32),
        "types": np.zeros((1, types), np.int32),
        "lengths": np.array([lengths], np.int32),
    }
    sound = bool(lengths) and min(lengths) > 0 and sum(lengths) == ids == types
    assert (fault(request, "lengths") is None) == sound


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_what_adds_up_has_none(lengths: list[int]) -> None:
    assert fault(make(lengths, 0), "lengths") is None


@pytest.mark.parametrize(
    ("lengths", "ids", "message"),
    [
        ([], 0, "'lengths' has no segment"),
        ([3, 0], 3, "'lengths' has a segment without elements"),
        ([4, -1], 3, "'lengths' has a segment without elements"),
        ([512] * 32, 1, "'lengths' adds up to 16384, but 'ids' has 1 elements"),
        ([2**31 - 1, 2**31 - 1, 5], 3, "'lengths' adds up to 4294967299, but 'ids' has 3 elements"),  # 3, in 32 bits
    ],
)
def test_a_fault_is_named(lengths: list[int], ids: int, message: str) -> None:
    request: Arrays = {"lengths": np.array([lengths], np.int32), "ids": np.zeros((1, ids), np.int32)}
    assert fault(request, "lengths") == message


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_sums_do_not_wrap_around_in_64_bits(dtype: Any) -> None:
    request: Arrays = {"lengths": np.array([[2**62] * 4 + [5]], dtype), "ids": np.zeros((1, 5), np.int32)}
    assert "adds up to 18446744073709551621, but 'ids' has 5" in str(fault(request, "lengths"))


def test_rows_that_add_up_only_together_have_a_fault() -> None:
    request = {"lengths": np.array([[3, 1], [1, 1]], np.int32), "ids": np.zeros((2, 3), np.int32)}
    assert fault(request, "lengths") == "'lengths' adds up to 4, but 'ids' has 3 elements"
    assert fault(request | {"lengths": np.array([[2, 1], [1, 2]], np.int32)}, "lengths") is None


@given(requests, st.sampled_from([np.int64, np.uint8, np.uint64]))
def test_lengths_of_any_integer_type_are_cut_alike(lengths: list[list[int]], dtype: Any) -> None:
    whole = [make(each, seed) for seed, each in enumerate(lengths)]
    typed = [request | {"lengths": request["lengths"].astype(dtype)} for request in whole]
    for chunk, other in zip(cut(whole, "lengths", 60), cut(typed, "lengths", 60), strict=True):
        for part, same in zip(chunk, other, strict=True):
            assert all(np.array_equal(part.inputs[name], same.inputs[name]) for name in part.inputs)
            assert same.inputs["lengths"].dtype == dtype


def test_a_request_of_two_rows_stays_whole() -> None:
    request = {name: array.reshape(2, -1) for name, array in make([3, 1, 2, 2], 0).items()}
    ((part,),) = cut([request], "lengths", 4)
    assert part.segments is None
    assert part.inputs is request
