"""The rules of finished graphs: the real ones keep them, and each rule notices when it is broken."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from transformers import BertForSequenceClassification

from export.builder import EngineBuilder
from export.engines import find_engines
from export.engines.trt import TensorRTEngine
from export.graph.layer_names import EMBEDDINGS
from export.graph.lint import LintError, lint
from export.graph.onnx_export import write_click_model
from export.quantize.calibration import calibration_batches
from export.verify.gates import INT8
from tests.tiny import MAX_LENGTH, make_checkpoint

ENGINES = find_engines()
TENSORRT = tuple(name for name, engine in ENGINES.items() if isinstance(engine, TensorRTEngine))
INTEGER = {name for name, engine in ENGINES.items() if engine.precision == INT8}
QDQ = tuple(name for name in TENSORRT if name in INTEGER)
FUSED_QKV = "layers.0.fused_qkv"


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> EngineBuilder:
    folder = tmp_path_factory.mktemp("graph")
    model = BertForSequenceClassification.from_pretrained(make_checkpoint(folder / "checkpoint")).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for vector in filter(lambda values: values.ndim == 1, model.parameters()):
            vector.add_(torch.randn_like(vector), alpha=0.3)  # biases of 0, as an untrained BERT has, are not exported
    write_click_model(model, folder / "model.onnx")
    chance = random.Random(0)
    lengths = [chance.randint(3, MAX_LENGTH) for _ in range(256)]
    pairs = [{"input_ids": chance.choices(range(200), k=size), "token_type_ids": [0] * size} for size in lengths]
    return EngineBuilder(folder / "model.onnx", MAX_LENGTH, calibration_batches(pairs))


@pytest.fixture(scope="module")
def graphs(builder: EngineBuilder) -> dict[str, bytes]:
    """Each engine's graph."""
    folder = builder.source.parent
    for engine in ENGINES.values():
        engine.write(builder, folder / f"{engine.name}.onnx")
    return {name: (folder / f"{name}.onnx").read_bytes() for name in ENGINES}


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_keeps_the_rules(graphs: dict[str, bytes], name: str) -> None:
    model = onnx.load_from_string(graphs[name])
    lint(model, tensorrt=name in TENSORRT)
    assert model.SerializeToString() == graphs[name]
    operators = {node.op_type for node in model.graph.node}  # that there was something to look at
    assert ("DequantizeLinear" in operators) == (name in QDQ)
    assert ("MatMulIntegerToFloat" in operators) == (name in INTEGER.difference(QDQ))
    assert {"MatMul", "LayerNormalization"} <= operators


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("keep_fp32", [("layers.0", EMBEDDINGS), ("layers", "pooler", "classifier")])
def test_an_engine_with_kept_layers_keeps_the_rules(
    builder: EngineBuilder, tmp_path: Path, name: str, keep_fp32: tuple[str, ...]
) -> None:
    ENGINES[name].write(builder, tmp_path / "model.onnx", keep_fp32)
    lint(onnx.load(tmp_path / "model.onnx"), tensorrt=name in TENSORRT)


@pytest.mark.parametrize("name", ENGINES)
def test_a_graph_for_the_other_runtime_has_the_wrong_inputs(graphs: dict[str, bytes], name: str) -> None:
    with pytest.raises(LintError, match=r"the inputs are .*'pair_counts'.*they must be"):
        lint(onnx.load_from_string(graphs[name]), tensorrt=name not in TENSORRT)


def nodes(model: ModelProto, kind: str) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == kind]


def maker(model: ModelProto, output: str) -> NodeProto:
    return next(node for node in model.graph.node if output in node.output)


def constant(model: ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))


def put(model: ModelProto, name: str, values: np.ndarray) -> str:
    """Adds a constant, or exchanges it."""
    others = [tensor for tensor in model.graph.initializer if tensor.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*others, numpy_helper.from_array(values, name)])
    return name


def insert(model: ModelProto, *added: NodeProto) -> None:
    """Adds nodes behind what the first of them reads. Nodes taken from the graph before are copies afterwards."""
    old = list(model.graph.node)
    place = max((old.index(node) + 1 for node in old if set(node.output).intersection(added[0].input)), default=0)
    del model.graph.node[:]
    model.graph.node.extend([*old[:place], *added, *old[place:]])


