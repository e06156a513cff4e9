"""INT8: how near the integers come to a layer, and that FP16 holds what dead and constant inputs make."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.quantize.fit import ALPHAS, CLIPS, fit
from export.quantize.smoothquant import NONE, QuantParams, make_params, measure, sizes, without
from tests.export.quantize.layers import SIGNED, best_to_the_nearest, dequantized, layer, layers, see


@settings(max_examples=300)
@given(layers(), st.sampled_from(ALPHAS), st.sampled_from(CLIPS), st.sets(st.integers(0, 11)), st.booleans())
def test_the_product_is_as_near_as_its_steps_imply(some, alpha: float, clip: float, kept: set, signed: bool) -> None:
    linear, seen = some
    places = np.array(sorted(place for place in kept if place < linear.weight.shape[1]), dtype=np.int64)
    params = make_params(linear, seen, alpha, clip, places, signed=signed)
    assert params.zero_point == 0 if signed else 0 <= params.zero_point <= 255
    assert params.weight.dtype == np.int8
    assert np.abs(params.weight.astype(int)).max() <= 127
    assert params.scale > 0
    assert all((values > 0).all() and np.isfinite(values).all() for values in (params.smooth, params.weight_scale))
    assert not params.weight[:, places].any()
    assert np.array_equal(params.kept_weight, linear.weight[:, places])
    inputs, weight = dequantized(params, seen.rows, signed=signed)
    real_inputs = without(seen.rows, places) / params.smooth.astype(float)
    real_weight = without(linear.weight, places) * params.smooth.astype(float)
    ends = [(step - params.zero_point) * params.scale for step in ((-128, 127) if signed else (0, 255))]
    cut = np.abs(real_inputs - np.clip(real_inputs, *ends))
    if clip == 1:
        assert cut.max() <= 0.51 * params.scale  # the zero point is a whole step
    input_error = cut + params.scale * 0.501
    weight_error = params.weight_scale[:, None] * 0.501
    bound = input_error @ np.abs(weight).T + np.abs(real_inputs) @ np.broadcast_to(weight_error, weight.shape).T
    expected = without(seen.rows, places).astype(float) @ linear.weight.T.astype(float)
    assert np.allclose(real_inputs @ real_weight.T, expected)
    assert (np.abs(inputs @ weight.T - expected) <= bound).all()


@SIGNED
@pytest.mark.parametrize("read", [0.0, 5.0, -5.0, 1e-9])
@pytest.mark.parametrize("weighs", [0.0, 1.0])
def test_constants_and_zeros_divide_nothing_by_zero(read: float, weighs: float, signed: bool) -> None:
    with np.errstate(divide="raise", invalid="raise", over="raise"):
        params = fit(layer(np.full((2, 3), weighs)), see(np.full((4, 3), read)), signed=signed)
    assert params.error <= 0.01
    assert np.isfinite(params.smooth).all()


def test_what_is_dead_constant_or_kept_still_fits_fp16_for_tensorrt() -> None:
    chance = np.random.default_rng(0)
    weight, rows = chance.normal(size=(16, 32)) / one_large(), chance.normal(size=(400, 32)) * one_large()
    weight[3] = rows[:, 7] = 0  # an output without weights, an input that is always 0
    for linear, seen in ((layer(weight), see(rows)), (layer(weight), see(np.zeros((400, 32))))):
        for params in [
            fit(linear, seen, signed=True),
            *(make_params(linear, seen, alpha, 1, kept, signed=True) for alpha in ALPHAS for kept in (NONE, [5, 7])),
        ]:
            for values in (params.weight_scale, np.array(params.scale), 1 / params.smooth):
                half = values.astype(np.float16)
                assert ((half > 0) & np.isfinite(half)).all(), params.alpha  # it refuses a scale of 0


def one_large(inputs: int = 32) -> np.ndarray:
    """The sizes of channels, one of them a hundred times as large as the others."""
    return np.where(np.arange(inputs) == 5, 100.0, 1.0)


@SIGNED
def test_smoothing_helps_where_one_channel_is_far_larger(signed: bool) -> None:
    chance = np.random.default_rng(0)
    linear, seen = layer(chance.normal(size=(16, 32)) / one_large()), see(chance.normal(size=(400, 32)) * one_large())
    best, plain = best_to_the_nearest(linear, seen.rows, signed=signed), measure_plain(linear, seen, signed=signed)
    assert best.alpha > 0
    assert best.error < plain.error / 3
    assert best.smooth[5] > 5 * np.delete(best.smooth, 5).max()


@SIGNED
def test_a_rare_extreme_is_clipped(signed: bool) -> None:
    chance = np.random.default_rng(0)
    rows = chance.uniform(-1, 1, size=(20000, 16))
    rows[7, 3], rows[9, 4] = 1.3, -1.3
    linear = layer(chance.normal(size=(4, 16)))
    best = best_to_the_nearest(linear, rows, signed=signed)
    assert best.clip < 1
    assert best.error < measure_plain(linear, see(rows), signed=signed).error


def measure_plain(linear, seen, *, signed: bool) -> QuantParams:
    """Plain max calibration."""
    expected = seen.rows @ linear.weight.T
    return measure(make_params(linear, seen, 0.0, 1.0, signed=signed), seen.rows, expected, signed=signed)


def test_a_row_counts_by_its_relative_error() -> None:
    chance = np.random.default_rng(0)
    rows = chance.normal(size=(50, 16)).astype(np.float32)
    params = make_params(layer(chance.normal(size=(8, 16))), see(rows), 0.5, 1.0, signed=False)
    expected = rows @ chance.normal(size=(16, 8)).astype(np.float32)
    change = np.linalg.norm(expected, axis=1, keepdims=True)
    assert sizes(expected) == pytest.approx(change[:, 0])
    assert measure(params, 0 * rows, expected, signed=False).error == pytest.approx(1)  # 0 is off by all of each row
    expected[0] *= 1000
    assert measure(params, 0 * rows, expected, signed=False).error == pytest.approx(1)


def test_a_row_near_zero_does_not_count_for_all_others() -> None:
    rows = np.array([[3.0, 4.0], [0.0, 5.0], [0.0, 1e-12], [0.0, 0.0], [5.0, 0.0]], np.float32)
    assert sizes(rows) == pytest.approx([5, 5, 0.5, 0.5, 5], rel=1e-5)
    assert (sizes(0 * rows) > 0).all()
