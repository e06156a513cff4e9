"""Segments that share a prefix: it is computed once for a request, and every segment is answered with its own."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.backends.packed_cpu.segments import KEPT, Arrays, Names, Room, divide, fault, join, select
from serving.backends.packed_cpu.service import Service
from serving.backends.packed_cpu.settings import Settings, UnsupportedError
from tests.serving.packed_cpu.test_service import BAD, CONFIG, Answers, Figures
from tests.waiting import eventually

NAMES = Names("lengths", "prefix_lengths", "prefix_shares")
PREFIXED = CONFIG | {
    "input": [
        *CONFIG["input"],
        *({"name": name, "data_type": "TYPE_INT32", "dims": ["-1"], "allow_ragged_batch": True} for name in NAMES[1:]),
    ],
    "parameters": CONFIG["parameters"] | {name: {"string_value": name} for name in NAMES[1:]},
}
# Each prefix: its elements, and the lengths of its segments.
groups = st.lists(
    st.tuples(st.integers(0, 30), st.lists(st.integers(1, 40), min_size=1, max_size=9)), min_size=1, max_size=4
)


def make(given_groups: list[tuple[int, list[int]]], first: int = 0) -> Arrays:
    """A request whose elements are the numbers from `first` up."""
    lengths = [length for _, own in given_groups for length in own]
    size = sum(lengths) + sum(prefix for prefix, _ in given_groups)
    columns = {
        "x": np.arange(first, first + size),
        "lengths": np.array(lengths, np.int32),
        "prefix_lengths": np.array([prefix for prefix, _ in given_groups], np.int32),
        "prefix_shares": np.array([len(own) for _, own in given_groups], np.int32),
    }
    return {name: column[np.newaxis] for name, column in columns.items()}


def compute_one(request: Arrays) -> tuple[Arrays, int]:
    """What each segment is answered with: the sums of its prefix and of itself; and how many elements were there."""
    elements, kept = request["x"][0], request.get(KEPT)
    rows, sums, place, segment = [], [], 0, 0
    for prefix, (length, share) in enumerate(
        zip(request["prefix_lengths"][0], request["prefix_shares"][0], strict=True)
    ):
        if kept is None:
            sums.append(int(elements[place : place + length].sum()))
            place += length
        else:
            sums.append(int(kept[0, prefix, 0, 0, 0]))
        for own in request["lengths"][0, segment : segment + share]:
            rows.append([sums[-1], int(elements[place : place + own].sum())])
            place += own
        segment += share
    assert place == len(elements)
    return {"y": np.array([rows]), KEPT: np.array(sums).reshape(1, -1, 1, 1, 1)}, place


class Compute:
    """Counts elements, too."""

    def __init__(self) -> None:
        self.elements = 0
        self.lock = threading.Lock()

    def __call__(self, inputs: list[Arrays], wanted: list[list[str]]) -> list[Arrays | str]:
        found: list[Arrays | str] = []
        for request, names in zip(inputs, wanted, strict=True):
            output, elements = compute_one(request)
            with self.lock:
                self.elements += elements
            bad = BAD in request["x"]
            found.append("it has a bad element" if bad else {name: output[name] for name in names})
        return found


def serve(compute: Any) -> tuple[Service, Answers, Figures]:
    answers, figures = Answers(), Figures()
    return Service(Settings.of(PREFIXED), compute, answers, figures, None), answers, figures


class Asks:
    """A caller."""

    def __init__(self, inputs: Arrays) -> None:
        self.inputs, self.gone = inputs, False


@given(groups, st.integers(1, 200))
def test_parts_put_together_are_the_whole_and_prefixes_go_with_the_first(
    own: list[tuple[int, list[int]]], budget: int
) -> None:
    request = make(own)
    assert fault(request, NAMES) is None
    expected, size = compute_one(request)
    segments, parts, computed = divide(request, NAMES), [], 0
    kept = None
    assert segments.longest() == max(prefix + max(lengths) for prefix, lengths in own)
    while segments:
        before = segments.elements
        places = segments.take(Room(budget))
        assert places is not None
        part = select(request, places, NAMES, first=kept is None, kept=kept)
        output, elements = compute_one(part)
        assert elements == before - segments.elements == part["x"].size
        kept = output[KEPT] if kept is None else kept
        parts.append((places, {"y": output["y"]}))
        computed += elements
    assert computed == size, "nothing is computed twice"
    found = join([places for places, _ in parts], [output for _, output in parts])
    assert np.array_equal(found["y"], expected["y"])


@given(groups, st.integers(1, 60), st.integers(1, 200))
def test_a_first_part_joins_a_chunk_only_if_it_fits(own: list[tuple[int, list[int]]], taken: int, budget: int) -> None:
    room = Room(budget)
    room.take(taken, 1)
    segments = divide(make(own), NAMES)
    before = segments.elements
    places = segments.take(room)
    if places is None:
        assert segments.elements == before
    else:
        assert room.segments == 1 + len(places)
        assert room.segments * room.longest <= budget


def test_every_request_gets_its_own_answer_and_no_prefix_is_computed_twice() -> None:
    chance, compute, first, total = random.Random(0), Compute(), 0, 0
    service, answers, _ = serve(compute)
    callers = []
    for _ in range(3000):
        own = [
            (chance.choice([0, 1, 5, 60]), [chance.randint(1, 40) for _ in range(chance.choice([1, 3, 20]))])
            for _ in range(chance.choice([1, 1, 3]))
        ]
        caller = Asks(make(own, first))
        first += caller.inputs["x"].size
        total += caller.inputs["x"].size
        callers.append(caller)
        service.submit(caller, caller.inputs, ["y"], 0)
    service.close()
    for caller in callers:
        (answer,) = answers.sent[caller]
        assert set(answer) == {"y"}, "what is kept is no answer"
        assert np.array_equal(answer["y"], compute_one(caller.inputs)[0]["y"])
    assert compute.elements == total
    assert not service.schedule.parked


def test_a_request_that_ends_while_its_prefix_is_computed_is_forgotten() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def held(inputs: list[Arrays], wanted: list[list[str]]) -> list[Arrays | str]:
        begun.set()
        assert go_on.wait(30)
        return Compute()(inputs, wanted)

    service, answers, _ = serve(held)
    caller = Asks(make([(60, [40] * 20)]))
    service.submit(caller, caller.inputs, ["y"], 0.2)
    assert begun.wait(30)
    assert service.schedule.load()[:2] == (1, 40 * 19), "what waits for its prefix is waiting work"
    eventually(lambda: answers.of(caller) == 1)
    assert answers.refused[caller][0][0] == "expired"
    go_on.set()
    service.close()
    assert service.schedule.load()[:2] == (0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prefix_lengths": [5, 0]}, "'prefix_lengths' has the shape (1, 2), but 'prefix_shares' (1, 1)"),
        ({"prefix_lengths": [], "prefix_shares": []}, "'prefix_lengths' has a prefix of less than no element"),
        ({"prefix_lengths": [-1]}, "'prefix_lengths' has a prefix of less than no element"),
        ({"prefix_shares": [0]}, "or one without a segment"),
        ({"prefix_shares": [2**31 - 1]}, "'prefix_shares' adds up to 2147483647, but 'lengths' has 2 elements"),
        (
            {"prefix_lengths": [2**31 - 1]},
            "'lengths and prefix_lengths' adds up to 2147483654, but 'x' has 12 elements",
        ),
        ({"lengths": [3, 5]}, "'lengths and prefix_lengths' adds up to 13, but 'x' has 12 elements"),
    ],
)
def test_a_fault_is_named(change: dict[str, list[int]], message: str) -> None:
    request = make([(5, [3, 4])]) | {name: np.array([values], np.int32) for name, values in change.items()}
    assert message in str(fault(request, NAMES))


def test_a_config_that_names_one_of_the_two_inputs_is_refused() -> None:
    parameters = {name: value for name, value in PREFIXED["parameters"].items() if name != "prefix_shares"}
    with pytest.raises(UnsupportedError, match="prefix_shares"):
        Settings.of(PREFIXED | {"parameters": parameters})
