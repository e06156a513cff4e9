"""`python -m export` to every engine on a small model: what is published, what is spared, what the gates refuse."""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import export.engines
import export.fitting
from export.__main__ import main
from export.calibration import Activations
from export.engines import ENGINES, runner
from export.manifest import read_manifest
from export.names import TENSORRT_INPUTS
from export.packing import pack
from finetune.clicklog import read_click_log
from finetune.scoring import load_tokenizer, tokenize_pairs
from tests.tiny import MAX_LENGTH, make_checkpoint, make_click_log

WIDE = (
    "--int8-auc",
    "1",
    "--int8-log-loss",
    "1",
    "--int8-top1",
    "1",
    "--fp16-auc",
    "1",
)  # a random model ranks nothing


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", hidden_size=48, intermediate_size=192)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_click_log(tmp_path_factory.mktemp("log") / "log.jsonl", groups=45)


def run(checkpoint: Path, repository: Path, log: Path, *options: str) -> int:
    paths = {"--checkpoint": checkpoint, "--repository": repository, "--evaluation": log, "--calibration": log}
    paths["--report"] = repository.parent / "report.html"
    return main([*(str(part) for option in paths.items() for part in option), *options])


def engines(*names: str) -> list[str]:
    return [part for name in names for part in ("--engine", name)]


