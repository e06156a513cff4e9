"""Reads a finished graph and reports what TensorRT or ONNX Runtime would reject, or what would harm the ranking.

It does not know how the graph was made: it sees the file, as its readers do.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from release.names import (
    GRAPH_INPUTS,
    HEAD_OUTPUTS,
    KEPT,
    KEPT_INPUTS,
    LOGITS,
    ONCE_GRAPH_INPUTS,
    ONCE_TENSORRT_INPUTS,
    TENSORRT_INPUTS,
)

OPSETS = range(18, 22)  # TensorRT 10 and every current ONNX Runtime read these
QUANTIZES = ("QuantizeLinear", "DequantizeLinear")


class LintError(RuntimeError):
    """A graph breaks a rule. Nothing may be published."""


def lint(model: onnx.ModelProto, *, tensorrt: bool) -> None:
    """Checks the graph's interface, types and quantization.

    Raises:
        LintError: names every broken rule, and the tensor that breaks it.
    """
    graph = Reader(model)
    inputs = (TENSORRT_INPUTS, ONCE_TENSORRT_INPUTS) if tensorrt else (GRAPH_INPUTS, ONCE_GRAPH_INPUTS)
    found = [*interface(graph, inputs), *attention(graph), *quantization(graph)]
    if tensorrt:
        found += [*half_precision(graph)]
    if found:
        raise LintError("; ".join(found))


class Reader:
    """A graph, indexed for the rules: constants, producers, readers, types."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = model.graph.node
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producer = {output: node for node in self.nodes for output in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)
        inferred = onnx.shape_inference.infer_shapes(model).graph
        self.types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        for value in (*inferred.value_info, *inferred.input, *inferred.output):
            self.types[value.name] = value.type.tensor_type.elem_type

    def made_by(self, name: str) -> str:
        """The operator that computes a tensor; empty for a constant or an input."""
        return self.producer[name].op_type if name in self.producer else ""


def interface(graph: Reader, inputs: tuple[tuple[str, ...], ...]) -> list[str]:
    """The opset and the tensors that Triton's config names: int32 in (one of `inputs`), float32 out."""
    found = []
    opset = next((entry.version for entry in graph.model.opset_import if entry.domain == ""), 0)
    if opset not in OPSETS:
        found.append(f"opset {opset} is not one of {OPSETS.start} to {OPSETS.stop - 1}")
    names = tuple(value.name for value in graph.model.graph.input if value.name not in graph.constants)
    if names not in inputs:
        found.append(f"the inputs are {names}, they must be {' or '.join(map(str, inputs))}")
    found += [f"input {name} is not int32" for name in names if graph.types[name] != TensorProto.INT32]
    outputs = [value.name for value in graph.model.graph.output]
    if names == ONCE_GRAPH_INPUTS:
        if outputs[-1] != KEPT or not {*KEPT_INPUTS} <= graph.constants.keys():
            found.append(f"user texts cannot be kept: the last output is {outputs[-1]}, not {KEPT}, or has no input")
        outputs = [name for name in outputs if name != KEPT]
    if outputs != [LOGITS, *(name for name in HEAD_OUTPUTS if name in outputs)]:
        found.append(f"the outputs are {outputs}, they must be {LOGITS} and then any of {HEAD_OUTPUTS}")
    found += [f"the output {name} is not float32" for name in outputs if graph.types[name] != TensorProto.FLOAT]
    return found


def type_and_shape(value: onnx.ValueInfoProto) -> tuple[int, list[int | None]]:
    """The element type and the dimensions of a graph input or output; a dynamic dimension is None."""
    tensor = value.type.tensor_type
    return tensor.elem_type, [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]


def attention(graph: Reader) -> list[str]:
    """No quantization on attention's products: they are MatMul, the linear layers are Gemm or fused."""
    return [
        f"attention's product {node.output[0]} reads the quantized tensor {name}"
        for node in graph.nodes
        if node.op_type == "MatMul"
        for name in node.input
        if graph.made_by(name) in QUANTIZES
    ]


def quantization(graph: Reader) -> list[str]:
    """Q/DQ: zero points 0 where TensorRT reads them, a scale for each output of a weight, every pair complete."""
    found = []
    for node in graph.nodes:
        if node.op_type == "MatMulIntegerToFloat":
            weight, scales = graph.constants.get(node.input[1]), graph.constants.get(node.input[3])
            # ONNX Runtime cannot make weights unsigned that share a zero point (`release.hardware`).
            if any(node.input[5:6]):
                found.append(f"the weight {node.input[1]} has a zero point; it must be around 0 and have none")
            if (
                weight is None
                or scales is None
                or weight.data_type != TensorProto.INT8  # VNNI and AMX multiply no unsigned weights
                or list(scales.dims) != [weight.dims[1]]
            ):
                found.append(f"the weight {node.input[1]} is not int8 with a scale for each of its outputs")
        if node.op_type != "DequantizeLinear":
            continue
        source = graph.producer.get(node.input[0])
        if source is None or source.op_type != "QuantizeLinear" or list(source.input[1:]) != list(node.input[1:]):
            found.append(f"{node.output[0]} is dequantized, but not from its own QuantizeLinear")
            continue
        zero = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
        if zero is None or zero.data_type != TensorProto.INT8 or numpy_helper.to_array(zero).any():
            found.append(f"the zero point of {node.output[0]} is not a constant int8 0")
        if any(reader.op_type != "Gemm" for reader in graph.readers[node.output[0]]):
            found.append(f"{node.output[0]} is dequantized, but not for a linear layer")
        weight_name = source.input[0]
        if weight_name in graph.constants:
            outputs = graph.constants[weight_name].dims[0]
            if {axis_of(source), axis_of(node)} != {0} or list(graph.constants[node.input[1]].dims) != [outputs]:
                found.append(f"the weight {weight_name} has no scale for each of its {outputs} outputs")
        scale = graph.constants.get(node.input[1])
        if scale is None or not (numpy_helper.to_array(scale) > 0).all():
            found.append(f"the scale {node.input[1]} of {node.output[0]} is not a constant over 0")
    return found


def axis_of(node: onnx.NodeProto) -> int:
    """Along which axis a QuantizeLinear or DequantizeLinear has its scales."""
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)


def half_precision(graph: Reader) -> list[str]:
    """FP16 constants are finite, layer norms compute in float32, and no product mixes types."""
    found = [
        f"the layer norm {node.output[0]} reads {name}, which is not float32"
        for node in graph.nodes
        if node.op_type == "LayerNormalization"
        for name in node.input
        if graph.types.get(name) != TensorProto.FLOAT
    ]
    for name, tensor in graph.constants.items():
        if tensor.data_type == TensorProto.FLOAT16 and not np.isfinite(numpy_helper.to_array(tensor)).all():
            found.append(f"the FP16 constant {name} holds NaN or infinity")
    for node in graph.nodes:
        if node.op_type in ("Gemm", "MatMul"):
            kinds = {graph.types.get(name) for name in node.input if name}
            if len(kinds) > 1 or kinds.isdisjoint({TensorProto.FLOAT16, TensorProto.FLOAT}):
                found.append(f"{node.output[0]} mixes types, which strong typing refuses")
    return found
