"""Graphs with a mistake that only one gate can see."""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from release.names import KEPT


def spoil(graph: Path, target: Path, factor: float) -> Path:
    """The graph with its output KEPT times `factor`."""
    model = onnx.load(graph)
    for node in model.graph.node:
        node.output[:] = ["sound" if name == KEPT else name for name in node.output]
    model.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), "factor"))
    model.graph.node.append(helper.make_node("Mul", ["sound", "factor"], [KEPT]))
    onnx.save(model, target)
    return target
