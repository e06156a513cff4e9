"""Fits 8-bit integers to one linear layer, so that what it computes changes least on the calibration rows.

Some inputs of a BERT's layers are far larger than the others. One scale for all inputs would leave the small ones few
of the 256 steps. So each input j is divided by a factor s_j, and the weight's column j multiplied by it, which changes
nothing until both are rounded (Xiao et al., SmoothQuant, 2023):

    x @ W.T = (x / s) @ (W * s).T,    s_j = max|x_j|^alpha / max|W_j|^(1 - alpha)

The weight gets a scale of its own for every output; x / s gets one scale for all. Alpha, and how much of the largest
values is clipped, are tried out, and those with the least squared error of the layer's output are taken: alpha 0 with
no clipping is plain max calibration.

The scales are fixed: a pair's score never depends on which other pairs are in its batch (with dynamic quantization it
would: ONNX Runtime computes that scale over the whole batch, other callers' requests included).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from export.quantize.calibration import Activations
from export.quantize.linears import FloatArray, Linear

ALPHAS = (0.0, 0.5, 0.65, 0.8, 0.9)
CLIPS = (1.0, 0.9, 0.75)  # of the range seen
TINY = 1e-6
# What FP16 can hold, as TensorRT's graphs must, also for an input that is always 0 or an output that was pruned away.
WIDEST = 2.0**14
FINEST = 2.0**-24


@dataclass(frozen=True)
class QuantParams:
    """How one linear layer computes in integers.

    (q - zero_point) * scale * smooth is an input, q an 8-bit integer; weight * weight_scale[:, None] / smooth is the
    layer's weight.
    """

    smooth: FloatArray  # [inputs]
    scale: float  # of x / smooth
    zero_point: int  # 0 where signed
    weight: NDArray[np.int8]  # [outputs, inputs], -127..127
    weight_scale: FloatArray  # [outputs]; of weight * smooth
    alpha: float
    clip: float
    error: float  # root mean square of the change of the output, over that of the output


def fit(linear: Linear, seen: Activations, *, signed: bool) -> QuantParams:
    """The scheme with the least error on the calibration rows.

    Args:
        linear: the layer.
        seen: what it read on the calibration pairs.
        signed: inputs as -127..127 around 0 (TensorRT); else as 0..255 around a zero point (CPUs multiply those).
    """
    wanted = seen.rows @ linear.weight.T
    power = float((wanted**2).mean()) + TINY**2
    schemes = (make_scheme(linear, seen, alpha, clip, signed=signed) for alpha, clip in product(ALPHAS, CLIPS))
    return min((measure(scheme, seen.rows, wanted, power, signed=signed) for scheme in schemes), key=lambda s: s.error)


def make_scheme(linear: Linear, seen: Activations, alpha: float, clip: float, *, signed: bool) -> QuantParams:
    """The scheme of one alpha and one clipping; its error is not measured yet (NaN)."""
    largest = np.maximum(np.maximum(np.abs(seen.low), np.abs(seen.high)), TINY)
    columns = np.maximum(np.abs(linear.weight).max(axis=0), TINY)
    smooth = largest**alpha / columns ** (1 - alpha) if alpha else np.ones_like(largest)
    smooth = np.clip(smooth, 1 / WIDEST, WIDEST)
    low, high = float((seen.low / smooth).min()) * clip, float((seen.high / smooth).max()) * clip
    if signed:
        scale, zero_point = max(max(abs(low), abs(high)) / 127, FINEST), 0
    else:
        low, high = min(low, 0.0), max(high, 0.0)  # 0 itself must be one of the steps
        scale = max((high - low) / 255, FINEST)
        zero_point = round(-low / scale)
    smoothed = linear.weight * smooth
    weight_scale = np.maximum(np.abs(smoothed).max(axis=1) / 127, FINEST)
    weight = np.clip(np.rint(smoothed / weight_scale[:, None]), -127, 127).astype(np.int8)
    return QuantParams(
        smooth.astype(np.float32), scale, zero_point, weight, weight_scale.astype(np.float32), alpha, clip, np.nan
    )


def measure(scheme: QuantParams, rows: FloatArray, wanted: FloatArray, power: float, *, signed: bool) -> QuantParams:
    """The scheme with its error on `rows` [rows, inputs], whose right outputs are `wanted` [rows, outputs]."""
    first, last = (-127, 127) if signed else (0, 255)
    steps = np.clip(np.rint(rows / (scheme.smooth * scheme.scale)) + scheme.zero_point, first, last)
    restored = (scheme.weight * scheme.weight_scale[:, None]).astype(np.float32)
    got = ((steps - scheme.zero_point) * np.float32(scheme.scale)).astype(np.float32) @ restored.T
    error = float(np.sqrt(((got - wanted) ** 2).mean() / power))
    return replace(scheme, error=error)
