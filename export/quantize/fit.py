"""Fits 8-bit integers to one linear layer, so that its output changes little on the calibration rows.

First the scales: several values of alpha, and of how much of the range is clipped, are tried. Then the weights are
rounded together (`rounding`).

Some layers have an input whose values and weights are both far beyond the others'. In MiniLM one neuron drives a single
output to 200 where others reach 2, and its weight makes that output's steps a hundred times as coarse as the others'.
Smoothing only moves the damage. Such an input stays beside the integers in floating point, FP16 in TensorRT's graphs
(Dettmers et al., LLM.int8(), 2022): a product with one column, which is cheap. How many is decided for each layer by
what they gain.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np

from export.quantize.calibration import Activations
from export.quantize.linears import FloatArray, Linear
from export.quantize.rounding import round_together
from export.quantize.smoothquant import NONE, QuantParams, make_params, measure, read, sizes, without

ALPHAS = (0.0, 0.5, 0.65, 0.8, 0.9, 1.0)
CLIPS = (1.0, 0.9, 0.75, 0.6)  # shares of the range seen
KEPT = (0, 1, 2, 4)  # inputs in floating point
WORTH = 0.75  # the most of them must bring the error down to this share of fewer ones' error
ROWS = 512  # that the tries are compared on, if there are twice as many


def fit(linear: Linear, seen: Activations, *, signed: bool) -> QuantParams:
    """The parameters: as few inputs in floating point as is worth it, and then the least error that was found.

    Args:
        linear: the layer.
        seen: what it read on the calibration pairs.
        signed: inputs as -128..127 around 0, for TensorRT; else as 0..255 around a zero point, for CPUs.
    """
    rows = seen.rows[:: max(1, len(seen.rows) // ROWS)]
    expected = rows @ linear.weight.T
    order = np.argsort(-np.maximum(np.abs(seen.low), np.abs(seen.high)) * np.abs(linear.weight).max(axis=0))

    def choose(count: int) -> QuantParams:
        """The alpha and the clipping with the least error, of weights that are rounded to the nearest step."""
        kept = np.sort(order[:count]) if count else NONE
        tried = (make_params(linear, seen, alpha, clip, kept, signed=signed) for alpha, clip in product(ALPHAS, CLIPS))
        return min((measure(params, rows, expected, signed=signed) for params in tried), key=lambda found: found.error)

    most = choose(KEPT[-1])
    fewer = (params for params in map(choose, KEPT[:-1]) if most.error >= WORTH * params.error)
    return choose_steps(linear, seen, next(fewer, most), signed=signed)


def choose_steps(linear: Linear, seen: Activations, params: QuantParams, *, signed: bool) -> QuantParams:
    """The same scales with the weights rounded together, if that is better on rows that it was not made for.

    Few rows show relations between the inputs that other rows do not have.
    """
    smoothed = without(linear.weight, params.kept) * params.smooth

    def rounded_on(rows: FloatArray) -> QuantParams:
        inputs = without(read(params, rows, signed=signed), params.kept) / sizes(rows @ linear.weight.T)[:, None]
        return replace(params, weight=round_together(smoothed, params.weight_scale, inputs))

    def with_error(tried: QuantParams, rows: FloatArray) -> QuantParams:
        return measure(tried, rows, rows @ linear.weight.T, signed=signed)

    best, held_out = params, seen.rows[1::2]
    if len(held_out) and with_error(rounded_on(seen.rows[::2]), held_out).error < with_error(params, held_out).error:
        best = rounded_on(seen.rows)
    return with_error(best, seen.rows)
