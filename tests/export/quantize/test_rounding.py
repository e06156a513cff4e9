"""Weights rounded together: against a slow way to the same, on correlated inputs, and on inputs that show nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.quantize.rounding import BLOCK, DAMPING, round_to_nearest, round_together


def example(seed: int, outputs: int, inputs: int, rows: int, causes: int = 4) -> tuple[np.ndarray, ...]:
    """A weight, the steps of its outputs, and rows whose inputs follow a few common causes."""
    chance = np.random.default_rng(seed)
    weight = chance.normal(size=(outputs, inputs)).astype(np.float32)
    read = chance.normal(size=(rows, causes)) @ chance.normal(size=(causes, inputs))
    read += 0.2 * chance.normal(size=read.shape)
    return weight, np.abs(weight).max(axis=1) / 7, read.astype(np.float32)  # 15 steps, so that rounding matters


def change(steps: np.ndarray, weight: np.ndarray, scale: np.ndarray, rows: np.ndarray) -> float:
    return float((((steps * scale[:, None] - weight) @ rows.T) ** 2).mean())


@given(st.integers(0, 2**32), st.integers(16, 32), st.integers(24, 40), st.integers(60, 200))
def test_the_output_changes_less_than_by_rounding_to_the_nearest(seed, outputs, inputs, rows) -> None:
    weight, scale, read = example(seed, outputs, inputs, rows)
    together, nearest = round_together(weight, scale, read), round_to_nearest(weight, scale)
    assert change(together, weight, scale, read) < change(nearest, weight, scale, read)


@pytest.mark.parametrize("inputs", [5, BLOCK, BLOCK + 40])
def test_each_rounding_is_made_up_for_by_the_inputs_to_come(inputs: int) -> None:
    weight, scale, read = example(1, 4, inputs, 300)
    hessian = (read.T @ read).astype(float)
    hessian += DAMPING * np.diagonal(hessian).mean() * np.eye(inputs)
    left, expected = weight.astype(float), np.empty(weight.shape)
    for place in range(inputs):
        expected[:, place] = np.clip(np.rint(left[:, place] / scale), -127, 127)
        later = slice(place + 1, inputs)
        error = expected[:, place] * scale - left[:, place]
        if place + 1 < inputs:
            left[:, later] -= np.outer(error, np.linalg.solve(hessian[later, later], hessian[later, place]))
    found = round_together(weight, scale, read)
    # One weight between two steps may fall to the other side, and then moves those behind it.
    assert (found == expected).mean() > 0.99


def test_weights_beyond_the_steps_are_cut_and_keep_their_sign() -> None:
    weight, scale, _ = example(7, 6, 30, 1)
    found = round_together(weight, scale / 1e4, np.eye(30, dtype=np.float32))
    large = np.abs(weight) > scale[:, None] * 0.1
    assert np.array_equal(found[large], np.sign(weight[large]) * 127)


def test_inputs_that_do_not_go_together_are_rounded_to_the_nearest() -> None:
    weight, scale, _ = example(2, 6, 30, 1)
    apart = np.diag(np.arange(1, 31)).astype(np.float32)
    assert np.array_equal(round_together(weight, scale, apart), round_to_nearest(weight, scale))


def test_an_input_that_is_always_0_is_rounded_to_the_nearest_and_harms_no_other() -> None:
    weight, scale, read = example(3, 6, 30, 100)
    read[:, [4, 29]] = 0
    found = round_together(weight, scale, read)
    assert np.array_equal(found[:, [4, 29]], round_to_nearest(weight, scale)[:, [4, 29]])
    nearest = round_to_nearest(weight, scale)
    assert change(found, weight, scale, read) < change(nearest, weight, scale, read)
    assert np.array_equal(round_together(weight, scale, 0 * read), nearest)


@pytest.mark.parametrize("rows", [1, 2, 29])
def test_fewer_rows_than_inputs_are_enough(rows: int) -> None:
    weight, scale, read = example(4, 6, 30, rows)
    found = round_together(weight, scale, read)
    assert change(found, weight, scale, read) < change(round_to_nearest(weight, scale), weight, scale, read)


def test_inputs_that_are_equal_share_one_error() -> None:
    weight, scale, read = example(5, 6, 30, 100)
    equal = np.repeat(read[:, :1], 30, axis=1)
    found = round_together(weight, scale, equal)
    assert np.abs((found * scale[:, None] - weight).sum(axis=1)).max() < scale.max()  # not the 30 errors' sum


def test_whole_steps_are_kept_and_nothing_is_changed_in_place() -> None:
    weight, scale, read = example(6, 6, 30, 100)
    whole = (round_to_nearest(weight, scale) * scale[:, None]).astype(np.float32)
    before = whole.copy(), scale.copy(), read.copy()
    first = round_together(whole, scale, read)
    assert np.array_equal(first, round_to_nearest(whole, scale))
    assert all(np.array_equal(*pair) for pair in zip(before, (whole, scale, read), strict=True))
    assert np.array_equal(round_together(weight, scale, read), round_together(weight, scale, read))
