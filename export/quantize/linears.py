"""The linear layers of a packed graph: what quantization replaces, by the names that a user sees.

In the packed graph a linear layer is a Gemm with a constant weight [outputs, inputs]; attention's own products are
MatMul without one, and are never touched. A layer is called what its weight is called in the packed model:
`layers.0.fused_qkv` (in the last layer `fused_kv` and `query`), `layers.0.attention_output.dense`,
`layers.0.intermediate.dense`, `layers.0.output.dense`, `pooler.dense`, `classifier`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from export.graph.surgery import Constants, exchange_nodes
from release.names import WEIGHT

FloatArray = NDArray[np.float32]


class LayerNameError(ValueError):
    """A layer was named that the graph does not have."""


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
    return [read_linear(node, constants) for node in model.graph.node if is_linear(node, constants)]


def is_linear(node: onnx.NodeProto, constants: Collection[str]) -> bool:
    """Whether a node is a linear layer with a constant weight."""
    return node.op_type == "Gemm" and node.input[1] in constants


def read_linear(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> Linear:
    """A node as a linear layer."""
    weight = node.input[1]
    return Linear(
        name=weight.removesuffix(WEIGHT),
        input=node.input[0],
        output=node.output[0],
        weight=numpy_helper.to_array(constants[weight]).astype(np.float32),
        bias=node.input[2] if len(node.input) > 2 and node.input[2] else None,
    )


def select(linears: Iterable[Linear], spared: Collection[str]) -> list[Linear]:
    """The layers without those that are spared, each by its name or by what its name begins with (`layers.0`).

    Raises:
        LayerNameError: no layer has that name; the message lists those there are.
    """
    linears = list(linears)
    for name in spared:
        if not any(belongs(linear, name) for linear in linears):
            raise LayerNameError(
                f"the graph has no layer {name!r} to keep in higher precision; it has "
                f"{', '.join(linear.name for linear in linears)}"
            )
    return [linear for linear in linears if not any(belongs(linear, name) for name in spared)]


def belongs(linear: Linear, name: str) -> bool:
    """Whether a layer is the named one, or lies in it."""
    return linear.name == name or linear.name.startswith(f"{name}.")


def rewrite(
    model: onnx.ModelProto, linears: Iterable[Linear], make: Callable[[Linear, Constants], list[onnx.NodeProto]]
) -> None:
    """Replaces each given linear layer by the nodes that `make` returns, and drops the constants that fall idle."""
    chosen = {linear.output: linear for linear in linears}
    constants = Constants(model)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        linear = chosen.get(node.output[0])
        nodes += make(linear, constants) if linear else [node]
    exchange_nodes(model, nodes)
