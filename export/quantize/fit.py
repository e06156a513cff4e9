"""Fits 8-bit integers to one linear layer, so that its output changes least on the calibration rows.

First the scales: several values of alpha, and of how much of the range is clipped, are tried. Then the weights are
rounded together (`rounding`).

Some layers have an input whose values and weights are both far beyond the others'. In MiniLM one neuron drives a single
output to 200 where others reach 2, and its weight makes that output's steps a hundred times as coarse as the others'.
Smoothing only moves the damage. Such an input stays in float32 beside the integers (Dettmers et al., LLM.int8(), 2022):
a product with one column, which is cheap. How many is decided for each layer by what they gain.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np

from export.quantize.calibration import Activations
from export.quantize.linears import Linear
from export.quantize.rounding import round_together
from export.quantize.smoothquant import Places, QuantParams, make_params, measure, read, sizes, without

ALPHAS = (0.0, 0.5, 0.65, 0.8, 0.9, 1.0)
CLIPS = (1.0, 0.9, 0.75, 0.6)  # shares of the range seen
KEPT = (0, 1, 2, 4)  # inputs in float32
WORTH = 0.75  # more of them must bring the error down to this share
ROWS = 512  # that the tries are compared on


def fit(linear: Linear, seen: Activations, *, signed: bool) -> QuantParams:
    """The parameters with the least error on the calibration rows.

    Args:
        linear: the layer.
        seen: what it read on the calibration pairs.
        signed: inputs as -128..127 around 0, for TensorRT; else as 0..255 around a zero point, for CPUs.
    """
    order = np.argsort(-np.maximum(np.abs(seen.low), np.abs(seen.high)) * np.abs(linear.weight).max(axis=0))
    best = choose_scales(linear, seen, np.sort(order[: KEPT[0]]), signed=signed)
    for count in KEPT[1:]:
        found = choose_scales(linear, seen, np.sort(order[:count]), signed=signed)
        if found.error < WORTH * best.error:
            best = found
    return choose_steps(linear, seen, best, signed=signed)


def choose_scales(linear: Linear, seen: Activations, kept: Places, *, signed: bool) -> QuantParams:
    """The alpha and the clipping with the least error, of weights that are rounded to the nearest step."""
    rows = seen.rows[:: max(1, len(seen.rows) // ROWS)]
    expected = rows @ linear.weight.T
    tried = (make_params(linear, seen, alpha, clip, kept, signed=signed) for alpha, clip in product(ALPHAS, CLIPS))
    return min((measure(params, rows, expected, signed=signed) for params in tried), key=lambda params: params.error)


def choose_steps(linear: Linear, seen: Activations, params: QuantParams, *, signed: bool) -> QuantParams:
    """The same scales with the weights rounded together, unless rounding to the nearest step is better."""
    expected = seen.rows @ linear.weight.T
    inputs = without(read(params, seen.rows, signed=signed), params.kept) / sizes(expected)[:, None]
    smoothed = without(linear.weight, params.kept) * params.smooth
    together = replace(params, weight=round_together(smoothed, params.weight_scale, inputs))
    both = (measure(each, seen.rows, expected, signed=signed) for each in (together, params))
    return min(both, key=lambda each: each.error)
