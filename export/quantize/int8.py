"""The INT8 graphs, made of the packed fp32 graph and the parameters that `fit` found for its linear layers.

There are two forms of the same arithmetic:

- `make_int8`, for ONNX Runtime on CPUs: one fused operator multiplies unsigned 8-bit inputs around a zero point by
  signed 8-bit weights around 0, and sums in 32 bits (on x86 without VNNI only if asked to: `export.graph.session`). The
  table of word embeddings, half of a small BERT, becomes 8-bit too, with a scale for each word and, where that is
  better, one for each column.
- `make_qdq`, for TensorRT: explicit quantization (Q/DQ) around the linear layers, with zero points of 0 and a weight
  scale for each output. Attention and everything else keep their types.

In both, the few inputs that stay in floating point (FP16 in TensorRT's graphs) are a small product of their own, which
is added.

Only linear layers are quantized. Attention's products are cheap beside them, and each of their inputs would need a
scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export.graph.layer_names import EMBEDDINGS, WEIGHT
from export.graph.surgery import Constants, exchange_nodes
from export.quantize.folding import fold_into_values
from export.quantize.linears import FloatArray, Linear, find_linears, rewrite
from export.quantize.smoothquant import QuantParams

TINY_SCALE = np.float32(1e-12)
MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators; Triton's C++ backend has them as the wheel does


def make_int8(model: onnx.ModelProto, params: Mapping[str, QuantParams], words: NDArray[np.int64] | None) -> None:
    """Makes linear layers and word embeddings INT8 for ONNX Runtime's CPU provider, in place.

    Args:
        model: the packed fp32 graph.
        params: the layers to change, by name; unsigned.
        words: ids that are to be read well, as often as they occur; None: the embeddings stay in float32.
    """
    replace_layers(model, fold_into_values(model, params), int8_nodes)
    if words is not None:
        quantize_embeddings(model, words)
    model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))


def make_qdq(model: onnx.ModelProto, params: Mapping[str, QuantParams]) -> None:
    """Puts Q/DQ around linear layers, in place. `params`: the layers to change, by name; signed."""
    replace_layers(model, params, qdq_nodes)


def replace_layers(
    model: onnx.ModelProto,
    params: Mapping[str, QuantParams],
    make: Callable[[Linear, QuantParams, Constants], list[onnx.NodeProto]],
) -> None:
    """Replaces each linear layer that has parameters by the nodes that `make` returns for it."""
    chosen = [linear for linear in find_linears(model) if linear.name in params]

    def with_kept(linear: Linear, constants: Constants) -> list[onnx.NodeProto]:
        mine = params[linear.name]
        if not mine.kept.size:
            return make(linear, mine, constants)
        rest = replace(linear, output=f"{linear.output}.rest")
        return [*make(rest, mine, constants), *kept_nodes(linear, mine, rest.output, constants)]

    rewrite(model, chosen, with_kept)


def kept_nodes(linear: Linear, params: QuantParams, rest: str, constants: Constants) -> list[onnx.NodeProto]:
    """The product of the inputs that stay in floating point, added to the tensor `rest`."""
    name, out = linear.name, linear.output
    places, weight = (
        constants.add(f"{name}.kept", params.kept),
        constants.add(f"{name}.kept_weight", params.kept_weight),
    )
    return [
        helper.make_node("Gather", [linear.input, places], [f"{out}.kept"], axis=1),
        helper.make_node("Gemm", [f"{out}.kept", weight, rest], [out], transB=1),
    ]


def int8_nodes(linear: Linear, params: QuantParams, constants: Constants) -> list[onnx.NodeProto]:
    """One layer for CPUs: scale, round, and one product that applies the scales and the bias."""
    name, out = linear.name, linear.output
    # One multiplication applies both `smooth` and `scale`; MatMulIntegerToFloat adds the bias in the same pass.
    source, inverse = linear.input, 1 / (params.smooth * np.float32(params.scale))
    multiply = []
    if (inverse != 1).any():
        source = f"{out}.smooth"
        multiply = [helper.make_node("Mul", [linear.input, constants.add(f"{name}.inverse", inverse)], [source])]
    zero = constants.add(f"{name}.zero_point", np.array(params.zero_point, dtype=np.uint8))
    one = constants.add("scale_of_one", np.array(1, dtype=np.float32))
    product = [
        f"{out}.steps",
        constants.add(f"{name}.int8", params.weight.T.astype(np.int8)),
        one,
        constants.add(f"{name}.scale", params.weight_scale * np.float32(params.scale)),
        zero,
    ]
    if linear.bias:
        product += ["", linear.bias]  # "": the weight has no zero point
    return [
        *multiply,
        helper.make_node("QuantizeLinear", [source, one, zero], [f"{out}.steps"]),
        helper.make_node("MatMulIntegerToFloat", product, [out], domain=MICROSOFT),
    ]


def quantize_embeddings(model: onnx.ModelProto, words: NDArray[np.int64]) -> None:
    """Makes the table of word embeddings 8-bit, with a scale for each row and each column: a quarter of the size.

    A few columns may be far larger than the others; a row's scale alone would leave the others few steps. How large a
    column is, the rows of `words` say: a token that was never trained may look like anything.
    """
    table = next(tensor for tensor in model.graph.initializer if tensor.name == f"{EMBEDDINGS}{WEIGHT}")
    rows = numpy_helper.to_array(table)
    words, often = np.unique(words, return_counts=True)
    read = rows[words]

    def error(tried: FloatArray) -> float:
        return float(often @ np.square(rounded(read, tried) - read).sum(axis=1))

    by_column = np.maximum(np.abs(read).max(axis=0), TINY_SCALE)
    column = min((np.ones_like(by_column), by_column), key=error)
    scale = row_scales(rows / column)
    constants = Constants(model)
    steps = constants.add(f"{EMBEDDINGS}.int8", np.rint(rows / column / scale).astype(np.int8))
    scales = constants.add(f"{EMBEDDINGS}.scale", scale.astype(np.float32))
    columns = constants.add(f"{EMBEDDINGS}.column_scale", column.astype(np.float32))
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
            helper.make_node("Mul", [f"{out}.float", f"{out}.scale"], [f"{out}.columns"]),
            helper.make_node("Mul", [f"{out}.columns", columns], [out]),
        ]
    exchange_nodes(model, nodes)


def rounded(rows: FloatArray, column: FloatArray) -> FloatArray:
    """`rows` as 8 bits give them back, with these scales of the columns."""
    scale = row_scales(rows / column)
    return np.asarray(np.rint(rows / column / scale) * scale * column)


def row_scales(rows: FloatArray) -> FloatArray:
    """The step of each row, [rows, 1]."""
    return np.asarray(np.maximum(np.abs(rows).max(axis=1, keepdims=True), TINY_SCALE) / 127)


def qdq_nodes(linear: Linear, params: QuantParams, constants: Constants) -> list[onnx.NodeProto]:
    """One layer for TensorRT: its input and its weight each pass through a pair of Q and DQ."""
    name, out = linear.name, linear.output
    nodes = [
        helper.make_node("Mul", [linear.input, constants.add(f"{name}.inverse", 1 / params.smooth)], [f"{out}.smooth"])
    ]
    zero = constants.add(f"{name}.zero_point", np.array(0, dtype=np.int8))
    scale = constants.add(f"{name}.input_scale", np.array(params.scale, dtype=np.float32))
    nodes += quantize_dequantize(f"{out}.smooth", scale, zero, f"{out}.input")
    # TensorRT folds this pair itself. Only newer versions read weights that are integers already.
    weight = constants.add(f"{name}.smooth{WEIGHT}", params.weight * params.weight_scale[:, None])
    scales = constants.add(f"{name}.weight_scale", params.weight_scale)
    zeros = constants.add(f"{name}.weight_zero_points", np.zeros(len(params.weight_scale), dtype=np.int8))
    nodes += quantize_dequantize(weight, scales, zeros, f"{out}.weight", axis=0)
    inputs = [f"{out}.input", f"{out}.weight", *([linear.bias] if linear.bias else [])]
    return [*nodes, helper.make_node("Gemm", inputs, [out], transB=1)]


def quantize_dequantize(source: str, scale: str, zero: str, target: str, axis: int = 1) -> list[onnx.NodeProto]:
    """QuantizeLinear, then DequantizeLinear."""
    return [
        helper.make_node("QuantizeLinear", [source, scale, zero], [f"{target}.steps"], axis=axis),
        helper.make_node("DequantizeLinear", [f"{target}.steps", scale, zero], [target], axis=axis),
    ]