@pytest.fixture(scope="module")
def published(checkpoint: Path, log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("all") / "repository"
    assert run(checkpoint, repository, log, *engines(*ENGINES), *WIDE) == 0
    return repository


def test_all_engines_are_published_under_one_number_with_what_the_gates_found(published: Path) -> None:
    for engine in ENGINES.values():
        version = published / engine.model / "1"
        manifest = read_manifest(version)
        assert manifest["engine"] == engine.name
        assert manifest["precision"] == engine.precision
        assert manifest["bytes"] == (version / "model.onnx").stat().st_size
        assert all(check["passed"] for check in manifest["gate"])
        assert {"auc", "log_loss", "ece", "ndcg_at_10"} == manifest["comparison"]["metrics"].keys()
        assert 0 < manifest["cpu_pairs_per_second"] < float("inf")
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


def test_spared_layers_stay_float32_and_int8_files_are_small(checkpoint: Path, log: Path, tmp_path: Path) -> None:
    spared = "layers.1,classifier,embeddings.word_embeddings"
    options = [*engines("onnx_int8", "trt_int8"), *WIDE, "--keep-fp32", spared]
    assert run(checkpoint, tmp_path / "repository", log, *options) == 0
    cpu, gpu = (
        onnx.load(tmp_path / "repository" / model / "1" / "model.onnx").graph
        for model in ("clickbert_onnx_int8", "clickbert_trt_int8")
    )
    kinds = {tensor.name: tensor.data_type for tensor in (*cpu.initializer, *gpu.initializer)}
    assert kinds["layers.1.joint.weight"] == kinds["classifier.weight"] == onnx.TensorProto.FLOAT
    assert kinds["embeddings.word_embeddings.weight"] == onnx.TensorProto.FLOAT
    assert kinds["layers.0.joint.int8"] == onnx.TensorProto.INT8
    assert read_manifest(tmp_path / "repository" / "clickbert_onnx_int8" / "1")["kept_fp32"] == spared.split(",")


def test_an_unknown_layer_is_refused_with_the_names_there_are(
    checkpoint: Path, log: Path, tmp_path: Path, capsys
) -> None:
    assert run(checkpoint, tmp_path / "r", log, *engines("onnx_int8"), "--keep-fp32", "layers.9") == 1
    assert "layers.1.output.dense" in capsys.readouterr().err


def test_sensitivity_names_the_layers_that_cost_most(checkpoint: Path, log: Path, tmp_path: Path, capsys) -> None:
    assert run(checkpoint, tmp_path / "r", log, *engines("onnx_int8"), *WIDE, "--sensitivity") == 0
    output = capsys.readouterr().out
    assert "error mended" in output
    assert "--keep-fp32 " in output
    assert "layers.0.intermediate.dense" in output


def at_the_median(graph: Path, linears: list, feeds: list) -> dict[str, Activations]:
    """Calibration as somebody might break it: each layer's range ends at the median magnitude of its inputs."""
    found = {}
    for name, seen in RECORD(graph, linears, feeds).items():
        middle = np.median(np.abs(seen.rows), axis=0)
        found[name] = replace(seen, low=-middle, high=middle)
    return found


RECORD = export.engines.record


@pytest.mark.parametrize("name", ["onnx_int8", "trt_int8"])
def test_a_broken_quantization_is_refused_by_the_gate(
    checkpoint: Path, log: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(export.engines, "record", at_the_median)
    monkeypatch.setattr(export.fitting, "CLIPS", (1.0,))
    assert run(checkpoint, tmp_path / "repository", log, *engines("onnx", name)) == 1
    output = capsys.readouterr()
    assert f"{ENGINES[name].model}: share of changed top-1 is" in output.err
    assert "allowed is 0.02" in output.err
    assert "FAILED" in output.out, "the table shows it"
    assert "nothing was published" in output.err
    assert not list((tmp_path / "repository").glob("*/[0-9]*")), "not the engine that passed, either"
    assert "FAILED" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_corrupted_int8_graph_is_refused(
    checkpoint: Path, log: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = (*WIDE, "--int8-top1", "0.3")  # the sound graph passes:
    assert run(checkpoint, tmp_path / "sound", log, *engines("onnx_int8"), *limits) == 0
    make = export.engines.make_int8

    def corrupted(model: onnx.ModelProto, *others: object) -> None:
        make(model, *others)
        scale = next(tensor for tensor in model.graph.initializer if tensor.name == "layers.1.output.dense.scale")
        broken = -onnx.numpy_helper.to_array(scale)
        scale.CopyFrom(onnx.numpy_helper.from_array(broken, scale.name))

    monkeypatch.setattr(export.engines, "make_int8", corrupted)
    assert run(checkpoint, tmp_path / "repository", log, *engines("onnx_int8"), *limits) == 1
    assert "share of changed top-1" in capsys.readouterr().err
    assert not list((tmp_path / "repository").glob("*/[0-9]*"))


def test_too_few_calibration_pairs_are_refused(checkpoint: Path, log: Path, tmp_path: Path, capsys) -> None:
    few = make_click_log(tmp_path / "few.jsonl", groups=5)
    assert run(checkpoint, tmp_path / "r", log, *engines("onnx_int8"), "--calibration", str(few)) == 1
    assert "256 at least" in capsys.readouterr().err


@pytest.mark.parametrize("click", [0, 1])
def test_an_evaluation_file_of_one_class_is_refused(checkpoint: Path, log: Path, tmp_path: Path, capsys, click) -> None:
    rows = [json.loads(line) | {"click": click} for line in log.read_text().splitlines()]
    (tmp_path / "one.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run(checkpoint, tmp_path / "r", log, *engines("onnx_int8"), "--evaluation", str(tmp_path / "one.jsonl")) == 1
    assert ("no click" if click == 0 else "nothing but clicks") in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_disk_that_is_full_half_way_publishes_nothing_and_keeps_the_former_version(
    checkpoint: Path, log: Path, tmp_path: Path, capsys
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs: {mounted.stderr.strip()}")
    try:
        repository = disk / "repository"
        options = [*engines("onnx", "onnx_int8"), *WIDE, "--report", str(tmp_path / "report.html")]
        assert run(checkpoint, repository, log, *options) == 0
        files = sorted(repository.rglob("*"))
        free = shutil.disk_usage(disk).free
        graph = (repository / "clickbert_onnx" / "1" / "model.onnx").stat().st_size
        (disk / "ballast").write_bytes(bytes(max(0, free - graph - 30_000)))  # room for the first graph, not the second
        assert run(checkpoint, repository, log, *options) == 1
        error = capsys.readouterr().err
        assert "No space left" in error
        assert "nothing was published" in error
        assert sorted(repository.rglob("*")) == files
        (disk / "ballast").unlink()
        assert run(checkpoint, repository, log, *options) == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    "option", ["--int8-auc", "--int8-top1", "--int8-log-loss", "--fp16-auc", "--tie", "--tolerance"]
)
@pytest.mark.parametrize("value", ["nan", "0", "-1", "inf"])
def test_a_limit_that_checks_nothing_is_refused(checkpoint: Path, log: Path, tmp_path: Path, option, value) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(checkpoint, tmp_path / "r", log, f"{option}={value}")
