"""Segments of requests in chunks: what is computed part by part is what would be computed whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.backends.packed_cpu.segments import Array, Arrays, Names, Room, Segments, Taken, cut, fault, join, select

NAMES = Names("lengths")
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


def chunks(lengths: list[list[int]], budget: int) -> list[list[tuple[int, Array]]]:
    """Takes all requests into chunks, the first first: requests' numbers and the places of their segments."""
    waiting = [(number, Segments(np.array(each))) for number, each in enumerate(lengths)]
    found = []
    while waiting:
        room, chunk = Room(budget), []
        for number, segments in waiting:
            elements = segments.elements
            taken = segments.take(room)
            if taken is None:
                assert segments.elements == elements
                continue
            places = taken.places
            assert elements - segments.elements == sum(lengths[number][place] for place in places)
            chunk.append((number, places))
        assert chunk, "the first always gets something"
        assert chunk[0][0] == waiting[0][0]
        found.append(chunk)
        waiting = [(number, segments) for number, segments in waiting if segments]
    return found


@given(requests, st.integers(1, 200))
def test_every_segment_is_taken_once_and_no_chunk_is_over_its_budget(lengths: list[list[int]], budget: int) -> None:
    taken: dict[int, list[int]] = {number: [] for number in range(len(lengths))}
    for chunk in chunks(lengths, budget):
        own = [lengths[number][place] for number, places in chunk for place in places]
        assert len(own) == 1 or len(own) * max(own) <= budget
        for number, places in chunk:
            assert sorted(places) == places.tolist()
            taken[number] += places.tolist()
    assert {number: sorted(places) for number, places in taken.items()} == {
        number: list(range(len(each))) for number, each in enumerate(lengths)
    }


@given(requests, st.integers(1, 200))
def test_parts_put_together_are_the_whole(lengths: list[list[int]], budget: int) -> None:
    whole = [make(each, seed) for seed, each in enumerate(lengths)]
    found: dict[int, list[tuple[Array, Arrays]]] = {number: [] for number in range(len(whole))}
    for chunk in chunks(lengths, budget):
        for number, places in chunk:
            found[number].append((places, compute(select(whole[number], Taken(places), NAMES, {}))))
    for number, request in enumerate(whole):
        parts = found[number]
        joined = join([places for places, _ in parts], [output for _, output in parts])
        assert np.array_equal(joined["logits"], compute(request)["logits"])


@given(requests, st.integers(1, 200))
def test_what_is_left_is_counted_and_can_be_cleared(lengths: list[list[int]], budget: int) -> None:
    segments = Segments(np.array(lengths[0]))
    segments.take(Room(budget))
    assert segments.elements == segments.lengths.sum()
    segments.clear()
    assert not segments
    assert segments.elements == 0


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 200))
def test_a_request_cut_by_itself_is_whole_again(lengths: list[int], budget: int) -> None:
    request = make(lengths, 0)
    parts = list(cut(request, NAMES, budget))
    assert sorted(np.concatenate([part["lengths"][0] for part in parts])) == sorted(lengths)
    assert sum(part["ids"].size for part in parts) == sum(lengths)
    longest = [int(part["lengths"].max()) for part in parts]
    assert longest == sorted(longest, reverse=True), "so the last one is a small one"


def test_a_chunk_is_filled_up_with_the_longest_that_still_fits() -> None:
    room = Room(100)
    assert Segments(np.array([20, 20])).take(room) is not None
    other = Segments(np.array([90, 30, 33, 2]))
    assert other.take(room).places.tolist() == [2]  # 3 x 33 fit, 4 x 33 do not
    assert room.is_full()
    assert Segments(np.array([1])).take(room) is None


wild = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5)


@given(wild | st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 30), st.integers(0, 30))
def test_what_does_not_add_up_has_a_fault(lengths: list[int], ids: int, types: int) -> None:
    request: Arrays = {
        "ids": np.zeros((1, ids), np.int32),
        "types": np.zeros((1, types), np.int32),
        "lengths": np.array([lengths], np.int32),
    }
    sound = bool(lengths) and min(lengths) > 0 and sum(lengths) == ids == types
    assert (fault(request, NAMES) is None) == sound


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_what_adds_up_has_none(lengths: list[int]) -> None:
    assert fault(make(lengths, 0), NAMES) is None


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
    assert fault(request, NAMES) == message


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_sums_do_not_wrap_around_in_64_bits(dtype: Any) -> None:
    request: Arrays = {"lengths": np.array([[2**62] * 4 + [5]], dtype), "ids": np.zeros((1, 5), np.int32)}
    assert "adds up to 18446744073709551621, but 'ids' has 5" in str(fault(request, NAMES))


def test_a_request_has_one_row() -> None:
    request = {"lengths": np.array([[2, 1], [1, 2]], np.int32), "ids": np.zeros((2, 3), np.int32)}
    assert fault(request, NAMES) == "an input has the shape (2, 2), but a request has one row: [1, elements]"


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.sampled_from([np.int64, np.uint8, np.uint64]))
def test_lengths_of_any_integer_type_are_cut_alike(lengths: list[int], dtype: Any) -> None:
    request = make(lengths, 0)
    typed = request | {"lengths": request["lengths"].astype(dtype)}
    for part, same in zip(cut(request, NAMES, 60), cut(typed, NAMES, 60), strict=True):
        assert all(np.array_equal(part[name], same[name]) for name in part)
        assert same["lengths"].dtype == dtype
