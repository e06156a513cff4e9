"""`python -m export` to every engine on a small model: what is published, what is keep_fp32, what the gates refuse."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from transformers import BertForSequenceClassification

from export.engines.base import ENGINES, EngineBuilder, runner
from export.graph.onnx_export import write_click_model
from export.graph.packing import pack
from export.quantize.calibration import calibration_batches
from finetune.checkpoint.load import load_tokenizer
from finetune.data.clicklog import read_click_log
from finetune.scoring import tokenize_pairs
from release.manifest import read_manifest
from release.names import TENSORRT_INPUTS
from tests.export.command import WIDE, engines, run
from tests.tiny import MAX_LENGTH, make_checkpoint


@pytest.fixture(scope="module")
def published(checkpoint: Path, log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("all") / "repository"
    assert run(checkpoint, repository, log, *engines(*ENGINES), *WIDE) == 0
    return repository


def test_all_engines_are_published_under_one_number_with_what_the_gates_found(published: Path) -> None:
    for engine in ENGINES.values():
        version = published / engine.model / "1"
        proof = read_manifest(version).proof
        assert proof
        assert proof.engine == engine.name
        assert proof.precision == engine.precision
        assert proof.bytes == (version / "model.onnx").stat().st_size
        assert all(check.passed for check in proof.gate)
        assert {"auc", "log_loss", "ece", "ndcg_at_10"} == proof.comparison["metrics"].keys()
        speed = proof.cpu_pairs_per_second
        assert speed is None if engine.tensorrt else 0 < speed < float("inf")
        assert (version / "gate.npz").exists() == engine.tensorrt
        assert not (version / "model.plan").exists(), "there is no GPU to build one on"
    report = (published.parent / "report.html").read_text(encoding="utf-8")
    assert all(engine.model in report for engine in ENGINES.values())
    assert report.count("data:image/png;base64,") == 2


@pytest.mark.parametrize("name", ["onnx_int8", "trt_fp16", "trt_int8"])
def test_an_engine_scores_nearly_as_fp32_does_whatever_its_neighbours(
    published: Path, checkpoint: Path, log: Path, name: str
) -> None:
    pairs = tokenize_pairs(load_tokenizer(checkpoint), read_click_log(log)[:40:4], MAX_LENGTH)
    exact = runner(ENGINES["onnx"], published / "clickbert_onnx" / "1" / "model.onnx")(pack([pairs]))
    compute = runner(ENGINES[name], published / ENGINES[name].model / "1" / "model.onnx")
    together = compute(pack([pairs[:4], pairs[4:]]))
    assert 0 < np.abs(together - exact).mean() < (0.1 if ENGINES[name].quantized else 0.002)
    alone = np.concatenate([compute(pack([[pair]])) for pair in pairs])
    # Fixed scales: what an answer is does not depend on whose pairs are in the batch. FP16 rounds by the order of sums.
    assert np.allclose(together, alone, atol=2e-3 if ENGINES[name].tensorrt else 1e-5)


@pytest.mark.parametrize("name", ["onnx_int8", "trt_fp16", "trt_int8"])
def test_a_malformed_request_harms_only_itself_in_every_engine(published: Path, name: str) -> None:
    compute = runner(ENGINES[name], published / ENGINES[name].model / "1" / "model.onnx")
    pair = {"input_ids": [2, 7, 3, 9, 3], "token_type_ids": [0, 0, 0, 1, 1]}
    feed = pack([[pair], [pair, pair], [pair]])
    wanted = compute(feed)
    feed["lengths"][1] += 1
    logits = compute(feed)
    assert np.isnan(logits[1:3]).all()
    assert np.allclose(logits[[0, 3]], wanted[[0, 3]], atol=2e-3)


def test_tensorrt_graphs_have_the_longest_pair_as_a_shape(published: Path) -> None:
    for model in ("clickbert_trt_fp16", "clickbert_trt_int8"):
        graph = onnx.load(published / model / "1" / "model.onnx").graph
        assert tuple(value.name for value in graph.input) == TENSORRT_INPUTS
        operators = {node.op_type for node in graph.node}
        assert not operators & {"ReduceMax", "NonZero", "CumSum", "ScatterElements", "TopK"}
        assert all(node.domain == "" for node in graph.node)


def test_spared_layers_stay_float32(checkpoint: Path, log: Path, tmp_path: Path) -> None:
    keep_fp32 = "layers.1,classifier,embeddings.word_embeddings"
    options = [*engines("onnx_int8", "trt_int8"), *WIDE, "--keep-fp32", keep_fp32]
    assert run(checkpoint, tmp_path / "repository", log, *options) == 0
    cpu, gpu = (
        onnx.load(tmp_path / "repository" / model / "1" / "model.onnx").graph
        for model in ("clickbert_onnx_int8", "clickbert_trt_int8")
    )
    kinds = {tensor.name: tensor.data_type for tensor in (*cpu.initializer, *gpu.initializer)}
    assert kinds["layers.1.joint.weight"] == kinds["classifier.weight"] == onnx.TensorProto.FLOAT
    assert kinds["embeddings.word_embeddings.weight"] == onnx.TensorProto.FLOAT
    assert kinds["layers.0.joint.int8"] == onnx.TensorProto.INT8
    assert read_manifest(tmp_path / "repository" / "clickbert_onnx_int8" / "1").keep_fp32 == tuple(keep_fp32.split(","))


def test_an_int8_file_has_at_most_30_percent_of_fp32s_size(tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(4000)]
    folder = make_checkpoint(tmp_path / "checkpoint", words=words, hidden_size=128, intermediate_size=512)
    write_click_model(BertForSequenceClassification.from_pretrained(folder).eval(), tmp_path / "model.onnx")
    pairs = [{"input_ids": [2, 9 + n, 3, 7, 3], "token_type_ids": [0, 0, 0, 1, 1]} for n in range(300)]
    builder = EngineBuilder(tmp_path / "model.onnx", MAX_LENGTH, calibration_batches(pairs))
    builder.make(ENGINES["onnx_int8"], tmp_path / "int8.onnx")
    assert (tmp_path / "int8.onnx").stat().st_size <= 0.3 * (tmp_path / "model.onnx").stat().st_size


def test_an_unknown_layer_is_refused_with_the_names_there_are(
    checkpoint: Path, log: Path, tmp_path: Path, capsys
) -> None:
    assert run(checkpoint, tmp_path / "r", log, *engines("onnx_int8"), "--keep-fp32", "layers.9") == 1
    assert "layers.1.output.dense" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("engine", "keep_fp32", "said"),
    [("onnx", "layers.0", "float32 anyway"), ("trt_int8", "embeddings.word_embeddings", "in onnx_int8 only")],
)
def test_sparing_what_cannot_be_spared_is_refused(
    checkpoint: Path, log: Path, tmp_path: Path, capsys, engine: str, keep_fp32: str, said: str
) -> None:
    assert run(checkpoint, tmp_path / "r", log, *engines(engine), "--keep-fp32", keep_fp32) == 1
    assert said in capsys.readouterr().err


def test_a_missing_calibration_log_says_what_to_give(checkpoint: Path, log: Path, tmp_path: Path, capsys) -> None:
    options = ["--calibration", str(tmp_path / "none.jsonl")]
    assert run(checkpoint, tmp_path / "r", log, *engines("onnx_int8"), *options) == 1
    assert "give --calibration, or --engine onnx" in capsys.readouterr().err


def test_a_failed_export_leaves_no_former_report(checkpoint: Path, log: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("of the export before")
    assert run(checkpoint, tmp_path / "r", log, *engines("onnx"), "--tolerance", "1e-12") == 1
    assert not (tmp_path / "report.html").exists()


def test_a_report_that_cannot_be_written_is_found_before_the_work(checkpoint: Path, log: Path, tmp_path: Path, capsys):
    assert run(checkpoint, tmp_path / "r", log, *engines("onnx"), "--report", "/proc/nowhere/report.html") == 1
    error = capsys.readouterr().err
    assert "/proc/nowhere" in error
    assert "score" not in error


def test_a_tie_of_zero_gates_on_every_exchange(checkpoint: Path, log: Path, tmp_path: Path) -> None:
    assert run(checkpoint, tmp_path / "r", log, *engines("onnx_int8"), *WIDE, "--tie", "0") == 0
    proof = read_manifest(tmp_path / "r" / "clickbert_onnx_int8" / "1").proof
    assert proof
    comparison = proof.comparison
    assert comparison["top1_changed_beyond_tie"] == comparison["top1_changed"] > 0


def test_an_engine_left_behind_by_the_tokenizers_is_named(checkpoint: Path, log: Path, tmp_path: Path, capsys) -> None:
    repository = tmp_path / "r"
    assert run(checkpoint, repository, log, *engines("onnx_int8"), *WIDE) == 0
    for _ in range(3):
        assert run(checkpoint, repository, log, *engines("onnx")) == 0
    assert "not exported along" not in capsys.readouterr().err
    assert run(checkpoint, repository, log, *engines("onnx")) == 0
    assert "clickbert_onnx_int8 was not exported along" in capsys.readouterr().err


def test_sensitivity_names_the_layers_that_cost_most(checkpoint: Path, log: Path, tmp_path: Path, capsys) -> None:
    assert run(checkpoint, tmp_path / "r", log, *engines("onnx_int8"), *WIDE, "--sensitivity") == 0
    output = capsys.readouterr().out
    assert "error mended" in output
    assert "--keep-fp32 " in output
    assert "layers.0.intermediate.dense" in output
