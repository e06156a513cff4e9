"""INT8: which pairs it is fitted to, and what is recorded of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.graph.packing import Feed
from export.quantize import calibration
from export.quantize.calibration import FEWEST, CalibrationError, calibration_batches, record, stratify
from export.quantize.linears import find_linears
from release.names import GRAPH_INPUTS


@given(st.lists(st.integers(1, 512), min_size=FEWEST, max_size=1500), st.integers(1, 600))
def test_the_chosen_pairs_cover_all_lengths_evenly(lengths: list[int], count: int) -> None:
    chosen = stratify(lengths, count)
    assert len(chosen) == len(set(chosen)) == min(count, len(lengths))
    found, ordered = [lengths[index] for index in chosen], np.array(sorted(lengths))
    assert found == sorted(found)
    # Each stands for an equal share of the pairs in the order of their lengths: one from the middle of every share.
    for place, length in enumerate(found):
        first, last = (int((place + part) * len(lengths) / len(found)) for part in (0, 1))
        assert ordered[first] <= length <= ordered[min(last, len(lengths) - 1)]


def test_the_few_long_pairs_and_the_few_short_ones_are_among_them() -> None:
    lengths = [2] * 20 + [30] * 4960 + [512] * 20
    found = [lengths[index] for index in stratify(lengths)]
    assert len(found) == calibration.PAIRS
    assert {2, 30, 512} == set(found)


@pytest.mark.parametrize("count", [0, 1, FEWEST - 1])
def test_too_few_pairs_are_refused(count: int) -> None:
    with pytest.raises(CalibrationError, match=f"the calibration log has {count} pairs; INT8 needs 256 at least"):
        calibration_batches([{"input_ids": [1], "token_type_ids": [0]}] * count)


def feeds(count: int = 300) -> list[Feed]:
    chance = np.random.default_rng(0)
    pairs = [
        {"input_ids": [number, *chance.integers(1, 900, size=size).tolist()], "token_type_ids": [0] * (size + 1)}
        for number, size in enumerate(chance.integers(0, 40, size=count))
    ]
    return calibration_batches(pairs)


def test_batches_hold_every_chosen_pair_once_and_pairs_of_similar_length_together() -> None:
    batches = feeds()
    starts = [np.cumsum(feed["lengths"]) - feed["lengths"] for feed in batches]
    firsts = [number for feed, start in zip(batches, starts, strict=True) for number in feed["input_ids"][start]]
    assert sorted(firsts) == list(range(300))
    lengths = np.concatenate([feed["lengths"] for feed in batches])
    assert (np.diff(lengths) >= 0).all()
    assert max(len(feed["lengths"]) for feed in batches) == calibration.PAIRS_A_BATCH


def test_all_single_texts_are_among_the_pairs_by_their_lengths() -> None:
    sizes = [2 + number % 9 for number in range(600)]
    pairs = [{"input_ids": [1] * size, "token_type_ids": [0] + [1] * (size - 1)} for size in sizes]
    texts = [{"input_ids": [number] * 5, "token_type_ids": [0] * 5} for number in range(100, 140)]
    batches = calibration_batches(pairs, texts)
    lengths = np.concatenate([feed["lengths"] for feed in batches])
    assert len(lengths) == calibration.PAIRS + len(texts)
    assert (np.diff(lengths) >= 0).all()
    ids = np.concatenate([feed["input_ids"] for feed in batches])
    assert all((ids == number).sum() == 5 for number in range(100, 140))


def test_what_is_not_finite_is_refused(graph: Path) -> None:
    model = onnx.load(graph)
    (shift,) = (tensor for tensor in model.graph.initializer if tensor.name == "shift")
    shift.CopyFrom(numpy_helper.from_array(np.array(np.nan, np.float32), "shift"))
    onnx.save(model, graph)
    with pytest.raises(CalibrationError, match="is not finite on a calibration pair"):
        record(graph, find_linears(onnx.load(graph)), feeds())


BY_TOKEN, BY_PAIR = np.array([[0.5, -2.0, 0.0]], np.float32), np.array([[-1.0, 3.0]], np.float32)
SHIFT = np.float32(-100)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """Two layers that read a row for each token, and one that reads a row for each pair."""
    nodes = []
    for name, source in (("t", "input_ids"), ("p", "lengths")):
        nodes += [
            helper.make_node("Cast", [source], [f"{name}.float"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", [f"{name}.float", "one"], [f"{name}.column"]),
            helper.make_node("Mul", [f"{name}.column", f"{name}.factors"], [f"{name}.rows"]),
            helper.make_node("Add", [f"{name}.rows", "shift"], [f"{name}.read"]),
        ]
    reads = {"layers.0.fused_qkv": "t.read", "layers.0.query": "t.read", "classifier": "p.read"}
    nodes += [helper.make_node("Gemm", [read, f"{name}.weight"], [name], transB=1) for name, read in reads.items()]
    constants = {"one": np.array([1]), "shift": SHIFT, "t.factors": BY_TOKEN, "p.factors": BY_PAIR}
    constants |= {f"{name}.weight": np.ones((1, 2 + (read == "t.read")), np.float32) for name, read in reads.items()}
    body = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info(name, TensorProto.INT32, [None]) for name in GRAPH_INPUTS],
        [helper.make_tensor_value_info("classifier", TensorProto.FLOAT, [None, 1])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "g.onnx")
    return tmp_path / "g.onnx"


def test_the_ranges_are_those_of_all_pairs_and_the_rows_are_real_ones(graph: Path) -> None:
    batches = feeds()
    seen = record(graph, find_linears(onnx.load(graph)), batches, sample=500)
    assert list(seen) == ["layers.0.fused_qkv", "layers.0.query", "classifier"]
    read = {
        name: np.concatenate([feed[source] for feed in batches]).astype(np.float32)[:, None] * factors + SHIFT
        for name, source, factors in (
            ("layers.0.fused_qkv", "input_ids", BY_TOKEN),
            ("layers.0.query", "input_ids", BY_TOKEN),
            ("classifier", "lengths", BY_PAIR),
        )
    }
    for name, values in read.items():
        assert np.array_equal(seen[name].low, values.min(axis=0)), name
        assert np.array_equal(seen[name].high, values.max(axis=0)), name
        assert set(map(tuple, seen[name].rows)) <= set(map(tuple, values)), name
    assert 500 <= len(seen["layers.0.fused_qkv"].rows) <= 2 * 500 < len(read["layers.0.fused_qkv"])
    assert np.array_equal(seen["classifier"].rows, read["classifier"])  # of one row a pair, none is left out
