"""The linear layers of a packed graph: what quantization replaces, by the names that a user sees.

In the packed graph a linear layer is a Gemm with a constant weight [outputs, inputs]. Attention's own products are
MatMul without constants, and stay as they are. A layer has the name of its module in `PackedBert`:
`layers.0.intermediate.dense`, `pooler.dense`, `classifier`. The further heads are not among them: they are tiny, and
stay in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from export.graph.layer_names import HEADS, WEIGHT
from export.graph.surgery import Constants, exchange_nodes

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Linear:
    """One linear layer: `output` = `input` @ weight.T + bias."""

    name: str
    input: str
    output: str
    weight: FloatArray  # [outputs, inputs]
    bias: str | None  # name of its initializer


def find_linears(model: onnx.ModelProto) -> list[Linear]:
    """The linear layers of a packed graph, in the order of computation."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    return [
        Linear(
            name=node.input[1].removesuffix(WEIGHT),
            input=node.input[0],
            output=node.output[0],
            weight=numpy_helper.to_array(constants[node.input[1]]).astype(np.float32),
            bias=node.input[2] if len(node.input) > 2 and node.input[2] else None,
        )
        for node in model.graph.node
        if node.op_type == "Gemm" and node.input[1] in constants and not node.input[1].startswith(HEADS)
    ]


def rewrite(
    model: onnx.ModelProto, linears: Iterable[Linear], make: Callable[[Linear, Constants], list[onnx.NodeProto]]
) -> None:
    """Replaces each given linear layer by the nodes that `make` returns, and drops unused constants."""
    chosen = {linear.output: linear for linear in linears}
    constants = Constants(model)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        linear = chosen.get(node.output[0])
        nodes += make(linear, constants) if linear else [node]
    exchange_nodes(model, nodes)
