"""`python -m export` on real files: every kind of BERT checkpoint, the refusals, and what a version holds."""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import BertForSequenceClassification

import export.pipeline
from export.__main__ import main
from export.graph.onnx_export import GraphError, check_click_model
from export.publish import TEMPLATES
from finetune.checkpoint.heads import Heads
from release.manifest import read_manifest
from release.names import CLICK_LABEL, GRAPH_INPUTS, LOGITS
from tests.tiny import CHINESE, MAX_LENGTH, WORDS, make_checkpoint, make_click_log


def run(checkpoint: Path, repository: Path, evaluation: Path, *options: str) -> int:
    """`python -m export`, of the fp32 engine alone unless the options say otherwise."""
    report = evaluation.parent / "report.html"
    paths = ("--checkpoint", checkpoint, "--repository", repository, "--evaluation", evaluation, "--report", report)
    engine = [] if "--engine" in options else ["--engine", "onnx"]
    return main([*map(str, paths), "--min-auc", "0", *engine, *options])


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        {"labels": 1},
        {"labels": 2, "lower_case": False},
        {"labels": 4, "words": CHINESE},
        {"labels": 1, "hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 3, "hidden_act": "gelu_new"},
        {"labels": 1, "num_hidden_layers": 1, "type_vocab_size": 3},
    ],
    ids=["one label", "two labels, cased", "four labels, Chinese", "another size", "one layer"],
)
def test_any_bert_is_exported_proved_and_published(tmp_path: Path, kind: dict, capsys: pytest.CaptureFixture) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", **kind)
    log = make_click_log(tmp_path / "log.jsonl", words=kind.get("words", WORDS))
    assert run(checkpoint, tmp_path / "repository", log) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["version"] == 1
    ((model, found),) = result["models"].items()
    assert model == "clickbert_onnx"
    assert 0 < found["parity"]["max_abs_diff"] <= 1e-4
    assert found["parity"]["pairs"] == found["comparison"]["pairs"] == len(log.read_text().splitlines())

    version = tmp_path / "repository" / "clickbert_onnx" / "1"
    manifest = read_manifest(version)
    assert manifest.proof
    assert json.loads(json.dumps(asdict(manifest.proof))) == found
    assert manifest.files == {"model.onnx": hashlib.sha256((version / "model.onnx").read_bytes()).hexdigest()}
    assert len(manifest.labels) == kind["labels"]
    assert (manifest.model, manifest.version, manifest.checkpoint.name) == ("clickbert_onnx", 1, "checkpoint")
    assert {"python", "torch", "onnxruntime"} <= manifest.tools.keys()
    tokenizer = read_manifest(tmp_path / "repository" / "clickbert_tokenizer" / "1")
    assert (tokenizer.proof, tokenizer.checkpoint) == (None, manifest.checkpoint)

    constants = onnxruntime.InferenceSession(tmp_path / "repository" / "clickbert_tokenizer" / "1" / "model.onnx")
    served = dict(zip([value.name for value in constants.get_outputs()], constants.run(None, {}), strict=True))
    text = served["tokenizer_json"].tobytes()
    assert (
        served["tokenizer_sha256"].tobytes().decode() == hashlib.sha256(text).hexdigest() == manifest.tokenizer_sha256
    )
    assert served["max_length"] == [MAX_LENGTH]
    assert json.loads(served["labels_json"].tobytes()) == list(manifest.labels)
    assert manifest.labels[served["click_label"][0]] == "click"
    assert json.loads(text)["truncation"] is None
    assert manifest.expected
    assert tokenizer.expected is None
    assert json.loads(served["heads_json"].tobytes())["expected"] == manifest.expected.of_inputs()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_click_log(tmp_path_factory.mktemp("log") / "log.jsonl")


def pickle_only(folder: Path) -> None:
    weights = BertForSequenceClassification.from_pretrained(folder).state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def not_bert(folder: Path) -> None:
    change(folder / "config.json", model_type="roberta")


def nan_weight(folder: Path) -> None:
    model = BertForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[3, 3] = float("nan")
    model.save_pretrained(folder)


def cuts_left(folder: Path) -> None:
    change(folder / "tokenizer_config.json", truncation_side="left")


def no_types(folder: Path) -> None:
    shutil.rmtree(folder)
    make_checkpoint(folder, type_vocab_size=1)


