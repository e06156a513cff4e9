"""The closed forms over tied orders against scikit-learn's NDCG and against every order in turn."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import ndcg_score

from finetune.data.clicklog import ClickRow
from finetune.evaluation import metrics as module
from finetune.evaluation.metrics import ScoredLog
from finetune.evaluation.ranking import CUTOFF, ndcg, order_credit, reciprocal_rank

SIZES = st.tuples(st.integers(1, 4), st.integers(2, 25))


def draw(data: st.DataObject, shape: tuple[int, int], values: list[float]) -> NDArray[np.float64]:
    groups, candidates = shape
    group = st.lists(st.sampled_from(values), min_size=candidates, max_size=candidates)
    return np.array(data.draw(st.lists(group, min_size=groups, max_size=groups)))


@given(SIZES, st.data())
def test_ndcg_equals_scikit_learns_with_ties_and_beyond_the_cutoff(shape: tuple[int, int], data: st.DataObject) -> None:
    gains = draw(data, shape, [0.0, 0.125, 0.5, 1.0])
    gains[:, -1] = 0.25  # (one must be above 0)
    scores = draw(data, shape, [0.0, 0.1, 0.2, 0.3, 0.5, 1.0])
    expected = [ndcg_score([gain], [score], k=CUTOFF) for gain, score in zip(gains, scores, strict=True)]
    assert ndcg(gains, scores).tolist() == pytest.approx(expected)


@settings(max_examples=30)
@given(st.tuples(st.integers(1, 3), st.integers(2, 5)), st.data())
def test_a_reciprocal_rank_is_the_mean_over_all_orders_of_the_tied(shape: tuple[int, int], data: st.DataObject) -> None:
    clicked = draw(data, shape, [0.0, 1.0]) > 0
    clicked[:, 0] = True
    scores = draw(data, shape, [0.1, 0.2, 0.3])
    expected = []
    for click, score in zip(clicked, scores, strict=True):
        # A stable sort keeps the tied ones in the order of the permutation.
        orders = [sorted(order, key=lambda place: -score[place]) for order in permutations(range(shape[1]))]
        expected.append(np.mean([1 / (1 + [bool(click[place]) for place in order].index(True)) for order in orders]))
    assert reciprocal_rank(clicked, scores).tolist() == pytest.approx(expected)


def test_a_pair_is_credited_by_its_order() -> None:
    assert order_credit(np.array([[0.9, 0.1], [0.5, 0.5]])).tolist() == [[[0.5, 1], [0, 0.5]], [[0.5, 0.5], [0.5, 0.5]]]


@settings(max_examples=30)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.integers(0, 10_000), st.integers(1, 60))
def test_each_group_of_a_log_is_measured_as_if_it_were_alone(sizes: list[int], seed: int, cells: int) -> None:
    chance = np.random.default_rng(seed)
    names = [f"g{number}" for number, size in enumerate(sizes) for _ in range(size)]
    chance.shuffle(names)
    rows = [ClickRow(name, "q", "d", float(chance.integers(0, 40)), 40) for name in names]
    log = ScoredLog.of(rows, chance.random(len(rows)).round(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CELLS", cells)  # so that groups of one size are taken in parts, too
        found = log.ranking_sums
    for number, group in enumerate(log.groups):
        alone = ScoredLog.of([rows[index] for index in group], log.scores[group]).ranking_sums
        for name, sums in found.items():
            assert [part[number] for part in sums] == pytest.approx([part[0] for part in alone[name]]), name
