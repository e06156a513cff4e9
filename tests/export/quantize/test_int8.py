"""INT8: the graphs compute what the parameters say, on ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.graph.layer_names import EMBEDDINGS
from export.graph.session import open_on_cpu
from export.quantize.int8 import make_int8, make_qdq, quantize_embeddings
from export.quantize.linears import Linear
from export.quantize.smoothquant import QuantParams, make_params
from tests.export.quantize.layers import SIGNED, dequantized, layers, output, see


def compute(linear: Linear, params: QuantParams, bias: np.ndarray, rows: np.ndarray, *, signed: bool) -> np.ndarray:
    """What a graph of one layer with these parameters makes of rows."""
    inputs = linear.weight.shape[1]
    node = helper.make_node("Gemm", ["x", "layer.weight", "layer.bias"], ["y"], transB=1)
    tensors = {"layer.weight": linear.weight, "layer.bias": bias}
    body = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, len(bias)])],
        [numpy_helper.from_array(values, name) for name, values in tensors.items()],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    make_qdq(model, {"layer": params}) if signed else make_int8(model, {"layer": params}, None)
    session = open_on_cpu(model.SerializeToString(), for_gpu=signed)
    (got,) = session.run(["y"], {"x": rows})
    return got


@SIGNED
@settings(max_examples=40)
@given(layers(), st.sampled_from([(), (0,), (0, 2)]))
def test_the_graph_computes_what_the_parameters_say(signed: bool, some, kept: tuple[int, ...]) -> None:
    linear, seen = some
    bias = np.arange(len(linear.weight), dtype=np.float32)
    places = np.array([place for place in kept if place < linear.weight.shape[1]], dtype=np.int64)
    params = make_params(linear, seen, 0.8, 0.9, places, signed=signed)
    steps = seen.rows / (params.smooth.astype(float) * params.scale)
    assume(np.abs(steps % 1 - 0.5).min() > 1e-4)  # an input halfway between two steps may be rounded to either
    got = compute(linear, params, bias, seen.rows, signed=signed)
    read, weight = dequantized(params, seen.rows, signed=signed)
    sums = np.abs(read) @ np.abs(weight).T + np.abs(seen.rows[:, places]) @ np.abs(params.kept_weight).T
    assert (np.abs(got - output(params, seen.rows, signed=signed) - bias) <= 1e-5 * (sums + bias + 1)).all()


def embed(table: np.ndarray, words: np.ndarray) -> np.ndarray:
    """All rows of a table in 8 bits, which was made for some of its words."""
    name = f"{EMBEDDINGS}.weight"
    body = helper.make_graph(
        [helper.make_node("Gather", [name, "ids"], ["y"])],
        "embeddings",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, table.shape[1]])],
        [numpy_helper.from_array(table, name)],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    quantize_embeddings(model, words)
    assert [tensor.data_type for tensor in model.graph.initializer].count(TensorProto.INT8) == 1
    (got,) = open_on_cpu(model.SerializeToString(), for_gpu=False).run(["y"], {"ids": np.arange(len(table))})
    return got


def test_embeddings_keep_their_small_columns_beside_a_large_one() -> None:
    table = np.random.default_rng(0).normal(size=(50, 32)).astype(np.float32)
    table[:, 7] *= 100
    table[3] = 0
    got = embed(table, np.arange(50))
    assert np.abs(got - table).max() < 0.51 / 127 * np.abs(table).max()
    small = np.delete(np.arange(32), 7)
    assert np.abs(got - table)[:, small].max() < 0.51 / 127 * np.abs(table[:, small]).max()
    assert not got[3].any()


@pytest.mark.parametrize("read", [False, True], ids=["never read", "read once"])
def test_a_word_unlike_the_others_spoils_no_other(read: bool) -> None:
    """A token that was added and never trained: its values are random, and far larger than all others."""
    table = np.random.default_rng(0).normal(size=(500, 64), scale=0.04).astype(np.float32)
    table[9] = np.random.default_rng(1).normal(size=64)
    others = np.delete(np.arange(500), 9)
    got = embed(table, np.array([*others, *[9] * read]))
    by_row = np.abs(table).max(axis=1, keepdims=True) / 127 / 2
    assert (np.abs(got - table)[others] <= 1.5 * by_row[others]).all()
    assert np.abs(got - table)[9].max() < 0.1


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_products_do_not_saturate(sign: int) -> None:
    """255 * 127 + 255 * 127 does not fit 16 bits, in which x86 without VNNI adds two products if it is let."""
    inputs = 64
    weight = np.full((16, inputs), sign, np.float32)
    seen = see(np.vstack([np.zeros(inputs), np.ones(inputs)]).astype(np.float32))
    linear = Linear("layer", "x", "y", weight, None)
    params = make_params(linear, seen, 0.0, 1.0, signed=False)
    assert (params.zero_point, set(params.weight.reshape(-1).tolist())) == (0, {sign * 127})
    got = compute(linear, params, np.zeros(16, np.float32), seen.rows, signed=False)
    assert got[1] == pytest.approx(sign * inputs, rel=1e-3)
