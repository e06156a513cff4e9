"""The proof itself: what it covers, and that it fails when it must."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.graph.packing import Feed, Outputs, pack
from export.verify.exact import MOST, ExactScores
from export.verify.parity import CELLS, LARGEST, ParityError, check_order, plan_batches, prove
from finetune.data.clicklog import ClickRow
from release.names import LOGITS

ROWS = [
    ClickRow(group=f"g{index // 4}", query="q", document=f"d{index}", clicks=0, impressions=1) for index in range(40)
]
PAIRS = [{"input_ids": [index, 1, 2][: 1 + index % 3], "token_type_ids": [0] * (1 + index % 3)} for index in range(40)]
REFERENCE = np.arange(40, dtype=np.float32)[:, None] / 10
EXACT: ExactScores = lambda places: REFERENCE[places].astype(np.float64)  # noqa: E731


def right_answer(feed: Feed) -> np.ndarray:
    starts = np.cumsum(feed["lengths"]) - feed["lengths"]
    return feed["input_ids"][starts].astype(np.float32)[:, None] / 10


def graph(answer: Callable[[Feed], np.ndarray]) -> Callable[[Feed], Outputs]:
    return lambda feed: {LOGITS: answer(feed)}


def test_a_right_graph_is_proved_on_every_pair() -> None:
    parity, logits = prove(graph(right_answer), ROWS, PAIRS, REFERENCE, 1e-4, 0, EXACT)
    assert parity.max_abs_diff == 0
    assert (parity.pairs, parity.groups_in_order) == (40, 10)
    assert parity.smallest_batch == 1 < parity.largest_batch
    assert np.array_equal(logits, REFERENCE)


def test_one_wrong_logit_is_named() -> None:
    def wrong(feed: Feed) -> np.ndarray:
        answer = right_answer(feed)
        return np.where(answer == np.float32(1.7), answer + np.float32(2e-3), answer)

    with pytest.raises(ParityError, match=r"pair 18 \(group 'g4'.*'d17'.*0\.002.*tolerance 0\.0001 \(1 of 40"):
        prove(graph(wrong), ROWS, PAIRS, REFERENCE, 1e-4, 0, EXACT)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_logit_that_is_no_number_fails(value: float) -> None:
    def broken(feed: Feed) -> np.ndarray:
        answer = right_answer(feed)
        answer[feed["input_ids"][np.cumsum(feed["lengths"]) - feed["lengths"]] == 5] = value
        return answer

    with pytest.raises(ParityError, match="pair 6 "):
        prove(graph(broken), ROWS, PAIRS, REFERENCE, 1e-4, 0, EXACT)


def test_an_answer_of_another_shape_fails() -> None:
    with pytest.raises(ParityError, match="shape"):
        prove(graph(lambda feed: right_answer(feed)[:-1]), ROWS, PAIRS, REFERENCE, 1e-4, 0, EXACT)


def changed(*places: tuple[int, float]) -> np.ndarray:
    """The reference with other logits in places."""
    logits = REFERENCE.copy()
    for place, logit in places:
        logits[place] = logit
    return logits


CLOSE = changed((1, REFERENCE[0, 0] + 2e-5))


def test_a_changed_order_fails_even_within_the_tolerance() -> None:
    swapped = CLOSE.copy()
    swapped[0] += 5e-5
    with pytest.raises(
        ParityError, match=r"order of group 'g0' changed: pair 2 .* the graph by 5e-05, .* not look like"
    ):
        check_order(ROWS, CLOSE, swapped, 0, lambda places: CLOSE[places].astype(np.float64))
    assert check_order(ROWS, CLOSE, CLOSE, 0, EXACT) == 10


def test_candidates_equal_up_to_rounding_have_no_order_to_keep() -> None:
    scores = changed((1, np.nextafter(REFERENCE[0, 0], np.float32(1))))
    assert check_order(ROWS, scores, REFERENCE, 0, EXACT) == 10


def test_an_order_that_float32_cannot_keep_is_not_the_graphs_fault() -> None:
    """The reference itself is off by as much: what it puts first is no better than what the graph does, nor counted."""
    swapped = CLOSE.copy()
    swapped[0] += 3e-5
    asked = []

    def exact(places: Sequence[int]) -> np.ndarray:
        asked.append(list(places))
        return (CLOSE[places].astype(np.float64) + swapped[places]) / 2

    assert check_order(ROWS, CLOSE, swapped, 0, exact) == 9
    (places,) = asked
    assert {0, 1} <= set(places)
    assert len(places) == MOST, "the pairs that differ most, too, and no more than take seconds"


def test_another_labels_error_excuses_no_order() -> None:
    """What ranks is the click beside the others: that the reference is off in all columns alike says nothing of it."""
    reference = np.hstack([0 * CLOSE, CLOSE])
    swapped = reference.copy()
    swapped[0, 1] += 5e-5
    truth = reference.astype(np.float64) + 1e-3
    with pytest.raises(ParityError, match="order of group 'g0' changed"):
        check_order(ROWS, reference, swapped, 1, lambda places: truth[places])


def test_the_order_is_that_of_the_probabilities() -> None:
    """Of two labels, the other one's logit counts as much."""
    reference = np.hstack([0 * CLOSE, CLOSE])
    swapped = reference.copy()
    swapped[0, 0] -= 5e-5
    with pytest.raises(ParityError, match="order of group 'g0' changed: pair 2 "):
        check_order(ROWS, reference, swapped, 1, lambda places: reference[places].astype(np.float64))
    assert check_order(ROWS, reference, reference + np.float32(5e-5), 1, EXACT) == 10, "all alike change none"


def test_a_reference_that_is_no_number_is_not_the_graphs_fault() -> None:
    with pytest.raises(ParityError, match=r"pair 4 .* Hugging Face nan; .*pairs are\)$"):
        prove(graph(right_answer), ROWS, PAIRS, changed((3, np.nan)), 1e-4, 0, EXACT)


def test_float64_is_asked_only_where_the_two_differ() -> None:
    def never(places: Sequence[int]) -> np.ndarray:
        raise AssertionError(places)

    prove(graph(right_answer), ROWS, PAIRS, REFERENCE, 1e-4, 0, never)


@given(st.lists(st.integers(1, 512), min_size=1, max_size=1500), st.none() | st.integers(1, 40))
def test_batches_cover_every_pair_once_within_the_memory_budget(lengths: list[int], users: int | None) -> None:
    batches = plan_batches(lengths, users and [[place % users] for place in range(len(lengths))])
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= LARGEST
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) ** 2 <= CELLS


def test_a_long_file_has_a_batch_of_several_hundred() -> None:
    sizes = {len(batch) for batch in plan_batches([60] * 900)}
    assert {1, 2, 5, 20, 64, LARGEST} <= sizes


def test_pairs_of_a_user_stand_side_by_side() -> None:
    users = [[place % 30] for place in range(900)]
    for batch in plan_batches([60] * 900, users):
        changes = sum(users[one] != users[two] for one, two in pairwise(batch))
        assert changes == len({users[index][0] for index in batch}) - 1


def test_pack_lays_the_requests_end_to_end() -> None:
    feed = pack([PAIRS[:2], PAIRS[2:3]])
    assert feed["input_ids"].tolist() == [0, 1, 1, 2, 1, 2]
    assert feed["lengths"].tolist() == [1, 2, 3]
    assert feed["token_counts"].tolist() == feed["type_counts"].tolist() == [3, 3]
    assert feed["pair_counts"].tolist() == [2, 1]
    assert all(array.dtype == np.int32 for array in feed.values())