def short(folder: Path) -> None:
    change(folder / "tokenizer_config.json", model_max_length=12)


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (pickle_only, "pickled"),
        (not_bert, "roberta"),
        (nan_weight, r"bert.encoder.layer.1.output.dense.weight"),
        (cuts_left, "truncation_side"),
        (no_types, "token types 0 and 1"),
        (short, "16 are the least"),
    ],
)
def test_a_checkpoint_that_cannot_be_served_is_refused(tmp_path: Path, log: Path, capsys, spoil, message: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    spoil(checkpoint)
    assert run(checkpoint, tmp_path / "repository", log) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "nothing was published" in error
    assert not list((tmp_path / "repository").glob("*/1"))


@pytest.mark.slow
def test_the_label_that_means_a_click_ranks_wherever_it_stands(tmp_path: Path) -> None:
    """The same model twice, its two labels swapped: both exports rank by the click."""
    log = make_click_log(tmp_path / "log.jsonl")
    auc = {}
    for labels in (["clicked", "not clicked"], ["not clicked", "clicked"]):
        checkpoint = make_checkpoint(tmp_path / labels[0] / "checkpoint", labels=2)
        model = BertForSequenceClassification.from_pretrained(checkpoint)
        if auc:
            with torch.no_grad():
                model.classifier.weight.copy_(model.classifier.weight.flip(0))
                model.classifier.bias.copy_(model.classifier.bias.flip(0))
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: index for index, label in enumerate(labels)}
        model.save_pretrained(checkpoint)
        assert run(checkpoint, tmp_path / labels[0] / "repository", log) == 0
        version = tmp_path / labels[0] / "repository" / "clickbert_tokenizer" / "1"
        manifest = read_manifest(version)
        (served,) = onnxruntime.InferenceSession(version / "model.onnx").run([CLICK_LABEL], {})
        assert served[0] == manifest.click_label == labels.index("clicked")
        auc[labels[0]] = manifest.evaluation.pytorch_metrics["auc"]
    assert auc["clicked"] == pytest.approx(auc["not clicked"])
    assert auc["clicked"] != pytest.approx(0.5), "so that the reverse order has another AUC"


def test_a_failed_proof_publishes_nothing(tmp_path: Path, log: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    write = export.pipeline.write_click_model

    def corrupted(model: BertForSequenceClassification, path: Path, heads: Heads, *, by_shapes: bool) -> None:
        write(model, path, heads, by_shapes=by_shapes)
        graph = onnx.load(path)
        weight = next(tensor for tensor in graph.graph.initializer if tensor.name == "classifier.weight")
        weight.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.001), weight.name)
        )
        onnx.save(graph, path)

    monkeypatch.setattr(export.pipeline, "write_click_model", corrupted)
    assert run(checkpoint, tmp_path / "repository", log) == 1
    error = capsys.readouterr().err
    assert "parity failed at pair" in error
    assert "tolerance 0.0001" in error
    assert "this does not look like rounding" in error
    assert not list((tmp_path / "repository").glob("*/1"))
    assert not list((tmp_path / "repository").glob("*/.staging*"))


def test_an_evaluation_file_without_clicks_is_refused(tmp_path: Path, capsys) -> None:
    rows = [json.dumps({"group": "g", "query": "w1", "document": f"w{n}", "click": 0}) for n in range(4)]
    (tmp_path / "log.jsonl").write_text("\n".join(rows))
    assert run(make_checkpoint(tmp_path / "checkpoint"), tmp_path / "repository", tmp_path / "log.jsonl") == 1
    assert "no click" in capsys.readouterr().err


def test_a_missing_evaluation_file_is_refused(tmp_path: Path, capsys) -> None:
    assert run(make_checkpoint(tmp_path / "checkpoint"), tmp_path / "repository", tmp_path / "none.jsonl") == 1
    assert "none.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("tolerance", ["nan", "inf", "-1"])
def test_a_tolerance_that_checks_nothing_is_refused(tmp_path: Path, log: Path, tolerance: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, tmp_path, log, f"--tolerance={tolerance}")


def test_a_graph_with_other_tensors_is_refused(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Identity", ["input_ids"], [LOGITS])
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "g", [value("input_ids", onnx.TensorProto.INT32, ["n"])], [value(LOGITS, onnx.TensorProto.INT32, ["n"])]
    )
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(GraphError, match="they must be"):
        check_click_model(tmp_path / "model.onnx", {LOGITS: 1})
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(GraphError, match="not a valid ONNX graph"):
        check_click_model(tmp_path / "model.onnx", {LOGITS: 1})


def test_the_templates_in_git_name_the_tensors_of_the_graph() -> None:
    text = (TEMPLATES / "clickbert_onnx" / "config.pbtxt").read_text()
    assert all(f'"{name}"' in text for name in (*GRAPH_INPUTS, LOGITS))
