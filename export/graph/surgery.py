"""Edits a finished graph: adds constants, replaces nodes, drops what nobody reads any more."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper


class Constants:
    """Adds constants to a graph, each name once."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.names = {tensor.name for tensor in model.graph.initializer}

    def add(self, name: str, values: NDArray[np.generic]) -> str:
        """Adds `values` under `name` unless it is there; returns the name."""
        if name not in self.names:
            self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
            self.names.add(name)
        return name

    def add_integers(self, name: str, values: list[int]) -> str:
        """Adds an int64 vector, as axes and shapes are."""
        return self.add(name, np.array(values, dtype=np.int64))


def exchange_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replaces the graph's nodes, and drops nodes and constants that nobody reads."""
    nodes = list(nodes)  # before the graph's own are gone
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    drop_idle(model)


def drop_idle(model: onnx.ModelProto) -> None:
    """Removes nodes whose outputs nobody reads, then constants that nobody reads."""
    wanted = {value.name for value in model.graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(name for name in node.input if name)
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    constants = [tensor for tensor in model.graph.initializer if tensor.name in wanted]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
    # The exporter's types and shapes, of tensors that may be gone.
    del model.graph.value_info[:]
