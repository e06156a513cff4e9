"""Makes TensorRT's graphs from the packed fp32 graph: the longest pair becomes a shape, and types are written out.

TensorRT 10 and 11 build strongly typed networks: they compute in FP16 what the graph types as FP16.

- The longest pair of an execution is the size of an input (`longest_shape`, which Triton makes of the requests' own
  `longest` inputs), not the maximum of `lengths`: TensorRT must know shapes before it computes values.
- The last layer's queries, one row a pair, go through attention twice. TensorRT 8.6.0 computed products of one row
  wrongly on an H100, even in float32; products of two rows were right.
- FP16 reaches from the embeddings to the classifier. Layer norms compute in float32 between casts: their squares would
  overflow. The softmax subtracts the maximum first, and the mask (-1e4) fits; `fp16_range` measures on real pairs how
  far every other FP16 tensor is from 65504. The layout of the pairs stays in float32 and integers.

What this module does not know: TensorRT. `export.tensorrt.build` builds the plans.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.graph.layer_names import HEADS
from export.graph.surgery import Constants, exchange_nodes
from release.names import GRAPH_INPUTS, LONGEST, LONGEST_SHAPE

FLOAT32_OPS = ("LayerNormalization",)
INTEGER_OUTPUT = ("QuantizeLinear", "Shape")
QUANTIZES_FLOAT16 = 19  # the first opset whose QuantizeLinear takes FP16


class TypingError(RuntimeError):
    """The graph is not the packed graph that this module knows how to change."""


def take_longest_as_shape(model: onnx.ModelProto, max_length: int) -> None:
    """Makes the longest pair the size of the new input `longest_shape`; no pair may exceed it, nor `max_length`.

    Adds the inputs `longest` int32 [spans], which Triton lays end to end from all requests, and `longest_shape` int32
    [longest]. The graph reads no value of them, only the size of the second.

    Raises:
        TypingError: the graph has not exactly one maximum, or has other inputs than the packed graph.
    """
    graph = model.graph
    maxima = [node for node in graph.node if node.op_type == "ReduceMax"]
    names = tuple(value.name for value in graph.input)
    if len(maxima) != 1 or names != GRAPH_INPUTS:
        raise TypingError(f"expected the packed graph with one maximum; this has {len(maxima)} and the inputs {names}")
    constants = Constants(model)
    (longest,) = maxima[0].output
    size = [
        helper.make_node("Shape", [LONGEST_SHAPE], ["longest_size"]),
        helper.make_node(
            "Min", ["longest_size", constants.add_integers("longest_limit", [max_length])], ["longest_cut"]
        ),
        helper.make_node("Squeeze", ["longest_cut", constants.add_integers("longest_axis", [0])], [longest]),
    ]
    place = list(graph.node).index(maxima[0])
    exchange_nodes(model, [*graph.node[:place], *size, *graph.node[place + 1 :]])
    for name, dimension in ((LONGEST, "spans"), (LONGEST_SHAPE, "longest")):
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT32, [dimension]))


def split_clips(model: onnx.ModelProto) -> None:
    """Writes each Clip of whole numbers (the sizes of attention) as a Max and a Min: TensorRT 8.6 clips floats only."""
    whole = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT64}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "Clip" or node.input[1] not in whole:
            nodes.append(node)
            continue
        (value, least, most), (result,) = node.input, node.output
        nodes += [
            helper.make_node("Max", [value, least], [f"{result}.least"]),
            helper.make_node("Min", [f"{result}.least", most], [result]),
        ]
    exchange_nodes(model, nodes)


def double_queries(model: onnx.ModelProto) -> None:
    """Gives the last layer's two products in attention two equal rows instead of one, and drops the second result.

    Raises:
        TypingError: the last two products are not those of one row.
    """
    constants = Constants(model)
    shapes = {t.name: numpy_helper.to_array(t).tolist() for t in model.graph.initializer if t.dims == [4]}
    makers = {output: node for node in model.graph.node for output in node.output}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    if len(products) < 2:
        raise TypingError(f"expected the products of attention; the graph has {len(products)}")
    scores, context = products[-2:]
    rows = makers.get(scores.input[0])
    if rows is None or rows.op_type != "Reshape" or shapes.get(rows.input[1], [0, 0, 0])[2] != 1:
        raise TypingError(f"expected queries of one row a pair in the last layer; {scores.output[0]} has others")
    (queries,), (result,) = rows.output, context.output
    scores.input[0], context.output[0] = f"{queries}.twice", f"{result}.twice"
    bounds = [constants.add_integers(f"queries.{name}", [at]) for name, at in (("from", 0), ("to", 1), ("axis", 2))]
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node is scores:
            nodes.append(helper.make_node("Concat", [queries, queries], [scores.input[0]], axis=2))
        nodes.append(node)
        if node is context:
            nodes.append(helper.make_node("Slice", [context.output[0], *bounds], [result]))
    exchange_nodes(model, nodes)


def to_float16(model: onnx.ModelProto, single: Collection[str] = ()) -> None:
    """Makes weights and activations FP16 from the embeddings to the classifier; inputs and outputs stay as they are.

    Quantized layers keep their integers; the scales become FP16 with the tensors that they scale. (ONNX Runtime's own
    converter left the nodes out of order, and cast the logits twice.)

    Args:
        model: the graph; changed in place.
        single: outputs of nodes that stay in float32.
    """
    floats = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    inside = body(model)
    halves: set[str] = set()  # tensors that are FP16 by now
    casts: dict[tuple[str, int], str] = {}
    constants = Constants(model)
    nodes: list[onnx.NodeProto] = []

    def cast(name: str, kind: int) -> str:
        if (name, kind) not in casts:
            casts[name, kind] = f"{name}.{'half' if kind == TensorProto.FLOAT16 else 'single'}"
            nodes.append(helper.make_node("Cast", [name], [casts[name, kind]], to=kind))
        return casts[name, kind]

    floating = float_tensors(model)
    for node in model.graph.node:
        half = node.output[0] in inside - set(single) and node.op_type not in FLOAT32_OPS
        for place, name in enumerate(node.input):
            if half and name in floats:
                values = numpy_helper.to_array(floats[name]).astype(np.float16)
                node.input[place] = constants.add(f"{name}.half", values)
            elif half and name in floating and name not in halves:
                node.input[place] = cast(name, TensorProto.FLOAT16)
            elif not half and name in halves:
                node.input[place] = cast(name, TensorProto.FLOAT)
        nodes.append(node)
        if half and node.op_type not in INTEGER_OUTPUT:
            halves.update(node.output)
    exchange_nodes(model, nodes)
    for opset in model.opset_import:
        if opset.domain == "":
            opset.version = max(opset.version, QUANTIZES_FLOAT16)


def body(model: onnx.ModelProto) -> set[str]:
    """The outputs of the nodes that lie between the weight tables and the classifier's logits, inclusive.

    The further heads are not among them, so they compute in float32.
    """
    inside = {t.name for t in model.graph.initializer if len(t.dims) > 1 and t.data_type == TensorProto.FLOAT}
    heads = {name for name in inside if name.startswith(HEADS)}
    inside -= heads
    classifier = [node for node in model.graph.node if node.op_type == "Gemm" and heads.isdisjoint(node.input)][-1]
    for node in model.graph.node:
        if inside.intersection(node.input) and node.op_type != "Shape" and heads.isdisjoint(node.input):
            inside.update(node.output)
        if node is classifier:  # what follows marks malformed requests
            break
    return inside


def float_tensors(model: onnx.ModelProto) -> set[str]:
    """The names of all float32 tensors that nodes compute."""
    inferred = onnx.shape_inference.infer_shapes(model)
    return {v.name for v in inferred.graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT}
