"""INT8: what is chosen for a layer, and that its error is the one it says."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import export.quantize.fit
from export.engines import find_engines
from export.quantize.fit import ALPHAS, CLIPS, fit
from export.quantize.linears import Linear, find_linears
from export.quantize.rounding import round_to_nearest
from export.quantize.smoothquant import make_params, measure, sizes, without
from tests.export.command import SOUND, engines, run
from tests.export.quantize.layers import SIGNED, best_to_the_nearest, layer, layers, output, see


@settings(max_examples=100)
@given(layers(), st.booleans())
def test_the_best_parameters_are_taken_and_their_error_is_true(some, signed: bool) -> None:
    linear, seen = some
    best = fit(linear, seen, signed=signed)
    expected = seen.rows @ linear.weight.T
    steps = seen.rows / (best.smooth.astype(float) * best.scale)
    assume(np.abs(steps % 1 - 0.5).min() > 1e-4)  # halfway between two steps float32 and float64 may round otherwise
    change = np.linalg.norm(output(best, seen.rows, signed=signed) - expected, axis=1) / sizes(expected)
    assert best.error == pytest.approx(np.sqrt((change**2).mean()), rel=0.02, abs=1e-5)
    for alpha, clip in product(ALPHAS, CLIPS):  # the first is plain max calibration
        other = make_params(linear, seen, alpha, clip, signed=signed)
        assert best.error <= measure(other, seen.rows, expected, signed=signed).error * 1.001


def massive(rows: int = 600, inputs: int = 64, places: tuple[int, ...] = (9,)) -> tuple[Linear, np.ndarray]:
    """A layer as MiniLM has them: in a few rows some inputs are huge, and so is their weight to one output."""
    chance = np.random.default_rng(0)
    weight, read = chance.normal(size=(32, inputs)), chance.normal(size=(rows, inputs))
    for place in places:
        weight[3, place] = 80
        read[::50, place] = 30
    return layer(weight), read


@SIGNED
@pytest.mark.parametrize("places", [(9,), (9, 20), (1, 9, 20, 40)])
def test_inputs_that_spoil_the_others_stay_in_float32(signed: bool, places: tuple[int, ...]) -> None:
    linear, rows = massive(places=places)
    best = fit(linear, see(rows), signed=signed)
    assert best.kept.tolist() == list(places)
    assert not best.weight[:, best.kept].any()
    assert np.array_equal(best.kept_weight, linear.weight[:, best.kept])
    assert best.error < best_to_the_nearest(linear, rows, signed=signed).error / 2


@SIGNED
def test_none_stays_in_float32_where_none_is_special(signed: bool) -> None:
    linear, rows = massive(places=())
    assert fit(linear, see(rows), signed=signed).kept.size == 0


@SIGNED
def test_rounding_together_helps_beyond_the_calibration_rows(signed: bool) -> None:
    chance = np.random.default_rng(0)
    mix = chance.normal(size=(12, 96))
    rows, others = (chance.normal(size=(2000, 12)) @ mix + chance.normal(size=(2000, 96)) / 10 for _ in range(2))
    linear = layer(chance.normal(size=(24, 96)))
    best = fit(linear, see(rows), signed=signed)
    smoothed = without(linear.weight, best.kept) * best.smooth
    nearest = replace(best, weight=round_to_nearest(smoothed, best.weight_scale))
    read = others.astype(np.float32)
    apart, together = (measure(each, read, read @ linear.weight.T, signed=signed).error for each in (nearest, best))
    assert together < 0.95 * apart


@SIGNED
def test_rounding_together_is_left_where_it_would_help_the_calibration_rows_alone(signed: bool) -> None:
    """Independent inputs, and fewer rows than inputs: what the rows have in common is chance."""
    chance = np.random.default_rng(0)
    linear, rows = layer(chance.normal(size=(24, 256))), chance.normal(size=(128, 256))
    best = fit(linear, see(rows), signed=signed)
    smoothed = without(linear.weight, best.kept) * best.smooth
    assert np.array_equal(best.weight, round_to_nearest(smoothed, best.weight_scale))


@pytest.mark.parametrize("name", ["onnx_int8", "trt_int8"])
def test_a_whole_graph_with_such_inputs_in_every_layer_is_exported_and_ranks_as_fp32(
    checkpoint: Path, published_log: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.quantize.fit, "WORTH", np.inf)
    assert run(checkpoint, tmp_path, published_log, *engines("onnx", name), *SOUND) == 0
    folder = tmp_path / find_engines()[name].model / "1"
    graph = onnx.load(folder / "model.onnx")
    layers = find_linears(onnx.load(tmp_path / find_engines()["onnx"].model / "1" / "model.onnx"))
    kept = {t.name: t for t in graph.graph.initializer if t.name.endswith(".kept")}
    assert kept.keys() == {f"{linear.name}.kept" for linear in layers}
    assert {tuple(tensor.dims) for tensor in kept.values()} == {(4,)}
