"""Removes the half-precision types from a graph, for TensorRT 8.6, which has no strongly typed networks.

There FP16 is a licence given to the builder (`BuilderFlag.FP16`), not a type in the graph, and QuantizeLinear and
DequantizeLinear must have float32 scales. The values stay those of the half-precision graph.

The layout counts in float32, and the licence makes that half precision, too, which cannot hold odd numbers beyond
2,048. On an H100 the plan took requests for malformed, or for each other's neighbours, exactly where a count was such a
number, and the builder kept no layer in float32 on demand. So this module counts in two digits.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.graph.surgery import Constants, exchange_nodes

HALF, FULL = TensorProto.FLOAT16, TensorProto.FLOAT
BASE, EXACT = 64, 2048  # half precision holds all whole numbers up to EXACT
TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")  # Cast; RandomX, EyeLike; DequantizeLinear and QuantizeLinear


def without_half_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` in which float32 stands where float16 stood.

    Weights and constants are widened, Casts to float16 become Casts to float32, and the types of values in between are
    dropped (they are inferred again). int8 weights, scales' values, and the graph's int32 inputs are untouched.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    widen_graph(copy.graph)
    count_by_digits(copy)
    return copy


def count_by_digits(model: onnx.ModelProto) -> None:
    """Makes every sum of integers (Cast to float32, ReduceSum, Cast to int64) the sum of its digits to the base 64.

    In place. Exact within `counts_are_exact`; larger sums are those of malformed requests, and belong to them alone.
    Sums of truth values stay as they are: the graph only asks whether they are 0, or sums fewer than 2,048 pairs.
    """
    inferred = onnx.shape_inference.infer_shapes(model).graph
    whole = {value.name for value in inferred.value_info if value.type.tensor_type.elem_type == TensorProto.INT64}
    constants = Constants(model)
    makers = {output: node for node in model.graph.node for output in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        total = makers.get(node.input[0]) if node.op_type == "Cast" else None
        single = makers.get(total.input[0]) if total is not None and total.op_type == "ReduceSum" else None
        if total is None or single is None or single.op_type != "Cast" or single.input[0] not in whole:
            nodes.append(node)
            continue
        (values, *_), (result,) = single.input, node.output
        base = constants.add_integers("counting.base", [BASE])
        high, rounded, low = (f"{values}.{part}" for part in ("high", "rounded", "low"))
        nodes += [
            helper.make_node("Div", [values, base], [high]),
            helper.make_node("Mul", [high, base], [rounded]),
            helper.make_node("Sub", [values, rounded], [low]),
        ]
        for digit in (high, low):
            summed = onnx.NodeProto()
            summed.CopyFrom(total)
            summed.name = ""
            summed.input[0], summed.output[0] = f"{digit}.single", f"{digit}.sum"
            nodes += [
                helper.make_node("Cast", [digit], [f"{digit}.single"], to=FULL),
                summed,
                helper.make_node("Cast", [f"{digit}.sum"], [f"{digit}.count"], to=TensorProto.INT64),
            ]
        nodes += [
            helper.make_node("Mul", [f"{high}.count", base], [f"{result}.high"]),
            helper.make_node("Add", [f"{result}.high", f"{low}.count"], [result]),
        ]
    if len(nodes) > len(model.graph.node):  # otherwise it would drop what only an inner graph reads
        exchange_nodes(model, nodes)


def counts_are_exact(requests: int, pairs: int, tokens: int) -> bool:
    """Whether half precision holds the sum of every digit, for `requests` of `pairs` and `tokens` each."""
    return max(pairs, requests) * (BASE - 1) <= EXACT and requests * -(-tokens // BASE) <= EXACT


def widen_graph(graph: onnx.GraphProto) -> None:
    """float16 -> float32, in place, in a graph and the graphs inside its nodes."""
    for initializer in graph.initializer:
        widen_tensor(initializer)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == HALF:
            value.type.tensor_type.elem_type = FULL
    del graph.value_info[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                widen_tensor(attribute.t)
            elif attribute.type == onnx.AttributeProto.GRAPH:
                widen_graph(attribute.g)
            elif attribute.name in TYPE_ATTRIBUTES and attribute.i == HALF:
                attribute.i = FULL


def widen_tensor(tensor: onnx.TensorProto) -> None:
    """float16 -> float32, in place; other types stay."""
    if tensor.data_type == HALF:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
