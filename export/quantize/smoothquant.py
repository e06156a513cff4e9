"""Fits 8-bit integers to one linear layer, so that its output changes least on the calibration rows.

Some inputs of a BERT's layers are far larger than the others, and one scale for all would leave the small ones few of
the 256 steps. So each input j is divided by a factor s_j, and the weight's column j multiplied by it, which changes
nothing until both are rounded (Xiao et al., SmoothQuant, 2023):

    x @ W.T = (x / s) @ (W * s).T,    s_j = max|x_j|^alpha / max|W_j|^(1 - alpha)

The weight has a scale for each output; x / s has one scale. `fit` tries several values of alpha, and of how much of the
range is clipped, and keeps those with the least squared error of the layer's output. Alpha 0 without clipping is plain
max calibration.

The scales are fixed, so that a pair's score does not depend on its batch. (Dynamic quantization computes the scale over
the whole batch, which holds other callers' requests.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from export.quantize.calibration import Activations
from export.quantize.linears import FloatArray, Linear

ALPHAS = (0.0, 0.5, 0.65, 0.8, 0.9)
CLIPS = (1.0, 0.9, 0.75)  # shares of the range seen
TINY = 1e-6
# FP16, which TensorRT's graphs use, must hold every factor and scale, even for an input that is always 0 or an output
# that was pruned away.
WIDEST = 2.0**14
FINEST = 2.0**-24


@dataclass(frozen=True)
class QuantParams:
    """How one linear layer computes in integers.

    An input is (q - zero_point) * scale * smooth, where q is an 8-bit integer; the layer's weight is
    weight * weight_scale[:, None] / smooth.
    """

    smooth: FloatArray  # [inputs]
    scale: float  # of x / smooth
    zero_point: int  # 0 where signed
    weight: NDArray[np.int8]  # [outputs, inputs], -127..127
    weight_scale: FloatArray  # [outputs]; of weight * smooth
    alpha: float
    clip: float
    error: float  # of the output: root mean square of the change, relative to that of the output itself


def fit(linear: Linear, seen: Activations, *, signed: bool) -> QuantParams:
    """The parameters with the least error on the calibration rows.

    Args:
        linear: the layer.
        seen: what it read on the calibration pairs.
        signed: inputs as -127..127 around 0, for TensorRT; else as 0..255 around a zero point, for CPUs.
    """
    expected = seen.rows @ linear.weight.T
    power = float((expected**2).mean()) + TINY**2
    tried = (make_params(linear, seen, alpha, clip, signed=signed) for alpha, clip in product(ALPHAS, CLIPS))
    return min((measure(params, seen.rows, expected, power, signed=signed) for params in tried), key=lambda p: p.error)


def make_params(linear: Linear, seen: Activations, alpha: float, clip: float, *, signed: bool) -> QuantParams:
    """The parameters of one alpha and one clipping. Their error is not measured yet (NaN)."""
    largest = np.maximum(np.maximum(np.abs(seen.low), np.abs(seen.high)), TINY)
    columns = np.maximum(np.abs(linear.weight).max(axis=0), TINY)
    smooth = largest**alpha / columns ** (1 - alpha) if alpha else np.ones_like(largest)
    smooth = np.clip(smooth, 1 / WIDEST, WIDEST)
    low, high = float((seen.low / smooth).min()) * clip, float((seen.high / smooth).max()) * clip
    if signed:
        scale, zero_point = max(max(abs(low), abs(high)) / 127, FINEST), 0
    else:
        low, high = min(low, 0.0), max(high, 0.0)  # so that 0 is one of the steps
        scale = max((high - low) / 255, FINEST)
        zero_point = round(-low / scale)
    smoothed = linear.weight * smooth
    weight_scale = np.maximum(np.abs(smoothed).max(axis=1) / 127, FINEST)
    weight = np.clip(np.rint(smoothed / weight_scale[:, None]), -127, 127).astype(np.int8)
    return QuantParams(
        smooth.astype(np.float32), scale, zero_point, weight, weight_scale.astype(np.float32), alpha, clip, np.nan
    )


def measure(params: QuantParams, rows: FloatArray, expected: FloatArray, power: float, *, signed: bool) -> QuantParams:
    """The parameters with their error on `rows` [rows, inputs], of which float32 makes `expected` [rows, outputs]."""
    first, last = (-127, 127) if signed else (0, 255)
    steps = np.clip(np.rint(rows / (params.smooth * params.scale)) + params.zero_point, first, last)
    restored = (params.weight * params.weight_scale[:, None]).astype(np.float32)
    got = ((steps - params.zero_point) * np.float32(params.scale)).astype(np.float32) @ restored.T
    error = float(np.sqrt(((got - expected) ** 2).mean() / power))
    return replace(params, error=error)
