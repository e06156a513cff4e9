"""The linear layers of a packed graph: their names, which of them stay in float32, and how one is replaced."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.engines import find_engines
from export.engines.layers import check_layer_names
from export.graph.layer_names import LayerNameError, belongs
from export.graph.packing import Feed, pack
from export.graph.surgery import Constants, drop_idle
from export.quantize.linears import Linear, find_linears, rewrite
from export.verify.evaluation import read_checkpoint
from release.names import GRAPH_INPUTS, LOGITS
from tests.export.quantize.layers import write_graph
from tests.tiny import make_checkpoint

NAMES = [
    "layers.0.fused_qkv",
    "layers.0.attention_output.dense",
    "layers.0.intermediate.dense",
    "layers.0.output.dense",
    "layers.1.fused_kv",
    "layers.1.query",
    "layers.1.attention_output.dense",
    "layers.1.intermediate.dense",
    "layers.1.output.dense",
    "pooler.dense",
    "classifier",
]
FEED = pack(
    [
        [{"input_ids": [3, 7, 9, 4, 8], "token_type_ids": [0, 0, 1, 1, 1]}],
        [{"input_ids": [5, 6], "token_type_ids": [0, 1]}, {"input_ids": [1, 2, 3], "token_type_ids": [0, 1, 1]}],
    ]
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_graph(tmp_path_factory.mktemp("graph"), make_checkpoint)


@pytest.fixture
def model(source: Path) -> onnx.ModelProto:
    return onnx.load(source)


def run(model: onnx.ModelProto, names: list[str], feed: Feed = FEED) -> list[np.ndarray]:
    """Values of any float tensors of a graph."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(names, feed)


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_layers_are_named_as_in_the_packed_model_in_order(model: onnx.ModelProto) -> None:
    assert [linear.name for linear in find_linears(model)] == NAMES


def test_a_layer_is_what_the_graph_computes(model: onnx.ModelProto) -> None:
    tokens, pairs = len(FEED["input_ids"]), len(FEED["lengths"])
    for linear in find_linears(model):
        read, got = run(model, [linear.input, linear.output])
        expected = read @ linear.weight.T + constants(model)[linear.bias]
        assert np.allclose(got, expected, atol=1e-5), linear.name
        everywhere = linear.name.startswith("layers.0") or linear.name == "layers.1.fused_kv"
        assert len(got) == (tokens if everywhere else pairs), linear.name


def test_attentions_products_are_no_linear_layers(model: onnx.ModelProto) -> None:
    products = [node.output[0] for node in model.graph.node if node.op_type == "MatMul"]
    assert len(products) == 4
    assert not {linear.output for linear in find_linears(model)}.intersection(products)


def kept(*keep_fp32: str, layers: Iterable[str] = NAMES) -> list[str]:
    return [layer for layer in layers if any(belongs(layer, name) for name in keep_fp32)]


def test_layers_are_kept_by_their_name_or_its_beginning() -> None:
    assert kept() == []
    assert kept("classifier") == NAMES[-1:]
    assert kept("pooler") == kept("pooler.dense") == NAMES[-2:-1]
    assert kept("layers.1", "layers.0.output") == NAMES[3:-2]
    assert kept("layers", "pooler", "classifier") == NAMES


def test_a_beginning_ends_at_a_dot() -> None:
    layers = ["layers.1.query", "layers.10.query", "layers.11.output.dense"]
    assert kept("layers.1", layers=layers) == layers[:1]
    assert kept("layers.11.output", layers=layers) == layers[2:]


@pytest.mark.parametrize("name", ["layers.2", "layers.1.quer", "query", "", "Classifier", "layers.1.", "classifier.x"])
def test_an_unknown_layer_is_an_error_that_lists_those_there_are(name: str) -> None:
    engines = find_engines()
    with pytest.raises(LayerNameError, match=f"no layer {name!r}") as caught:
        check_layer_names(["pooler", name], engines.values(), NAMES)
    assert str(caught.value).endswith(", ".join(NAMES))


