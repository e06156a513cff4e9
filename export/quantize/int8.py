"""The INT8 graphs, made of the packed fp32 graph and the parameters that `smoothquant` found for its linear layers.

Two forms of the same arithmetic:

- `make_int8`, for ONNX Runtime on CPUs: unsigned 8-bit inputs around a zero point times signed 8-bit weights around 0,
  summed in 32 bits, in one fused operator (on x86 without VNNI if it is asked for: `export.graph.session`). The table of
  word embeddings, half of a small BERT, becomes 8-bit too, each word with its own scale.
- `make_qdq`, for TensorRT: explicit quantization (Q/DQ) around the linear layers, zero points 0, a weight scale for
  each output; attention and everything else keep their type.

Only linear layers are quantized: attention's products are cheap beside them, and their inputs would each need a scale.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.graph.surgery import Constants, exchange_nodes
from export.quantize.linears import Linear, find_linears, rewrite
from export.quantize.smoothquant import QuantParams
from release.names import EMBEDDINGS, WEIGHT

MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators, in its C++ backend as in the wheel


def make_int8(model: onnx.ModelProto, schemes: Mapping[str, QuantParams], keep_fp32: Collection[str] = ()) -> None:
    """Makes the layers that have a scheme INT8 for ONNX Runtime's CPU provider, and the word embeddings.

    Args:
        model: the packed fp32 graph; changed in place.
        schemes: by the layer's name, unsigned ones.
        keep_fp32: EMBEDDINGS in it keeps the table as it is.
    """
    rewrite(
        model, chosen(model, schemes), lambda linear, constants: int8_nodes(linear, schemes[linear.name], constants)
    )
    if EMBEDDINGS not in keep_fp32:
        quantize_embeddings(model)
    model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))


def make_qdq(model: onnx.ModelProto, schemes: Mapping[str, QuantParams]) -> None:
    """Puts Q/DQ around the layers that have a scheme (by name, signed ones), in place."""
    rewrite(model, chosen(model, schemes), lambda linear, added: qdq_nodes(linear, schemes[linear.name], added))


def chosen(model: onnx.ModelProto, schemes: Mapping[str, QuantParams]) -> list[Linear]:
    """The linear layers that have a scheme."""
    return [linear for linear in find_linears(model) if linear.name in schemes]


def int8_nodes(linear: Linear, scheme: QuantParams, constants: Constants) -> list[onnx.NodeProto]:
    """One layer for the CPU: scale, round, and one product with the scales and the bias in it."""
    name, out = linear.name, linear.output
    # MatMulIntegerToFloat adds a bias in the same pass; `smooth` and `scale` meet in one multiplication before.
    inverse = constants.add(f"{name}.inverse", 1 / (scheme.smooth * np.float32(scheme.scale)))
    zero = constants.add(f"{name}.zero_point", np.array(scheme.zero_point, dtype=np.uint8))
    one = constants.add("scale_of_one", np.array(1, dtype=np.float32))
    product = [
        f"{out}.steps",
        constants.add(f"{name}.int8", scheme.weight.T.astype(np.int8)),
        one,
        constants.add(f"{name}.scale", scheme.weight_scale * np.float32(scheme.scale)),
        zero,
    ]
    if linear.bias:
        product += ["", linear.bias]  # no zero point of the weight: 0
    return [
        helper.make_node("Mul", [linear.input, inverse], [f"{out}.smooth"]),
        helper.make_node("QuantizeLinear", [f"{out}.smooth", one, zero], [f"{out}.steps"]),
        helper.make_node("MatMulIntegerToFloat", product, [out], domain=MICROSOFT),
    ]


def quantize_embeddings(model: onnx.ModelProto) -> None:
    """Looks words up in an 8-bit table, each row with its own scale: a quarter of the size, the same order of error."""
    table = next(tensor for tensor in model.graph.initializer if tensor.name == f"{EMBEDDINGS}{WEIGHT}")
    rows = numpy_helper.to_array(table)
    scale = np.maximum(np.abs(rows).max(axis=1, keepdims=True), np.float32(1e-12)) / 127
    constants = Constants(model)
    steps = constants.add(f"{EMBEDDINGS}.int8", np.rint(rows / scale).astype(np.int8))
    scales = constants.add(f"{EMBEDDINGS}.scale", scale.astype(np.float32))
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.input[:1] != [table.name]:
            nodes.append(node)
            continue
        ids, out = node.input[1], node.output[0]
        nodes += [
            helper.make_node("Gather", [steps, ids], [f"{out}.steps"]),
            helper.make_node("Cast", [f"{out}.steps"], [f"{out}.float"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Gather", [scales, ids], [f"{out}.scale"]),
            helper.make_node("Mul", [f"{out}.float", f"{out}.scale"], [out]),
        ]
    exchange_nodes(model, nodes)


def qdq_nodes(linear: Linear, scheme: QuantParams, constants: Constants) -> list[onnx.NodeProto]:
    """One layer for TensorRT: its input and its weight each through a pair of Q and DQ."""
    name, out = linear.name, linear.output
    nodes = [
        helper.make_node("Mul", [linear.input, constants.add(f"{name}.inverse", 1 / scheme.smooth)], [f"{out}.smooth"])
    ]
    zero = constants.add(f"{name}.zero_point", np.array(0, dtype=np.int8))
    scale = constants.add(f"{name}.input_scale", np.array(scheme.scale, dtype=np.float32))
    nodes += pair(f"{out}.smooth", scale, zero, f"{out}.input")
    # TensorRT folds this pair itself; weights that are integers already are read by newer versions only.
    weight = constants.add(f"{name}.smooth{WEIGHT}", scheme.weight * scheme.weight_scale[:, None])
    scales = constants.add(f"{name}.weight_scale", scheme.weight_scale)
    zeros = constants.add(f"{name}.weight_zero_points", np.zeros(len(scheme.weight_scale), dtype=np.int8))
    nodes += pair(weight, scales, zeros, f"{out}.weight", axis=0)
    inputs = [f"{out}.input", f"{out}.weight", *([linear.bias] if linear.bias else [])]
    return [*nodes, helper.make_node("Gemm", inputs, [out], transB=1)]


def pair(source: str, scale: str, zero: str, target: str, axis: int = 1) -> list[onnx.NodeProto]:
    """QuantizeLinear and DequantizeLinear, one behind the other."""
    return [
        helper.make_node("QuantizeLinear", [source, scale, zero], [f"{target}.steps"], axis=axis),
        helper.make_node("DequantizeLinear", [f"{target}.steps", scale, zero], [target], axis=axis),
    ]
