"""How one linear layer computes in 8-bit integers: scales for its inputs and its weights, and the error they cause.

Some inputs of a BERT's layers are far larger than the others, and one scale for all would leave the small ones few of
the 256 steps. So each input j is divided by a factor s_j, and the weight's column j multiplied by it, which changes
nothing until both are rounded (Xiao et al., SmoothQuant, 2023):

    x @ W.T = (x / s) @ (W * s).T,    s_j = max|x_j|^alpha / max|W_j|^(1 - alpha)

The weight has a scale for each output; x / s has one scale, of a range that may be clipped. Alpha 0 without clipping is
plain max calibration. A few inputs may stay in floating point, beside the integers.

The scales are fixed, so that a pair's score does not depend on its batch. (Dynamic quantization computes the scale over
the whole batch, which holds other callers' requests.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from export.quantize.calibration import Activations
from export.quantize.linears import FloatArray, Linear
from export.quantize.rounding import round_to_nearest

TINY = 1e-6
# FP16, which TensorRT's graphs use, must hold every factor and scale, even for an input that is always 0 or an output
# that was pruned away.
WIDEST = 2.0**14
FINEST = 2.0**-24

Places = NDArray[np.int64]  # of inputs
NONE: Places = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class QuantParams:
    """How one linear layer computes in integers, and with a few inputs in floating point beside them.

    An input is (q - zero_point) * scale * smooth, where q is an 8-bit integer; the layer's weight is
    weight * weight_scale[:, None] / smooth. To the product comes that of the inputs `kept` with `kept_weight`.
    """

    smooth: FloatArray  # [inputs]
    scale: float  # of x / smooth
    zero_point: int  # 0 where signed
    weight: NDArray[np.int8]  # [outputs, inputs], -127..127; 0 at those kept
    weight_scale: FloatArray  # [outputs]; of weight * smooth
    kept: Places  # [kept], ascending
    kept_weight: FloatArray  # [outputs, kept]
    alpha: float
    clip: float
    error: float  # of the output: root mean square, over the rows, of the change relative to the row


def make_params(
    linear: Linear, seen: Activations, alpha: float, clip: float, kept: Places = NONE, *, signed: bool
) -> QuantParams:
    """The parameters of one alpha, one clipping and some inputs in floating point; the error is still NaN.

    Args:
        linear: the layer.
        seen: what it read on the calibration pairs.
        alpha: how far the inputs' sizes move into the weight, 0..1.
        clip: the share of the range seen that the integers cover.
        kept: the inputs that stay in floating point.
        signed: inputs as -128..127 around 0, for TensorRT; else as 0..255 around a zero point, for CPUs.
    """
    weight = without(linear.weight, kept)
    range_low, range_high = without(seen.low, kept), without(seen.high, kept)
    largest = np.maximum(np.maximum(np.abs(range_low), np.abs(range_high)), TINY)
    columns = np.maximum(np.abs(weight).max(axis=0), TINY)
    smooth = largest**alpha / columns ** (1 - alpha) if alpha else np.ones_like(largest)
    smooth = np.clip(smooth, 1 / WIDEST, WIDEST)
    smooth[kept] = WIDEST  # their weights are 0, but FP16 must hold them
    low, high = float((range_low / smooth).min()) * clip, float((range_high / smooth).max()) * clip
    if signed:
        scale, zero_point = max(max(abs(low), abs(high)) / 127, FINEST), 0
    else:
        low, high = min(low, 0.0), max(high, 0.0)  # so that 0 is one of the steps
        scale = max((high - low) / 255, FINEST)
        zero_point = round(-low / scale)
    smoothed = weight * smooth
    weight_scale = np.maximum(np.abs(smoothed).max(axis=1) / 127, FINEST)
    return QuantParams(
        smooth=smooth.astype(np.float32),
        scale=scale,
        zero_point=zero_point,
        weight=round_to_nearest(smoothed, weight_scale),
        weight_scale=weight_scale.astype(np.float32),
        kept=kept,
        kept_weight=linear.weight[:, kept],
        alpha=alpha,
        clip=clip,
        error=np.nan,
    )


def without(values: FloatArray, kept: Places) -> FloatArray:
    """A copy of `values` [..., inputs] with 0 at those kept."""
    rest = values.copy()
    rest[..., kept] = 0
    return rest


def read(params: QuantParams, rows: FloatArray, *, signed: bool) -> FloatArray:
    """`rows` / smooth [rows, inputs], as the integers give them back."""
    first, last = (-128, 127) if signed else (0, 255)
    steps = np.clip(np.rint(rows / (params.smooth * params.scale)) + params.zero_point, first, last)
    return np.asarray((steps - params.zero_point) * params.scale, dtype=np.float32)


def measure(params: QuantParams, rows: FloatArray, expected: FloatArray, *, signed: bool) -> QuantParams:
    """The parameters with their error on `rows` [rows, inputs], of which float32 makes `expected` [rows, outputs]."""
    restored = (params.weight * params.weight_scale[:, None]).astype(np.float32)
    got = read(params, rows, signed=signed) @ restored.T + rows[:, params.kept] @ params.kept_weight.T
    change = np.linalg.norm(got - expected, axis=1) / sizes(expected)
    return replace(params, error=float(np.sqrt((change**2).mean())))


def sizes(rows: FloatArray) -> FloatArray:
    """The length of each row [rows, outputs]; of a row near 0, a tenth of the median length.

    Errors are relative to these because a layer norm, which divides by the row's size, mostly comes next. Otherwise a
    few rows would count for all: in MiniLM, [CLS] is thirty times as long as other tokens.
    """
    found = np.linalg.norm(rows, axis=1)
    return np.asarray(np.maximum(found, np.median(found) / 10 + TINY))
