"""Linear layers and what they read, and a tiny model's graph, made up for the tests of INT8."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from transformers import BertForSequenceClassification

from export.graph.onnx_export import write_click_model
from export.quantize.calibration import Activations
from export.quantize.fit import ALPHAS, CLIPS
from export.quantize.linears import Linear
from export.quantize.smoothquant import NONE, QuantParams, make_params, measure

SIGNED = pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])


def write_graph(folder: Path, make: Callable[[Path], Path]) -> Path:
    """The packed graph of a tiny click model, whose biases are not 0: an untrained BERT's are, and not exported."""
    model = BertForSequenceClassification.from_pretrained(make(folder / "checkpoint")).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for vector in filter(lambda values: values.ndim == 1, model.parameters()):
            vector.add_(torch.randn_like(vector), alpha=0.3)
    write_click_model(model, folder / "model.onnx")
    return folder / "model.onnx"


def layer(weight: np.ndarray) -> Linear:
    return Linear("layer", "x", "y", weight.astype(np.float32), None)


def see(rows: np.ndarray) -> Activations:
    rows = rows.astype(np.float32)
    return Activations(rows.min(axis=0), rows.max(axis=0), rows)


def dequantized(params: QuantParams, rows: np.ndarray, *, signed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Inputs / smooth and weight * smooth, as the integers give them back, in float64."""
    first, last = (-128, 127) if signed else (0, 255)
    steps = np.rint(rows / (params.smooth.astype(float) * params.scale)) + params.zero_point
    inputs = (np.clip(steps, first, last) - params.zero_point) * params.scale
    return inputs, params.weight * params.weight_scale.astype(float)[:, None]


def output(params: QuantParams, rows: np.ndarray, *, signed: bool) -> np.ndarray:
    """What a layer computes of rows, without its bias, in float64."""
    inputs, weight = dequantized(params, rows, signed=signed)
    return inputs @ weight.T + rows[:, params.kept].astype(float) @ params.kept_weight.T


@st.composite
def layers(draw: st.DrawFn) -> tuple[Linear, Activations]:
    """Any layer and what it reads: channels of very different sizes, off centre, some dead."""
    chance = np.random.default_rng(draw(st.integers(0, 2**32)))
    outputs, inputs, rows = draw(st.integers(1, 8)), draw(st.integers(1, 12)), draw(st.integers(1, 40))
    spread = draw(st.floats(0, 2))
    sizes, centres = 10 ** chance.uniform(-spread, spread, (2, inputs))
    read = (chance.normal(size=(rows, inputs)) + draw(st.sampled_from([0, -3, 3])) * centres) * sizes
    weight = chance.normal(size=(outputs, inputs)) * 10 ** chance.uniform(-spread, 0, (outputs, 1))
    if draw(st.booleans()):
        read[:, chance.integers(inputs)] = draw(st.sampled_from([0.0, 1.0, -1.0]))
    if draw(st.booleans()):
        weight[chance.integers(outputs)] = 0
    if draw(st.booleans()):
        weight[:, chance.integers(inputs)] = 0
    return layer(weight), see(read)


def best_to_the_nearest(linear: Linear, rows: np.ndarray, *, signed: bool) -> QuantParams:
    """The best alpha and clipping, all inputs in integers, weights rounded to the nearest step."""
    seen, expected = see(rows), rows.astype(np.float32) @ linear.weight.T
    tried = (make_params(linear, seen, alpha, clip, NONE, signed=signed) for alpha, clip in product(ALPHAS, CLIPS))
    return min((measure(one, seen.rows, expected, signed=signed) for one in tried), key=lambda one: one.error)
