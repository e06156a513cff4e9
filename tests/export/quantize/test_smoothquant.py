"""INT8: which pairs it is fitted to, what is recorded of them, and how near the integers come to each layer."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.graph.layer_names import EMBEDDINGS
from export.graph.packing import Feed
from export.graph.session import open_on_cpu
from export.quantize import calibration
from export.quantize.calibration import FEWEST, Activations, CalibrationError, calibration_batches, record, stratify
from export.quantize.int8 import make_int8, make_qdq
from export.quantize.linears import Linear, find_linears
from export.quantize.smoothquant import ALPHAS, CLIPS, QuantParams, fit, make_params, measure
from release.names import GRAPH_INPUTS

SIGNED = pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])


@settings(deadline=None)
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


def dequantized(params: QuantParams, rows: np.ndarray, *, signed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Inputs / smooth and weight * smooth, as the integers give them back, in float64."""
    first, last = (-127, 127) if signed else (0, 255)
    steps = np.rint(rows / (params.smooth.astype(float) * params.scale)) + params.zero_point
    inputs = (np.clip(steps, first, last) - params.zero_point) * params.scale
    return inputs, params.weight * params.weight_scale.astype(float)[:, None]


def layer(weight: np.ndarray) -> Linear:
    return Linear("layer", "x", "y", weight.astype(np.float32), None)


def see(rows: np.ndarray) -> Activations:
    rows = rows.astype(np.float32)
    return Activations(rows.min(axis=0), rows.max(axis=0), rows)


@st.composite
def layers(draw: st.DrawFn) -> tuple[Linear, Activations]:
    """Any layer and what it reads: channels of very different sizes, off centre, some dead."""
    chance = np.random.default_rng(draw(st.integers(0, 2**32)))
    outputs, inputs, rows = draw(st.integers(1, 8)), draw(st.integers(1, 12)), draw(st.integers(1, 40))
    spread = draw(st.floats(0, 2))
    sizes, centres = 10 ** chance.uniform(-spread, spread, (2, inputs))
    read = (chance.normal(size=(rows, inputs)) + draw(st.sampled_from([0, -3, 3])) * centres) * sizes
    weight = chance.normal(size=(outputs, inputs)) * 10 ** chance.uniform(-spread, 0, (outputs, 1))
    if draw(st.booleans()):
        read[:, chance.integers(inputs)] = draw(st.sampled_from([0.0, 1.0, -1.0]))
    if draw(st.booleans()):
        weight[chance.integers(outputs)] = 0
    if draw(st.booleans()):
        weight[:, chance.integers(inputs)] = 0
    return layer(weight), see(read)


@settings(deadline=None, max_examples=300)
@given(layers(), st.sampled_from(ALPHAS), st.sampled_from(CLIPS), st.booleans())
def test_the_product_is_as_near_as_its_steps_imply(some, alpha: float, clip: float, signed: bool) -> None:
    linear, seen = some
    params = make_params(linear, seen, alpha, clip, signed=signed)
    assert params.zero_point == 0 if signed else 0 <= params.zero_point <= 255
    assert params.weight.dtype == np.int8
    assert np.abs(params.weight.astype(int)).max() <= 127
    assert params.scale > 0
    assert all((values > 0).all() and np.isfinite(values).all() for values in (params.smooth, params.weight_scale))
    inputs, weight = dequantized(params, seen.rows, signed=signed)
    real_inputs, real_weight = seen.rows / params.smooth.astype(float), linear.weight * params.smooth.astype(float)
    ends = [(step - params.zero_point) * params.scale for step in ((-127, 127) if signed else (0, 255))]
    cut = np.abs(real_inputs - np.clip(real_inputs, *ends))
    if clip == 1:
        assert cut.max() <= 0.51 * params.scale  # the zero point is a whole step
    input_error = cut + params.scale * 0.501
    weight_error = params.weight_scale[:, None] * 0.501
    bound = input_error @ np.abs(weight).T + np.abs(real_inputs) @ np.broadcast_to(weight_error, weight.shape).T
    expected = seen.rows.astype(float) @ linear.weight.T.astype(float)
    assert np.allclose(real_inputs @ real_weight.T, expected)
    assert (np.abs(inputs @ weight.T - expected) <= bound).all()


