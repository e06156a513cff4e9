"""What is divided in the values' weights: the same integers, the same logits, one operator less."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from export.graph.packing import Feed, Pair, pack
from export.graph.session import open_on_cpu
from export.quantize.calibration import record
from export.quantize.int8 import MICROSOFT, int8_nodes, make_int8, replace_layers
from export.quantize.linears import find_linears
from export.quantize.smoothquant import QuantParams, make_params
from release.names import LOGITS
from tests.export.quantize.layers import write_graph
from tests.tiny import make_checkpoint, make_once_checkpoint

CONTEXTS = ["layers.0.attention_output.dense", "layers.1.attention_output.dense"]


@pytest.fixture(scope="module", params=[make_checkpoint, make_once_checkpoint], ids=["full", "user_once"])
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_graph(tmp_path_factory.mktemp("graph"), request.param)


def feed(model: onnx.ModelProto, pairs: list[Pair]) -> Feed:
    return pack([pairs], once="user_lengths" in {value.name for value in model.graph.input})


def fitted(graph: Path, kept: tuple[int, ...]) -> dict[str, QuantParams]:
    chance = np.random.default_rng(0)
    pairs: list[Pair] = [
        {"input_ids": chance.integers(0, 30, size).tolist(), "token_type_ids": [0] * 3 + [1] * (size - 3)}
        for size in range(4, 16)
    ]
    model = onnx.load(graph)
    linears = find_linears(model)
    seen = record(graph, linears, [feed(model, pairs)])
    places = np.array(kept, dtype=np.int64)
    return {each.name: make_params(each, seen[each.name], 0.5, 1.0, places, signed=False) for each in linears}


def logits(model: onnx.ModelProto) -> np.ndarray:
    pairs: list[Pair] = [
        {"input_ids": [3, 7, 9, 4, 8], "token_type_ids": [0, 0, 1, 1, 1]},
        {"input_ids": [5, 6], "token_type_ids": [0, 1]},
    ]
    (found,) = open_on_cpu(model.SerializeToString(), for_gpu=False).run([LOGITS], feed(model, pairs))
    return found


def divided(model: onnx.ModelProto) -> list[str]:
    """The layers whose input is multiplied before it is rounded."""
    return [
        name.removesuffix(".inverse") for node in model.graph.node for name in node.input if name.endswith(".inverse")
    ]


def make_both(graph: Path, params: dict[str, QuantParams]) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The graph in INT8 without folding, and with it."""
    plain, folded = onnx.load(graph), onnx.load(graph)
    replace_layers(plain, params, int8_nodes)
    plain.opset_import.append(onnx.helper.make_opsetid(MICROSOFT, 1))
    make_int8(folded, params, None)
    return plain, folded


@pytest.mark.parametrize("kept", [(), (1, 2)])
def test_the_context_is_divided_in_the_values(graph: Path, kept: tuple[int, ...]) -> None:
    params = fitted(graph, kept)
    plain, folded = make_both(graph, params)
    assert set(divided(plain)) - set(divided(folded)) == set(CONTEXTS)
    np.testing.assert_allclose(logits(folded), logits(plain), atol=1e-5)


@pytest.mark.parametrize("missing", ["layers.0.fused_qkv", "layers.0.attention_output.dense"])
def test_it_is_left_where_one_of_the_two_stays_in_floating_point(graph: Path, missing: str) -> None:
    params = fitted(graph, ())
    del params[missing]
    plain, folded = make_both(graph, params)
    assert set(divided(plain)) - set(divided(folded)) == {CONTEXTS[1]}
    np.testing.assert_allclose(logits(folded), logits(plain), atol=1e-5)
