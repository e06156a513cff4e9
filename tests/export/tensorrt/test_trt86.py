"""The graph for TensorRT 8.6: no half precision in its types, the same values."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from transformers import BertForSequenceClassification

from export.builder import EngineBuilder
from export.engines import find_engines
from export.graph.onnx_export import write_click_model
from export.graph.packing import add_longest, pack
from export.graph.session import open_on_cpu
from export.tensorrt.trt86 import without_half_types
from tests.tiny import MAX_LENGTH

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
    weak = without_half_types(model)
    assert model.SerializeToString() == before
    onnx.checker.check_model(weak, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(weak, strict_mode=True).graph
    types = {value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    assert HALF not in types | {tensor.data_type for tensor in inferred.initializer}
    x = (np.random.default_rng(2).integers(-8, 9, size=(5, 4)) / 4).astype(np.float32)
    assert np.allclose(run(weak, x), run(model, x), atol=2e-2)


def test_int8_weights_and_int32_inputs_stay() -> None:
    weak = without_half_types(quantized())
    assert {tensor.name: tensor.data_type for tensor in weak.graph.initializer} == {
        "weight": TensorProto.INT8,
        "scale": FULL,
        "zero": TensorProto.INT8,
    }


def count_in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """What TensorRT 8.6 made of the layout's sums on an H100."""
    sums = {node.input[0] for node in model.graph.node if node.op_type == "ReduceSum"}
    counting = onnx.ModelProto()
    counting.CopyFrom(model)
    for node in counting.graph.node:
        if node.op_type == "Cast" and node.output[0] in sums:
            node.attribute[0].i = HALF
    del counting.graph.value_info[:]
    return counting


@pytest.mark.slow
def test_counts_survive_half_precision(checkpoint: Path, tmp_path: Path) -> None:
    """Requests of an odd number of tokens beyond 2,048, which half precision does not know."""
    write_click_model(BertForSequenceClassification.from_pretrained(checkpoint).eval(), tmp_path / "source.onnx")
    builder = EngineBuilder(tmp_path / "source.onnx", MAX_LENGTH, [])
    find_engines()["trt_fp16"].write(builder, tmp_path / "model.onnx")
    typed = onnx.load(tmp_path / "model.onnx")
    chance = random.Random(0)
    requests = [[] for _ in range(4)]
    for request in requests:
        for length in [MAX_LENGTH] * 20 + [chance.randint(3, MAX_LENGTH) for _ in range(12)]:
            ids = [2, *chance.choices(range(5, 150), k=length - 2), 3]
            request.append({"input_ids": ids, "token_type_ids": [0] * length})
    feed = add_longest(pack(requests))
    ends = np.cumsum(feed["token_counts"])
    assert any(end > 2048 and np.float16(end) != end for end in ends)
    weak = without_half_types(typed)
    expected = open_on_cpu(weak.SerializeToString(), for_gpu=True).run(None, feed)[0]
    assert np.isfinite(expected).all()
    digits, plain = (ReferenceEvaluator(count_in_half(model)).run(None, feed)[0] for model in (weak, typed))
    assert np.allclose(digits, expected, atol=1e-4)
    assert np.nanmax(np.abs(plain - expected)) > 0.1, "counts that are not of digits do not"