def fused_qkv(model: ModelProto, side: str) -> tuple[NodeProto, NodeProto]:
    """QuantizeLinear and DequantizeLinear of a layer's "input" or "weight"."""
    dequantize = maker(model, f"linear.{side}")
    return maker(model, dequantize.input[0]), dequantize


def attention_quantized(model: ModelProto) -> None:
    product, scales = nodes(model, "MatMul")[0], fused_qkv(model, "input")[0].input[1:]
    source, product.input[1] = product.input[1], "key"
    insert(
        model,
        helper.make_node("QuantizeLinear", [source, *scales], ["key.steps"]),
        helper.make_node("DequantizeLinear", ["key.steps", *scales], ["key"]),
    )


def dequantized_for_another(model: ModelProto) -> None:
    insert(model, helper.make_node("Neg", ["linear.input"], ["negative"]))


def exchange(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[ModelProto], object]:
    return lambda model: put(model, name, change(constant(model, name)))


def with_one(place: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: np.where(np.arange(len(values)) == place, value, values).astype(values.dtype)


def zero_point_left_out(model: ModelProto) -> None:
    for node in fused_qkv(model, "input"):
        del node.input[2]


def zero_point_computed(model: ModelProto) -> None:
    insert(model, helper.make_node("Identity", [f"{FUSED_QKV}.zero_point"], ["computed"]))
    for node in fused_qkv(model, "input"):
        node.input[2] = "computed"


def one_scale_for_the_weight(model: ModelProto) -> None:
    put(model, f"{FUSED_QKV}.weight_scale.half", constant(model, f"{FUSED_QKV}.weight_scale.half")[:1])
    put(model, f"{FUSED_QKV}.weight_zero_points", np.zeros(1, np.int8))


def scale_for_each_input(model: ModelProto) -> None:
    for node in fused_qkv(model, "weight"):
        node.attribute[0].i = 1  # its axis


def other_axis_before(model: ModelProto) -> None:
    fused_qkv(model, "weight")[0].attribute[0].i = 1


def no_quantize(model: ModelProto) -> None:
    _, dequantize = fused_qkv(model, "weight")
    dequantize.input[0] = put(
        model, "integers", np.zeros(constant(model, f"{FUSED_QKV}.smooth.weight.half").shape, np.int8)
    )


def another_scale_before(model: ModelProto) -> None:
    fused_qkv(model, "input")[0].input[1] = put(model, "other scale", np.array(0.5, np.float16))


def retype(value: onnx.ValueInfoProto, kind: int) -> None:
    value.type.tensor_type.elem_type = kind


def inputs_swapped(model: ModelProto) -> None:
    model.graph.input[0].name, model.graph.input[1].name = "token_type_ids", "input_ids"


def norm_reads_half(model: ModelProto) -> None:
    norm = nodes(model, "LayerNormalization")[1]
    norm.input[0] = maker(model, norm.input[0]).input[0]  # past its cast


def product_mixed(model: ModelProto) -> None:
    product = nodes(model, "MatMul")[0]
    source, product.input[0] = product.input[0], "single query"
    insert(model, helper.make_node("Cast", [source], ["single query"], to=TensorProto.FLOAT))


ALL = tuple(ENGINES)
ZERO = f"{FUSED_QKV}.zero_point"
NO_ZERO = "the zero point of linear.input is not a constant int8 0"
NO_SCALES = f"the weight {FUSED_QKV}.smooth.weight.half has no scale for each of its 96 outputs"
BIAS = f"{FUSED_QKV}.bias.half"
BREAKS: dict[str, tuple[Callable[[ModelProto], object], tuple[str, ...], str]] = {
    "attention quantized": (attention_quantized, QDQ, "attention's product matmul reads the quantized tensor key"),
    "for another": (dequantized_for_another, QDQ, "linear.input is dequantized, but not for a linear layer"),
    "zero point 1": (exchange(ZERO, np.ones_like), QDQ, NO_ZERO),
    "zero point uint8": (exchange(ZERO, np.uint8), QDQ, NO_ZERO),
    "zero point left out": (zero_point_left_out, QDQ, NO_ZERO),
    "zero point computed": (zero_point_computed, QDQ, NO_ZERO),
    "one zero point of a weight": (
        exchange(f"{FUSED_QKV}.weight_zero_points", with_one(7, -3)),
        QDQ,
        "the zero point of linear.weight is not a constant int8 0",
    ),
    "one scale for a weight": (one_scale_for_the_weight, QDQ, NO_SCALES),
    "a scale for each input": (scale_for_each_input, QDQ, NO_SCALES),
    "another axis before": (other_axis_before, QDQ, f"{FUSED_QKV}.smooth.weight.half|linear.weight"),
    "no QuantizeLinear": (no_quantize, QDQ, "linear.weight is dequantized, but not from its own QuantizeLinear"),
    "another scale before": (another_scale_before, QDQ, "linear.input is dequantized, but not from its own Quantize"),
    "scale 0": (
        exchange(f"{FUSED_QKV}.weight_scale.half", with_one(4, 0)),
        QDQ,
        f"{FUSED_QKV}.weight_scale.half|linear.weight",
    ),
    "opset 17": (lambda model: setattr(model.opset_import[0], "version", 17), ALL, "opset 17 is not one of 18 to 21"),
    "opset 22": (lambda model: setattr(model.opset_import[0], "version", 22), ALL, "opset 22 is not one of 18 to 21"),
    "input int64": (lambda model: retype(model.graph.input[2], TensorProto.INT64), ALL, "input lengths is not int32"),
    "input missing": (lambda model: model.graph.input.pop(), ALL, "the inputs are .*, they must be "),
    "inputs swapped": (inputs_swapped, ALL, r"inputs are \('token_type_ids', 'input_ids'.*must be \('input_ids'"),
    "output half": (
        lambda model: retype(model.graph.output[0], TensorProto.FLOAT16),
        ALL,
        "the output logits is not float32",
    ),
    "infinite": (exchange(BIAS, with_one(5, np.inf)), TENSORRT, f"the FP16 constant {BIAS} holds NaN or infinity"),
    "NaN": (exchange(BIAS, with_one(5, np.nan)), TENSORRT, f"the FP16 constant {BIAS} holds NaN or infinity"),
    "norm reads half": (norm_reads_half, TENSORRT, r"the layer norm layer_norm_1 reads \w+, which is not float32"),
    "norm scales half": (
        exchange("layers.0.output.LayerNorm.weight", np.float16),
        TENSORRT,
        r"the layer norm layer_norm_2 reads layers\.0\.output\.LayerNorm\.weight, which is not float32",
    ),
    "bias single": (exchange(BIAS, np.float32), TENSORRT, "linear mixes types"),
    "product mixed": (product_mixed, TENSORRT, "matmul mixes types"),
}


@pytest.mark.parametrize(("case", "name"), [(case, name) for case, (_, names, _) in BREAKS.items() for name in names])
def test_a_broken_rule_is_noticed(graphs: dict[str, bytes], case: str, name: str) -> None:
    change, _, message = BREAKS[case]
    model = onnx.load_from_string(graphs[name])
    change(model)
    with pytest.raises(LintError, match=message):
        lint(model, tensorrt=name in TENSORRT)


@pytest.mark.parametrize(
    ("constant_name", "values"),
    [("int8", lambda old: old.astype(np.uint8)), ("scale", lambda old: old[:1]), ("scale", lambda old: old[:-1])],
)
def test_a_cpu_weight_is_int8_with_a_scale_for_each_output(graphs, constant_name: str, values) -> None:
    model = onnx.load_from_string(graphs["onnx_int8"])
    put(model, f"{FUSED_QKV}.{constant_name}", values(constant(model, f"{FUSED_QKV}.{constant_name}")))
    with pytest.raises(
        LintError, match=f"the weight {FUSED_QKV}.int8 is not int8 with a scale for each of its outputs"
    ):
        lint(model, tensorrt=False)


def test_a_cpu_weight_has_no_zero_point(graphs) -> None:
    model = onnx.load_from_string(graphs["onnx_int8"])
    put(model, "zero", np.array(0, np.int8))
    for node in model.graph.node:
        if node.op_type == "MatMulIntegerToFloat" and node.input[1] == f"{FUSED_QKV}.int8":
            node.input[5] = "zero"
    with pytest.raises(LintError, match=f"the weight {FUSED_QKV}.int8 has a zero point"):
        lint(model, tensorrt=False)


def test_every_broken_rule_is_told_at_once(graphs: dict[str, bytes]) -> None:
    model = onnx.load_from_string(graphs["trt_int8"])
    for case in ("zero point 1", "opset 22", "input int64", "norm reads half", "bias single"):
        BREAKS[case][0](model)
    with pytest.raises(LintError) as caught:
        lint(model, tensorrt=True)
    assert len(str(caught.value).split("; ")) == 5
