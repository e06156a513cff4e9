"""Segments that share a prefix: it is computed once for a request, and every segment is answered with its own."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from release.names import KEPT, KEPT_PREFIXES
from serving.backends.packed_cpu.segments import (
    Array,
    Arrays,
    Names,
    Room,
    divide,
    fault,
    join,
    select,
    used_prefixes,
)
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
Groups = list[tuple[int, list[int]]]
groups = st.lists(
    st.tuples(st.integers(0, 30), st.lists(st.integers(1, 40), min_size=1, max_size=9)), min_size=1, max_size=12
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
    earlier = request.get(KEPT_PREFIXES, np.zeros(request["prefix_lengths"].size, int))
    rows, sums, place, segment = [], [], 0, 0
    shares = zip(request["prefix_lengths"][0], request["prefix_shares"][0], earlier, strict=True)
    for length, share, number in shares:
        if number:
            assert kept is not None
            assert kept.shape[3] >= length
            sums.append(int(kept[0, number - 1, 0, 0, 0]))
        else:
            sums.append(int(elements[place : place + length].sum()))
            place += length
        for own in request["lengths"][0, segment : segment + share]:
            rows.append([sums[-1], int(elements[place : place + own].sum())])
            place += own
        segment += share
    assert place == len(elements)
    longest = max(1, int(request["prefix_lengths"].max()))
    memory = np.broadcast_to(np.array(sums).reshape(1, -1, 1, 1, 1), (1, len(sums), 1, longest, 1))
    return {"y": np.array([rows]), KEPT: memory}, place


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


def chunks(own: Groups, budget: int) -> tuple[list[tuple[Array, Arrays]], int, list[tuple[int, int]]]:
    """A request in chunks of its own: their places and outputs, the elements computed, and each chunk's two costs."""
    request = make(own)
    assert fault(request, NAMES) is None
    segments, parts, computed, costs = divide(request, NAMES), [], 0, []
    kept: dict[int, Array] = {}
    while segments:
        room, before = Room(budget), segments.elements
        taken = segments.take(room)
        assert taken is not None
        part = select(request, taken, NAMES, kept)
        output, elements = compute_one(part)
        assert elements == before - segments.elements == part["x"].size
        assert parts or elements <= divide(request, NAMES).first_chunk(budget)
        used = used_prefixes(request, taken, NAMES)
        kept |= {prefix: output[KEPT][:, [used.index(prefix)]] for prefix in segments.waiting(taken.begun)}
        segments.computed(taken.begun)
        parts.append((taken.places, {"y": output["y"]}))
        computed += elements
        begun = [own[prefix][0] for prefix in taken.begun]
        costs.append((part["lengths"].size * int(part["lengths"].max()), len(begun) * max(begun, default=0)))
        singles = part["lengths"].size, len(begun)
        assert costs[-1][0] <= budget or singles[0] == 1
        assert costs[-1][1] <= budget or singles[1] == 1
    return parts, computed, costs


@given(groups, st.integers(1, 200))
def test_parts_put_together_are_the_whole_nothing_is_computed_twice_and_budgets_hold(own: Groups, budget: int) -> None:
    request = make(own)
    expected, size = compute_one(request)
    segments = divide(request, NAMES)
    assert segments.longest() == max(prefix + max(lengths) for prefix, lengths in own)
    parts, computed, _ = chunks(own, budget)
    assert computed == size
    found = join([places for places, _ in parts], [output for _, output in parts])
    assert np.array_equal(found["y"], expected["y"])


@pytest.mark.parametrize(
    "own",
    [
        [(1, [510]), *[(1, [2])] * 31],  # one long candidate among users of one word
        [(509, [2]), *[(1, [2])] * 31],  # one long user text among short ones
        [(20, [60])] * 32,
    ],
    ids=["a long segment", "a long prefix", "all alike"],
)
def test_a_request_of_many_prefixes_is_many_chunks(own: Groups) -> None:
    _, _, costs = chunks(own, 256)
    assert max(first for first, _ in costs) <= 510
    assert max(second for _, second in costs) <= 509
    assert len(costs) > 1


def test_requests_of_many_prefixes_share_a_chunk_within_its_budgets() -> None:
    waiting = [divide(make([(509, [2]), *[(1, [2])] * 31]), NAMES) for _ in range(4)]
    while any(waiting):
        room, begun = Room(256), []
        for segments in waiting:
            taken = segments.take(room) if segments else None
            if taken is not None:
                begun += [int(segments.prefixes[prefix]) for prefix in taken.begun]
                segments.computed(taken.begun)
        assert room.segments * room.longest <= 256
        assert len(begun) * max(begun, default=0) <= 256 or len(begun) == 1


def test_segments_without_a_prefix_wait_for_nothing() -> None:
    segments = divide(make([(0, [40] * 20)]), NAMES)
    taken = segments.take(Room(80))
    assert taken is not None
    assert taken.begun == ()
    assert segments.can_be_taken()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint64, np.int64])
def test_any_integers_are_divided_alike(dtype: type) -> None:
    own = [(5, [3, 4, 9]), (2, [7])]
    typed = {name: array.astype(dtype) if name in NAMES else array for name, array in make(own).items()}
    segments = divide(typed, NAMES)
    taken = segments.take(Room(10))
    assert taken is not None
    part = select(typed, taken, NAMES, {})
    assert {part[name].dtype for name in NAMES} == {np.dtype(dtype)}


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


def test_what_is_given_up_while_its_prefix_is_computed_is_forgotten_and_a_bad_one_harms_no_other() -> None:
    begun, go_on, compute = threading.Semaphore(0), threading.Semaphore(0), Compute()

    def held(inputs: list[Arrays], wanted: list[list[str]]) -> list[Arrays | str]:
        begun.release()
        assert go_on.acquire(timeout=30)
        return compute(inputs, wanted)

    service, answers, figures = serve(held)
    given_up, bad, good = (Asks(make([(60, [40] * 5)], first)) for first in (0, 1000, 2000))
    bad.inputs["x"][0, 3] = BAD  # in its prefix
    for caller in (given_up, bad, good):
        service.submit(caller, caller.inputs, ["y"], 0)
    assert begun.acquire(timeout=30)
    given_up.gone = True
    go_on.release(100)
    service.close()
    assert [outcome for outcome, _ in answers.refused[given_up]] == ["cancelled"]
    assert [outcome for outcome, _ in answers.refused[bad]] == ["malformed"]
    assert np.array_equal(answers.sent[good][0]["y"], compute_one(good.inputs)[0]["y"])
    assert sorted(figures.outcomes) == ["answered", "cancelled", "malformed"]
    assert not service.schedule.parked


def test_a_config_that_names_one_of_the_two_inputs_is_refused() -> None:
    parameters = {name: value for name, value in PREFIXED["parameters"].items() if name != "prefix_shares"}
    with pytest.raises(UnsupportedError, match="prefix_shares"):
        Settings.of(PREFIXED | {"parameters": parameters})
