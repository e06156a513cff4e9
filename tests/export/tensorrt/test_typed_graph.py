"""The graphs for TensorRT: the longest pair as a shape, and FP16 as a GPU computes it (onnx's reference evaluator).

ONNX Runtime's CPU provider computes FP16 in float32 and rounds, which hides overflows; the evaluator does not.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from transformers import BertForSequenceClassification

from export.__main__ import main
from export.builder import EngineBuilder
from export.engines import find_engines
from export.graph.onnx_export import write_click_model
from export.graph.packing import Feed, add_longest, pack
from export.quantize.calibration import calibration_batches
from export.tensorrt.fp16_range import largest_activations
from export.tensorrt.typed_graph import TypingError, double_queries, take_longest_as_shape, to_float16
from finetune.checkpoint.load import load_tokenizer
from finetune.data.clicklog import read_click_log
from finetune.evaluation.scoring import tokenize_pairs
from release.names import LONGEST, LONGEST_SHAPE
from tests.tiny import MAX_LENGTH, make_checkpoint


@pytest.fixture(scope="module")
def source(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "model.onnx"
    write_click_model(BertForSequenceClassification.from_pretrained(checkpoint).eval(), path)
    return path


@pytest.fixture(scope="module")
def pairs(checkpoint: Path, log: Path) -> list:
    return tokenize_pairs(load_tokenizer(checkpoint), read_click_log(log), MAX_LENGTH)


@pytest.fixture(scope="module")
def feed(pairs: list) -> Feed:
    return pack([pairs[:3], pairs[3:4], pairs[4:9]])


def shaped(source: Path) -> onnx.ModelProto:
    model = onnx.load(source)
    take_longest_as_shape(model, MAX_LENGTH)
    return model


def compute(model: onnx.ModelProto | Path, feed: Feed) -> np.ndarray:
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, feed)[0]


def test_the_longest_pair_as_a_shape_changes_no_logit(source: Path, feed: Feed) -> None:
    assert np.array_equal(compute(shaped(source), add_longest(feed)), compute(source, feed))


def test_no_product_of_attention_has_one_row_and_no_logit_changes(source: Path, feed: Feed) -> None:
    """What TensorRT 8.6 computed wrongly on an H100."""
    model = shaped(source)
    double_queries(model)
    onnx.checker.check_model(model, full_check=True)
    assert np.allclose(compute(model, add_longest(feed)), compute(source, feed), atol=1e-5)
    products = [node.output[0] for node in model.graph.node if node.op_type == "MatMul"]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in products)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert all(min(product.shape[2:]) > 1 for product in session.run(products, add_longest(feed)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [{"num_attention_heads": 1}, {"num_hidden_layers": 1}, {"labels": 3}],
    ids=lambda config: next(iter(config)),
)
def test_queries_are_doubled_in_any_bert(config: dict, log: Path, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", **config)
    write_click_model(BertForSequenceClassification.from_pretrained(checkpoint).eval(), tmp_path / "model.onnx")
    pairs = tokenize_pairs(load_tokenizer(checkpoint), read_click_log(log), MAX_LENGTH)
    feed = pack([pairs[:3], pairs[3:4]])
    model = shaped(tmp_path / "model.onnx")
    double_queries(model)
    assert np.allclose(compute(model, add_longest(feed)), compute(tmp_path / "model.onnx", feed), atol=1e-5)


def test_a_last_layer_with_other_queries_is_refused(source: Path) -> None:
    model = shaped(source)
    double_queries(model)
    with pytest.raises(TypingError, match="expected queries of one row"):
        double_queries(model)


def attention_rows(model: onnx.ModelProto, feed: Feed) -> int:
    """How many positions the padded grid has, by the first scores of attention."""
    scores = next(node.output[0] for node in model.graph.node if node.op_type == "MatMul")
    model.graph.output.append(onnx.ValueInfoProto(name=scores))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (values,) = session.run([scores], feed)
    return int(values.shape[-1])


@pytest.mark.parametrize("form", ["onnx", "tensorrt"])
def test_an_empty_request_takes_those_behind_it_along_and_claims_no_length(
    source: Path, pairs: list, form: str
) -> None:
    """What the exporter and the other form of the longest pair make of it; every case: test_packed_bert.py."""
    batch = [pairs[:3], pairs[3:4], pairs[4:9]]
    expected = compute(source, pack(batch))
    feed = pack(batch)
    own = feed["token_counts"][:2]
    feed["input_ids"] = np.delete(feed["input_ids"], range(own[0], own.sum()))
    feed["token_counts"][1], feed["lengths"][3] = 0, MAX_LENGTH  # the second request claims a long pair, without tokens
    longest = int(feed["lengths"][:3].max())
    model = onnx.load(source)
    if form == "tensorrt":
        model, feed = (
            shaped(source),
            feed | {LONGEST: np.zeros(longest, np.int32), LONGEST_SHAPE: np.zeros(longest, np.int32)},
        )
    logits = compute(model, feed)
    assert np.allclose(logits[:3], expected[:3], atol=1e-5)
    assert np.isnan(logits[3:]).all()
    assert attention_rows(model, feed) == longest


@pytest.mark.parametrize("size", [1, 5, 10_000])
def test_a_wrong_longest_is_answered_with_nan_where_it_is_too_short(source: Path, feed: Feed, size: int) -> None:
    expected = compute(source, feed)
    told = add_longest(feed) | {LONGEST_SHAPE: np.zeros(size, dtype=np.int32)}
    logits = compute(shaped(source), told)
    ends = np.cumsum(feed["pair_counts"])[:-1]
    for own, right, lengths in zip(
        np.split(logits, ends), np.split(expected, ends), np.split(feed["lengths"], ends), strict=True
    ):
        if lengths.max() > size:
            assert np.isnan(own).all()
        else:
            assert np.allclose(own, right, atol=1e-5)


def test_a_graph_without_its_one_maximum_is_refused(source: Path) -> None:
    model = shaped(source)
    with pytest.raises(TypingError, match="this has 0"):
        take_longest_as_shape(model, MAX_LENGTH)


@pytest.mark.parametrize("name", ["trt_fp16", "trt_int8"])
def test_the_fp16_graphs_hold_where_fp16_overflows(source: Path, pairs: list, feed: Feed, tmp_path, name: str) -> None:
    builder = EngineBuilder(source, MAX_LENGTH, calibration_batches(pairs))
    engine = find_engines()[name]
    engine.write(builder, tmp_path / "model.onnx")
    largest = engine.fp16_range(builder, ())
    logits = ReferenceEvaluator(str(tmp_path / "model.onnx")).run(None, add_longest(feed))[0]
    assert logits.dtype == np.float32
    assert np.allclose(logits, compute(source, feed), atol=0.1 if name == "trt_int8" else 0.02)
    assert 10_000 <= max(largest.values()) < 11_000, "the mask is the largest that there is"


def test_what_is_kept_computes_in_float32(source: Path) -> None:
    model = shaped(source)
    to_float16(model, {node.output[0] for node in model.graph.node if "layers.0.fused_qkv.weight" in node.input})
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert kinds["layers.0.fused_qkv.weight"] == onnx.TensorProto.FLOAT
    assert kinds["layers.1.fused_kv.weight.half"] == onnx.TensorProto.FLOAT16
    onnx.checker.check_model(model, full_check=True)


def overflowing(folder: Path) -> Path:
    """A sound model in float32 whose hidden layer exceeds 65504; the layer behind it brings that back."""
    make_checkpoint(folder)
    model = BertForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        layer = model.bert.encoder.layer[0]
        layer.intermediate.dense.weight *= 3e4
        layer.output.dense.weight /= 3e4
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_an_overflow_is_found_that_onnx_runtime_hides(feed: Feed, log: Path, tmp_path: Path, capsys) -> None:
    checkpoint = overflowing(tmp_path / "checkpoint")
    write_click_model(BertForSequenceClassification.from_pretrained(checkpoint).eval(), tmp_path / "model.onnx")
    model = shaped(tmp_path / "model.onnx")
    largest = largest_activations(model, [feed])
    to_float16(model)
    with np.errstate(all="ignore"):
        assert not np.isfinite(ReferenceEvaluator(model).run(None, add_longest(feed))[0]).all(), "a GPU would overflow"
    assert max(largest.values()) > 65504
    paths = ["--checkpoint", checkpoint, "--evaluation", log, "--calibration", log, "--repository", tmp_path / "r"]
    paths += ["--report", tmp_path / "report.html", "--engine", "trt_fp16", "--fp16-auc", "1", "--min-auc", "0"]
    assert main([*map(str, paths)]) == 1
    assert "largest FP16 activation" in capsys.readouterr().err
    assert not list((tmp_path / "r").glob("*/[0-9]*"))
