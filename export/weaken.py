"""Takes the half-precision types back out of a graph: for TensorRT 8.6, which has no strongly typed networks.

There FP16 is a licence given to the builder (`BuilderFlag.FP16`), not a type in the graph, and QuantizeLinear and
DequantizeLinear must have float32 scales. The values stay those of the half-precision graph.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

HALF, FULL = TensorProto.FLOAT16, TensorProto.FLOAT
TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")  # Cast; RandomX, EyeLike; DequantizeLinear and QuantizeLinear


def weaken(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` in which float32 stands where float16 stood.

    Weights and constants are widened, Casts to float16 become Casts to float32, and the types of values in between are
    dropped (they are inferred again). int8 weights, scales' values, and the graph's int32 inputs are untouched.
    """
    weakened = onnx.ModelProto()
    weakened.CopyFrom(model)
    weaken_graph(weakened.graph)
    return weakened


def weaken_graph(graph: onnx.GraphProto) -> None:
    """The same, in place, for a graph and the graphs inside its nodes."""
    for initializer in graph.initializer:
        widen(initializer)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == HALF:
            value.type.tensor_type.elem_type = FULL
    del graph.value_info[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                widen(attribute.t)
            elif attribute.type == onnx.AttributeProto.GRAPH:
                weaken_graph(attribute.g)
            elif attribute.name in TYPE_ATTRIBUTES and attribute.i == HALF:
                attribute.i = FULL


def widen(tensor: onnx.TensorProto) -> None:
    """float16 -> float32, in place; other types stay."""
    if tensor.data_type == HALF:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
