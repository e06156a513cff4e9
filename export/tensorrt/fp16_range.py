"""Measures how close a graph's FP16 tensors come to overflow: the largest magnitude of each, on real pairs.

ONNX Runtime's CPU provider computes FP16 in float32 and rounds, which hides an overflow that a GPU would meet. So this
module watches the same tensors in the float32 graph, where they have the values that FP16 would have to hold.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper
from tqdm import tqdm

from export.graph.packing import Feed, add_longest
from export.graph.session import open_on_cpu
from export.tensorrt.typed_graph import body, float_tensors


def largest_activations(model: onnx.ModelProto, feeds: Sequence[Feed]) -> dict[str, float]:
    """The largest magnitude of every tensor that `to_float16` will make FP16 in `model`; NaN counts as infinite."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = sorted(body(model) & float_tensors(model))
    outputs = [f"{name}.largest" for name in names]
    for name, output in zip(names, outputs, strict=True):
        watched.graph.node.append(helper.make_node("Abs", [name], [f"{name}.magnitude"]))
        watched.graph.node.append(helper.make_node("ReduceMax", [f"{name}.magnitude"], [output], keepdims=0))
    del watched.graph.output[:]
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in outputs)
    session = open_on_cpu(watched.SerializeToString(), for_gpu=True)
    largest = np.zeros(len(names))
    for feed in tqdm(feeds, desc="largest activations", unit="batch", leave=False):
        values = np.array(session.run(outputs, add_longest(feed)), dtype=np.float64)
        largest = np.maximum(largest, np.where(np.isnan(values), np.inf, values))
    return dict(zip(names, largest.tolist(), strict=True))