@given(st.sets(st.sampled_from([*NAMES, "layers", "layers.0", "layers.1.output"])))
def test_every_layer_below_a_kept_name_is_kept(keep_fp32: set[str]) -> None:
    parents = {name: {".".join(name.split(".")[:end]) for end in range(1, 9)} for name in NAMES}
    assert kept(*keep_fp32) == [name for name in NAMES if parents[name] & keep_fp32]


def test_the_names_are_known_before_the_graph_is_built(source: Path) -> None:
    assert sorted(read_checkpoint(source.parent / "checkpoint", None).linear_names) == sorted(NAMES)


def test_rewrite_replaces_the_chosen_layers_alone(model: onnx.ModelProto) -> None:
    chosen = [linear for linear in find_linears(model) if linear.name in ("layers.0.fused_qkv", "classifier")]
    before = constants(model)
    (expected,) = run(model, [LOGITS])

    def halves(linear: Linear, added: Constants) -> list[onnx.NodeProto]:
        weight = added.add(f"{linear.name}.half", linear.weight.T / 2)
        product = helper.make_node("MatMul", [linear.input, weight], [f"{linear.output}.half"])
        twice = helper.make_node("Add", [f"{linear.output}.half"] * 2, [f"{linear.output}.whole"])
        return [product, twice, helper.make_node("Add", [f"{linear.output}.whole", linear.bias], [linear.output])]

    rewrite(model, chosen, halves)
    onnx.checker.check_model(model, full_check=True)
    assert np.allclose(run(model, [LOGITS])[0], expected, atol=1e-5)
    assert [linear.name for linear in find_linears(model)] == [
        n for n in NAMES if n not in ("layers.0.fused_qkv", NAMES[-1])
    ]
    after = constants(model)
    assert before.keys() - after.keys() == {"layers.0.fused_qkv.weight", "classifier.weight"}
    assert after.keys() - before.keys() == {"layers.0.fused_qkv.half", "classifier.half"}


def test_a_constant_is_added_once(model: onnx.ModelProto) -> None:
    count = len(model.graph.initializer)
    added = Constants(model)
    assert added.add("one", np.float32(1)) == added.add("one", np.float32(1)) == "one"
    assert added.add_integers("axes", [0]) == "axes"
    assert added.add("classifier.weight", np.zeros(1)) == "classifier.weight"
    assert len(model.graph.initializer) == count + 2
    assert constants(model)["axes"].dtype == np.int64
    assert constants(model)["classifier.weight"].any()


def test_a_scalar_stays_a_scalar(model: onnx.ModelProto) -> None:
    Constants(model).add("scale", np.array(0.5, dtype=np.float32))  # a vector of one would be a scale for each channel
    assert constants(model)["scale"].shape == ()


def test_idle_nodes_and_constants_are_dropped_and_the_rest_stays_in_order() -> None:
    nodes = [
        helper.make_node("Add", ["x", "shared"], ["a"], name="live 1"),
        helper.make_node("Mul", ["a", "idle constant"], ["b"], name="idle 1"),
        helper.make_node("Mul", ["b", "shared"], ["c"], name="idle 2: reads an idle one"),
        helper.make_node("Split", ["a"], ["d", "e"], name="live 2: one of its outputs is read", num_outputs=2, axis=0),
        helper.make_node("Neg", ["e"], ["y"], name="live 3"),
    ]
    tensors = [
        numpy_helper.from_array(np.ones(2, np.float32), name) for name in ("shared", "idle constant", "nobody's")
    ]
    x, y, noted = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in "xyb")
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], tensors, value_info=[noted]))
    for _ in range(2):  # the second time there is nothing to drop
        drop_idle(model)
        assert [node.name[:6] for node in model.graph.node] == ["live 1", "live 2", "live 3"]
        assert [tensor.name for tensor in model.graph.initializer] == ["shared"]
        assert [value.name for value in model.graph.input] == ["x"]
        assert not model.graph.value_info


def test_a_packed_graph_keeps_all_inputs_and_its_answer(model: onnx.ModelProto) -> None:
    (expected,) = run(model, [LOGITS])
    drop_idle(model)
    onnx.checker.check_model(model, full_check=True)
    assert tuple(value.name for value in model.graph.input) == GRAPH_INPUTS
    assert np.array_equal(run(model, [LOGITS])[0], expected)
