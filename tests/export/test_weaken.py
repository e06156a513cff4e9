"""The graph for TensorRT 8.6: no half precision in its types, the same values."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.cpu import open_on_cpu
from export.weaken import weaken

HALF, FULL = TensorProto.FLOAT16, TensorProto.FLOAT


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return open_on_cpu(model.SerializeToString(), for_gpu=True).run(None, {"x": x})[0]


def make(nodes: list[onnx.NodeProto], **weights: np.ndarray) -> onnx.ModelProto:
    """float32 [rows, 4] -> float32, half precision in between."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["x16"], to=HALF),
            *nodes,
            helper.make_node("Cast", ["y16"], ["y"], to=FULL),
        ],
        "small",
        [helper.make_tensor_value_info("x", FULL, ["rows", 4])],
        [helper.make_tensor_value_info("y", FULL, ["rows", "columns"])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
        value_info=[helper.make_tensor_value_info("x16", HALF, ["rows", 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def linear() -> onnx.ModelProto:
    weight = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float16)
    half = numpy_helper.from_array(np.array([0.5], dtype=np.float16))
    return make(
        [
            helper.make_node("MatMul", ["x16", "weight"], ["product"]),
            helper.make_node("Constant", [], ["half"], value=half),
            helper.make_node("Mul", ["product", "half"], ["y16"]),
        ],
        weight=weight,
    )


def quantized() -> onnx.ModelProto:
    weight = np.random.default_rng(1).integers(-127, 128, size=(4, 3)).astype(np.int8)
    return make(
        [
            helper.make_node("QuantizeLinear", ["x16", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
            helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["w"]),
            helper.make_node("MatMul", ["dq", "w"], ["y16"]),
        ],
        weight=weight,
        scale=np.array(0.03125, dtype=np.float16),
        zero=np.array(0, dtype=np.int8),
    )


def branching() -> onnx.ModelProto:
    """The half-precision constants lie inside the branches of an If."""
    branches = {
        name: helper.make_graph(
            [
                helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array([value], np.float16))),
                helper.make_node("Mul", ["x16", "c"], [f"{name}_out"]),
            ],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", HALF, ["rows", 4])],
        )
        for name, value in (("then", 2.0), ("else", 3.0))
    }
    node = helper.make_node("If", ["yes"], ["y16"], then_branch=branches["then"], else_branch=branches["else"])
    return make([node], yes=np.array(True))


@pytest.mark.parametrize("model", [linear(), quantized(), branching()], ids=["linear", "quantized", "branching"])
def test_no_half_precision_is_left_and_the_values_stay(model: onnx.ModelProto) -> None:
    before = model.SerializeToString()
    weak = weaken(model)
    assert model.SerializeToString() == before
    onnx.checker.check_model(weak, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(weak, strict_mode=True).graph
    types = {value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    assert HALF not in types | {tensor.data_type for tensor in inferred.initializer}
    x = (np.random.default_rng(2).integers(-8, 9, size=(5, 4)) / 4).astype(np.float32)
    assert np.allclose(run(weak, x), run(model, x), atol=2e-2)


def test_int8_weights_and_int32_inputs_stay() -> None:
    weak = weaken(quantized())
    assert {tensor.name: tensor.data_type for tensor in weak.graph.initializer} == {
        "weight": TensorProto.INT8,
        "scale": FULL,
        "zero": TensorProto.INT8,
    }
