"""`python -m export` to every engine on a small model: what is published, what stays in float32, what is refused."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from transformers import BertForSequenceClassification

from export.builder import EngineBuilder
from export.engines import find_engines
from export.engines.trt import TensorRTEngine
from export.graph.onnx_export import write_click_model
from export.graph.packing import pack
from export.quantize.calibration import calibration_batches
from export.verify.gates import FP32, INT8
from finetune.checkpoint.load import load_tokenizer
from finetune.data.clicklog import read_click_log
from finetune.evaluation.scoring import tokenize_pairs
from release.manifest import read_manifest
from release.names import LOGITS, TENSORRT_INPUTS
from tests.export.command import WIDE, engines, run
from tests.tiny import MAX_LENGTH, make_checkpoint

ENGINES = find_engines()
REDUCED = [name for name, engine in ENGINES.items() if engine.precision != FP32]
HEAD_GATE = re.compile("head|topic|cosine")
TENSORRT = [name for name, engine in ENGINES.items() if isinstance(engine, TensorRTEngine)]


def test_all_engines_are_published_under_one_number_with_what_the_gates_found(published_engines: Path) -> None:
    for engine in ENGINES.values():
        version = published_engines / engine.model / "1"
        proof = read_manifest(version).proof
        assert proof
        assert (proof.engine, proof.precision) == (engine.name, engine.precision)
        assert proof.bytes == (version / "model.onnx").stat().st_size
        names = [gate.figure for gate in engine.gates if not HEAD_GATE.search(gate.name)]  # a plain checkpoint
        assert [gate.name for gate in proof.gate][: len(names)] == names
        assert all(gate.passed for gate in proof.gate)
        assert {"auc", "log_loss", "ece", "ndcg_at_10"} == proof.comparison["metrics"].keys()
        tensorrt = engine.name in TENSORRT
        speed = proof.cpu_pairs_per_second
        assert speed is None if tensorrt else speed and 0 < speed < float("inf")
        assert (version / "gate.npz").exists() == bool(proof.largest_fp16_activations) == tensorrt
        assert not (version / "model.plan").exists(), "there is no GPU to build one on"


@pytest.mark.parametrize("name", REDUCED)
def test_an_engine_scores_nearly_as_fp32_does_whatever_its_neighbours(
    published_engines: Path, published_checkpoint: Path, published_log: Path, name: str
) -> None:
    pairs = tokenize_pairs(load_tokenizer(published_checkpoint), read_click_log(published_log)[:40:4], MAX_LENGTH)
    exact = ENGINES["onnx"].open(published_engines / "clickbert_onnx" / "1" / "model.onnx")(pack([pairs]))[LOGITS]
    compute = ENGINES[name].open(published_engines / ENGINES[name].model / "1" / "model.onnx")
    together = compute(pack([pairs[:4], pairs[4:]]))[LOGITS]
    assert 0 < np.abs(together - exact).mean() < (0.1 if ENGINES[name].precision == INT8 else 0.002)
    alone = np.concatenate([compute(pack([[pair]]))[LOGITS] for pair in pairs])
    # With fixed scales, an answer does not depend on whose pairs are in the batch. FP16 rounds by the order of sums.
    assert np.allclose(together, alone, atol=2e-3 if name in TENSORRT else 1e-5)


@pytest.mark.parametrize("name", REDUCED)
def test_a_malformed_request_harms_only_itself_in_every_engine(published_engines: Path, name: str) -> None:
    compute = ENGINES[name].open(published_engines / ENGINES[name].model / "1" / "model.onnx")
    pair = {"input_ids": [2, 7, 3, 9, 3], "token_type_ids": [0, 0, 0, 1, 1]}
    feed = pack([[pair], [pair, pair], [pair]])
    expected = compute(feed)[LOGITS]
    feed["lengths"][1] += 1
    logits = compute(feed)[LOGITS]
    assert np.isnan(logits[1:3]).all()
    assert np.allclose(logits[[0, 3]], expected[[0, 3]], atol=2e-3)


def test_tensorrt_graphs_have_the_longest_pair_as_a_shape(published_engines: Path) -> None:
    for name in TENSORRT:
        graph = onnx.load(published_engines / ENGINES[name].model / "1" / "model.onnx").graph
        assert tuple(value.name for value in graph.input) == TENSORRT_INPUTS
        operators = {node.op_type for node in graph.node}
        assert not operators & {"ReduceMax", "NonZero", "CumSum", "ScatterElements", "TopK"}
        assert all(node.domain == "" for node in graph.node)


@pytest.mark.parametrize("words", ["embeddings.word_embeddings", "embeddings"])
def test_kept_layers_stay_float32(checkpoint: Path, log: Path, tmp_path: Path, words: str) -> None:
    keep_fp32 = f"layers.1,classifier,{words}"
    options = [*engines("onnx_int8", "trt_int8"), *WIDE, "--keep-fp32", keep_fp32]
    assert run(checkpoint, tmp_path / "repository", log, *options) == 0
    cpu, gpu = (
        onnx.load(tmp_path / "repository" / model / "1" / "model.onnx").graph
        for model in ("clickbert_onnx_int8", "clickbert_trt_int8")
    )
    kinds = {tensor.name: tensor.data_type for tensor in (*cpu.initializer, *gpu.initializer)}
    assert kinds["layers.1.fused_kv.weight"] == kinds["classifier.weight"] == onnx.TensorProto.FLOAT
    assert kinds["embeddings.word_embeddings.weight"] == onnx.TensorProto.FLOAT
    assert kinds["layers.0.fused_qkv.int8"] == onnx.TensorProto.INT8
    assert read_manifest(tmp_path / "repository" / "clickbert_onnx_int8" / "1").keep_fp32 == tuple(keep_fp32.split(","))


@pytest.mark.slow
def test_an_int8_file_has_at_most_30_percent_of_fp32s_size(tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(4000)]
    folder = make_checkpoint(tmp_path / "checkpoint", words=words, hidden_size=128, intermediate_size=512)
    write_click_model(BertForSequenceClassification.from_pretrained(folder).eval(), tmp_path / "model.onnx")
    pairs = [{"input_ids": [2, 9 + n, 3, 7, 3], "token_type_ids": [0, 0, 0, 1, 1]} for n in range(300)]
    builder = EngineBuilder(tmp_path / "model.onnx", MAX_LENGTH, calibration_batches(pairs))
    ENGINES["onnx_int8"].write(builder, tmp_path / "int8.onnx")
    assert (tmp_path / "int8.onnx").stat().st_size <= 0.3 * (tmp_path / "model.onnx").stat().st_size


def test_an_unknown_layer_is_refused_before_anything_is_scored(
    checkpoint: Path, log: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.verify.evaluation.score_rows", lambda *_: pytest.fail("it scored"))
    assert run(checkpoint, tmp_path / "r", log, *engines("onnx_int8"), "--keep-fp32", "layers.9") == 1
    error = capsys.readouterr().err
    assert "no layer 'layers.9'" in error
    assert "layers.1.output.dense" in error
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("engine", "keep_fp32", "message"),
    [
        ("onnx", "layers.0", "layers.0 is float32 anyway"),
        ("trt_int8", "embeddings.word_embeddings", "only onnx_int8 would reduce it"),
    ],
)
def test_keeping_what_no_engine_reduces_is_refused(
    checkpoint: Path, log: Path, tmp_path: Path, capsys, engine: str, keep_fp32: str, message: str
) -> None:
    assert run(checkpoint, tmp_path / "r", log, *engines(engine), "--keep-fp32", keep_fp32) == 1
    assert message in capsys.readouterr().err


def test_a_missing_calibration_log_says_what_to_give(checkpoint: Path, log: Path, tmp_path: Path, capsys) -> None:
    options = ["--calibration", str(tmp_path / "none.jsonl")]
    assert run(checkpoint, tmp_path / "r", log, *engines("onnx_int8"), *options) == 1
    assert "give --calibration, or --engine onnx" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_found_before_the_work(checkpoint: Path, log: Path, tmp_path: Path, capsys):
    assert run(checkpoint, tmp_path / "r", log, *engines("onnx"), "--report", "/proc/nowhere/report.html") == 1
    error = capsys.readouterr().err
    assert "/proc/nowhere" in error
    assert "score" not in error


def test_a_tie_of_zero_gates_on_every_change(checkpoint: Path, log: Path, tmp_path: Path) -> None:
    assert run(checkpoint, tmp_path / "r", log, *engines("onnx_int8"), *WIDE, "--tie", "0") == 0
    proof = read_manifest(tmp_path / "r" / "clickbert_onnx_int8" / "1").proof
    assert proof
    assert proof.comparison["top1_changed_beyond_tie"] == proof.comparison["top1_changed"] > 0


def test_an_engine_left_behind_by_the_tokenizers_is_named(checkpoint: Path, log: Path, tmp_path: Path, capsys) -> None:
    repository = tmp_path / "r"
    assert run(checkpoint, repository, log, *engines("onnx_int8"), *WIDE) == 0
    for _ in range(3):
        assert run(checkpoint, repository, log, *engines("onnx")) == 0
    assert "is too old" not in capsys.readouterr().err
    assert run(checkpoint, repository, log, *engines("onnx")) == 0
    assert (
        "clickbert_onnx_int8 is too old: its tokenizer is no longer served. Export it again." in capsys.readouterr().err
    )


def test_sensitivity_names_the_layers_that_cost_most(checkpoint: Path, log: Path, tmp_path: Path, capsys) -> None:
    assert run(checkpoint, tmp_path / "r", log, *engines("onnx_int8"), *WIDE, "--sensitivity") == 0
    output = capsys.readouterr().out
    assert "error removed" in output
    assert "--keep-fp32 " in output
    assert "layers.0.intermediate.dense" in output
