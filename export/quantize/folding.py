"""Divides attention's context by its smoothing and its scale in the values' weights, where it costs nothing.

The context is a mean of values, so what divides a column of it can divide that column of the values instead: a row of
the fused layer's weight, which has a scale of its own. The integers stay the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import numpy_helper

from export.quantize.linears import FloatArray, find_linears
from export.quantize.smoothquant import QuantParams

CONTEXT = "attention_output.dense"  # what reads it, in each layer
FUSED = ("fused_qkv", "fused_kv")  # what makes the values, its last outputs


def fold_into_values(model: onnx.ModelProto, params: Mapping[str, QuantParams]) -> dict[str, QuantParams]:
    """The parameters by which nothing is left to divide the context by; the values' biases change in place.

    A layer whose values or context stay in floating point keeps its parameters.

    Args:
        model: the packed fp32 graph.
        params: its layers' parameters, by name; unsigned.
    """
    found = dict(params)
    biases = {linear.name: linear.bias for linear in find_linears(model)}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, context in params.items():
        prefix = name.removesuffix(CONTEXT)
        makers = [f"{prefix}{fused}" for fused in FUSED if f"{prefix}{fused}" in params]
        if prefix == name or not makers:
            continue
        (maker,) = makers
        values = params[maker]
        inverse: FloatArray = np.asarray(1 / (context.smooth * context.scale), dtype=np.float32)
        factors = np.ones_like(values.weight_scale)
        factors[-len(inverse) :] = inverse
        found[maker] = replace(
            values, weight_scale=values.weight_scale * factors, kept_weight=values.kept_weight * factors[:, None]
        )
        found[name] = replace(
            context,
            smooth=np.ones_like(context.smooth),
            scale=1.0,
            weight_scale=context.weight_scale * np.float32(context.scale),
            kept_weight=np.asarray(context.kept_weight / inverse[context.kept], dtype=np.float32),
        )
        if bias := biases[maker]:
            scaled = numpy_helper.to_array(tensors[bias]) * factors
            tensors[bias].CopyFrom(numpy_helper.from_array(scaled, bias))
    return found
