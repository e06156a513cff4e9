"""INT8: what is chosen for a layer, and that its error is the one it says."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from export.quantize.fit import ALPHAS, CLIPS, KEPT, choose_scales, fit
from export.quantize.linears import Linear
from export.quantize.smoothquant import NONE, make_params, measure, sizes
from tests.export.quantize.layers import SIGNED, layer, layers, output, see


@settings(deadline=None, max_examples=100)
@given(layers(), st.booleans())
def test_the_best_parameters_are_taken_and_their_error_is_true(some, signed: bool) -> None:
    linear, seen = some
    best = fit(linear, seen, signed=signed)
    expected = seen.rows @ linear.weight.T
    steps = seen.rows / (best.smooth.astype(float) * best.scale)
    assume(np.abs(steps % 1 - 0.5).min() > 1e-4)  # halfway between two steps float32 and float64 may round otherwise
    change = np.linalg.norm(output(best, seen.rows, signed=signed) - expected, axis=1) / sizes(expected)
    assert best.error == pytest.approx(np.sqrt((change**2).mean()), rel=0.02, abs=1e-5)
    for alpha, clip in product(ALPHAS, CLIPS):  # the first is plain max calibration
        other = make_params(linear, seen, alpha, clip, signed=signed)
        assert best.error <= measure(other, seen.rows, expected, signed=signed).error * 1.001


def massive(rows: int = 600, inputs: int = 64, places: tuple[int, ...] = (9,)) -> tuple[Linear, np.ndarray]:
    """A layer as MiniLM has them: in a few rows some inputs are huge, and so is their weight to one output."""
    chance = np.random.default_rng(0)
    weight, read = chance.normal(size=(32, inputs)), chance.normal(size=(rows, inputs))
    for place in places:
        weight[3, place] = 80
        read[::50, place] = 30
    return layer(weight), read


@SIGNED
@pytest.mark.parametrize("places", [(9,), (9, 20), (1, 9, 20, 40)])
def test_inputs_that_spoil_the_others_stay_in_float32(signed: bool, places: tuple[int, ...]) -> None:
    linear, rows = massive(places=places)
    best = fit(linear, see(rows), signed=signed)
    assert best.kept.tolist() == list(places)
    assert not best.weight[:, best.kept].any()
    assert np.array_equal(best.kept_weight, linear.weight[:, best.kept])
    assert best.error < choose_scales(linear, see(rows), NONE, signed=signed).error / 2


@SIGNED
def test_none_stays_in_float32_where_none_is_special(signed: bool) -> None:
    linear, rows = massive(places=())
    assert fit(linear, see(rows), signed=signed).kept.size == 0
    assert KEPT[0] == 0


@SIGNED
def test_rounding_together_helps_beyond_the_calibration_rows(signed: bool) -> None:
    chance = np.random.default_rng(0)
    mix = chance.normal(size=(12, 96))
    rows, others = (chance.normal(size=(2000, 12)) @ mix + chance.normal(size=(2000, 96)) / 10 for _ in range(2))
    linear = layer(chance.normal(size=(24, 96)))
    nearest, best = choose_scales(linear, see(rows), NONE, signed=signed), fit(linear, see(rows), signed=signed)
    assert (best.alpha, best.clip) == (nearest.alpha, nearest.clip)
    read = others.astype(np.float32)
    apart, together = (measure(each, read, read @ linear.weight.T, signed=signed).error for each in (nearest, best))
    assert together < 0.95 * apart


def test_the_same_rows_give_the_same_layer() -> None:
    linear, rows = massive()
    first, second = (fit(linear, see(rows), signed=False) for _ in range(2))
    assert np.array_equal(first.weight, second.weight)
    assert (first.scale, first.zero_point, first.error) == (second.scale, second.zero_point, second.error)
