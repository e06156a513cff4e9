"""The further heads of a jointly trained checkpoint in every engine: exported, in float32, gated, and harmless."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from onnx import TensorProto
from tritonclient.grpc import model_config_pb2

from export.engines import find_engines
from export.graph.packing import Outputs, pack
from export.graph.session import open_graph
from export.pipeline import calibration_feeds
from export.quantize.calibration import PAIRS
from export.verify.evaluation import choose_texts, read_checkpoint, score_heads
from finetune.data.clicklog import read_click_log
from finetune.evaluation.scoring import tokenize_pairs
from release.manifest import read_manifest
from release.names import CONFIG_FILE, EMBEDDING, HEAD_OUTPUTS, HEADS_JSON, LOGITS, PASSAGE_LOGITS, TOPIC_LOGITS
from tests.export.command import WIDE, engines, run
from tests.tiny import JOINT

ENGINES = find_engines()
WIDTHS = {LOGITS: 1, TOPIC_LOGITS: 3, EMBEDDING: 8, PASSAGE_LOGITS: 1}
PAIR = {"input_ids": [2, 7, 3, 9, 3], "token_type_ids": [0, 0, 0, 1, 1]}


def graph_of(repository: Path, name: str) -> Path:
    return repository / ENGINES[name].model / "1" / "model.onnx"


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_has_the_outputs_in_float32_and_gates_them(joint_engines: Path, name: str) -> None:
    graph = onnx.load(graph_of(joint_engines, name)).graph
    found = {
        value.name: (value.type.tensor_type.elem_type, value.type.tensor_type.shape.dim[1].dim_value)
        for value in graph.output
    }
    assert found == {output: (TensorProto.FLOAT, width) for output, width in WIDTHS.items()}
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer if tensor.name.startswith("heads.")}
    assert set(weights) == {
        f"heads.{head}.{kind}" for head in ("topic", "embedding", "passage") for kind in ("weight", "bias")
    }
    assert set(weights.values()) == {TensorProto.FLOAT}
    proof = read_manifest(graph_of(joint_engines, name).parent).proof
    assert proof
    gates = ENGINES[name].gates
    assert [gate.name for gate in proof.gate][: len(gates)] == [gate.figure for gate in gates]
    heads = proof.comparison["heads"]
    assert heads["max_abs_diff"].keys() == set(HEAD_OUTPUTS)
    assert max(heads["max_abs_diff"].values()) < {"fp32": 1e-4, "fp16": 0.05, "int8": 1}[proof.precision]
    assert heads["least_cosine"] > {"fp32": 0.999999, "fp16": 0.9999, "int8": 0.99}[proof.precision]


@pytest.mark.parametrize("name", ENGINES)
def test_the_published_config_describes_the_graphs_outputs(joint_engines: Path, name: str) -> None:
    text = (joint_engines / ENGINES[name].model / CONFIG_FILE).read_text(encoding="utf-8")
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert {output.name: list(output.dims) for output in config.output} == {
        output: [-1, width] for output, width in WIDTHS.items()
    }
    assert [list(entry.target_name) for entry in config.batch_output] == [[output] for output in WIDTHS]


@pytest.mark.parametrize("name", ENGINES)
def test_a_malformed_request_gets_nan_in_all_outputs_and_harms_only_itself(joint_engines: Path, name: str) -> None:
    compute = ENGINES[name].open(graph_of(joint_engines, name))
    feed = pack([[PAIR], [PAIR, PAIR], [PAIR]])
    expected = compute(feed)
    feed["lengths"][1] += 1
    for output, values in compute(feed).items():
        assert np.isnan(values[1:3]).all()
        assert np.allclose(values[[0, 3]], expected[output][[0, 3]], atol=2e-3)


def test_the_click_is_computed_as_without_further_heads(
    joint_engines: Path, published_engines: Path, joint_checkpoint: Path, published_log: Path
) -> None:
    """Both checkpoints have the same encoder. (INT8 is fitted to other texts where there are heads.)"""
    checkpoint = read_checkpoint(joint_checkpoint, None)
    feed = pack([tokenize_pairs(checkpoint.tokenizer, read_click_log(published_log)[:20], checkpoint.max_length)])
    joint, plain = (open_graph(graph_of(folder, "onnx"))(feed) for folder in (joint_engines, published_engines))
    assert set(plain) == {LOGITS}
    assert np.allclose(joint[LOGITS], plain[LOGITS], atol=1e-5)


def test_the_tokenizer_says_what_the_heads_are(joint_engines: Path, published_engines: Path) -> None:
    def read(repository: Path) -> dict:
        path = repository / "clickbert_tokenizer" / "1" / "model.onnx"
        return json.loads(onnxruntime.InferenceSession(path).run([HEADS_JSON], {})[0].tobytes())

    expected = json.loads(json.dumps(asdict(JOINT)))
    del expected["schema"]
    joint, plain = read(joint_engines), read(published_engines)
    assert joint.pop("expected") == plain.pop("expected"), "of the same log"
    assert joint == expected | {"user_tokens": None}
    assert plain == {
        "topics": [], "several_topics": False, "embedding_size": 0, "passages": None, "user_tokens": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--int8-topic", "0", "--int8-cosine", "0"), "clickbert_onnx_int8: loss of an embedding's cosine is"),
        (("--head-tolerance", "0"), "parity failed at topic_logits, column"),
    ],
)
def test_a_head_that_is_off_is_refused(
    joint_checkpoint: Path, published_log: Path, tmp_path: Path, capsys, options: tuple[str, ...], message: str
) -> None:
    assert run(joint_checkpoint, tmp_path / "r", published_log, *engines("onnx_int8"), *WIDE, *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_the_report_shows_the_heads_of_a_joint_checkpoint_alone(joint_engines: Path, published_engines: Path) -> None:
    folders = (joint_engines, published_engines)
    joint, plain = (folder.with_name(f"{folder.name}.unfinished-report.html") for folder in folders)
    shown = ("topic accuracy", "least cosine", "max |Δ passage_logits|", "topics changed", "further head")
    for text in shown:
        assert text in joint.read_text(encoding="utf-8")
        assert text not in plain.read_text(encoding="utf-8")


def test_the_reference_is_of_texts_and_pairs_as_they_are_asked_for(joint_checkpoint: Path, published_log: Path) -> None:
    checkpoint, rows = read_checkpoint(joint_checkpoint, None), read_click_log(published_log)
    pairs = tokenize_pairs(checkpoint.tokenizer, rows, checkpoint.max_length)
    reference = score_heads(checkpoint, rows, pairs)
    assert reference
    texts = choose_texts(rows)
    assert len(texts) == len(set(texts)) == reference.texts == 256 < len(rows)
    assert {name: values.shape for name, values in reference.outputs.items()} == {
        TOPIC_LOGITS: (256, 3), EMBEDDING: (256, 8), PASSAGE_LOGITS: (256, 1),
    }  # fmt: skip
    assert all(not any(sample["token_type_ids"]) for sample in reference.samples[:256])
    assert all(sample in pairs for sample in reference.samples[256:])
    outputs: Outputs = reference.own(dict.fromkeys(HEAD_OUTPUTS, np.arange(512)[:, None]))
    assert (outputs[EMBEDDING][0], outputs[PASSAGE_LOGITS][0]) == (0, 256)


@pytest.mark.parametrize(
    ("outputs", "texts"), [((TOPIC_LOGITS,), True), ((EMBEDDING,), True), ((PASSAGE_LOGITS,), False), ((), False)]
)
def test_int8_is_fitted_to_single_texts_where_a_head_reads_them(
    joint_checkpoint: Path, log: Path, outputs: tuple[str, ...], texts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, rows = read_checkpoint(joint_checkpoint, None), read_click_log(log)
    monkeypatch.setattr(type(checkpoint.heads), "outputs", outputs)
    read = [length for feed in calibration_feeds(checkpoint, rows) for length in feed["lengths"]]
    assert len(read) == min(len(rows), PAIRS) + (len(choose_texts(rows)) if texts else 0)