@settings(deadline=None, max_examples=100)
@given(layers(), st.booleans())
def test_the_best_parameters_are_taken_and_their_error_is_true(some, signed: bool) -> None:
    linear, seen = some
    best = fit(linear, seen, signed=signed)
    expected = seen.rows @ linear.weight.T
    steps = seen.rows / (best.smooth.astype(float) * best.scale)
    assume(np.abs(steps % 1 - 0.5).min() > 1e-4)  # halfway between two steps float32 and float64 may round otherwise
    inputs, weight = dequantized(best, seen.rows, signed=signed)
    right = float(np.sqrt((expected.astype(float) ** 2).mean()))
    change = float(np.sqrt(((inputs @ weight.T - expected) ** 2).mean()))
    assert best.error * right == pytest.approx(change, rel=0.02, abs=1e-5 * right)
    for alpha, clip in product(ALPHAS, CLIPS):  # the first is plain max calibration
        other = make_params(linear, seen, alpha, clip, signed=signed)
        assert best.error <= measure(other, seen.rows, expected, max(right**2, 1e-12), signed=signed).error * 1.001


@SIGNED
@pytest.mark.parametrize("read", [0.0, 5.0, -5.0, 1e-9])
@pytest.mark.parametrize("weighs", [0.0, 1.0])
def test_constants_and_zeros_divide_nothing_by_zero(read: float, weighs: float, signed: bool) -> None:
    with np.errstate(divide="raise", invalid="raise", over="raise"):
        params = fit(layer(np.full((2, 3), weighs)), see(np.full((4, 3), read)), signed=signed)
    assert params.error <= 0.01
    assert np.isfinite(params.smooth).all()


def test_what_is_dead_or_constant_still_fits_fp16_for_tensorrt() -> None:
    chance = np.random.default_rng(0)
    weight, rows = chance.normal(size=(16, 32)) / sizes(), chance.normal(size=(400, 32)) * sizes()
    weight[3] = rows[:, 7] = 0  # an output without weights, an input that is always 0
    for linear, seen in ((layer(weight), see(rows)), (layer(weight), see(np.zeros((400, 32))))):
        for params in [fit(linear, seen, signed=True), *(make_params(linear, seen, a, 1, signed=True) for a in ALPHAS)]:
            for values in (params.weight_scale, np.array(params.scale), 1 / params.smooth):
                half = values.astype(np.float16)
                assert ((half > 0) & np.isfinite(half)).all(), params.alpha  # it refuses a scale of 0


def sizes(inputs: int = 32) -> np.ndarray:
    """One channel a hundred times as large as the others."""
    return np.where(np.arange(inputs) == 5, 100.0, 1.0)


@SIGNED
def test_smoothing_helps_where_one_channel_is_far_larger(signed: bool) -> None:
    chance = np.random.default_rng(0)
    linear, seen = layer(chance.normal(size=(16, 32)) / sizes()), see(chance.normal(size=(400, 32)) * sizes())
    best, plain = fit(linear, seen, signed=signed), fit_plain(linear, seen, signed=signed)
    assert best.alpha > 0
    assert best.error < plain.error / 3
    assert best.smooth[5] > 5 * np.delete(best.smooth, 5).max()


@SIGNED
def test_a_rare_extreme_is_clipped(signed: bool) -> None:
    chance = np.random.default_rng(0)
    rows = chance.uniform(-1, 1, size=(20000, 16))
    rows[7, 3], rows[9, 4] = 1.3, -1.3
    linear = layer(chance.normal(size=(4, 16)))
    best = fit(linear, see(rows), signed=signed)
    assert best.clip < 1
    assert best.error < fit_plain(linear, see(rows), signed=signed).error


def fit_plain(linear: Linear, seen: Activations, *, signed: bool) -> QuantParams:
    expected = seen.rows @ linear.weight.T
    return measure(
        make_params(linear, seen, 0.0, 1.0, signed=signed), seen.rows, expected, (expected**2).mean(), signed=signed
    )


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
    make_qdq(model, {"layer": params}) if signed else make_int8(model, {"layer": params}, [EMBEDDINGS])
    session = open_on_cpu(model.SerializeToString(), for_gpu=signed)
    (got,) = session.run(["y"], {"x": rows})
    return got


@SIGNED
@settings(deadline=None, max_examples=40)
@given(layers())
def test_the_graph_computes_what_the_parameters_say(signed: bool, some) -> None:
    linear, seen = some
    bias = np.arange(len(linear.weight), dtype=np.float32)
    params = fit(linear, seen, signed=signed)
    got = compute(linear, params, bias, seen.rows, signed=signed)
    read, weight = dequantized(params, seen.rows, signed=signed)
    # An input halfway between two steps may be rounded to either.
    off = params.scale * np.abs(weight).max() + 1e-4 * np.abs(read @ weight.T).max() + 1e-6
    assert np.allclose(got, read @ weight.T + bias, atol=off)


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
