"""TensorRT's graphs of a checkpoint whose user text is computed once, as a GPU computes FP16 (onnx's own evaluator)."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from transformers import BertForSequenceClassification

from export.builder import EngineBuilder
from export.engines import find_engines
from export.graph.lint import lint
from export.graph.onnx_export import write_click_model
from export.graph.packing import Feed, Pair, add_longest, pack
from export.graph.session import open_graph, open_on_cpu
from export.quantize.calibration import calibration_batches
from export.tensorrt.trt86 import without_half_types
from release.names import LOGITS, ONCE_TENSORRT_INPUTS
from tests.export.graph.packed.once_batches import pair, words
from tests.export.tensorrt.test_trt86 import count_in_half
from tests.tiny import MAX_LENGTH, make_once_checkpoint

pytestmark = pytest.mark.slow

MOST = 20  # tokens of a user text
ENGINES = {name: find_engines()[name] for name in ("trt_fp16", "trt_int8")}


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> EngineBuilder:
    folder = tmp_path_factory.mktemp("source")
    checkpoint = make_once_checkpoint(folder / "checkpoint", user_tokens=MOST)
    model = BertForSequenceClassification.from_pretrained(checkpoint).eval()
    write_click_model(model, folder / "source.onnx")
    write_click_model(model, folder / "by-shapes.onnx", by_shapes=True)
    chance = random.Random(0)
    pairs = [pair(words(n % MOST, n // 8), words(chance.randint(0, MAX_LENGTH - 3 - MOST), n)) for n in range(256)]
    feeds = calibration_batches(pairs, once=True)
    return EngineBuilder(folder / "source.onnx", MAX_LENGTH, feeds, folder / "by-shapes.onnx")


@pytest.fixture(scope="module", params=ENGINES)
def graph(builder: EngineBuilder, request: pytest.FixtureRequest) -> Path:
    path = builder.source.with_name(f"{request.param}.onnx")
    ENGINES[request.param].write(builder, path)
    return path


def tolerance(graph: Path) -> float:
    return 0.1 if "int8" in graph.name else 0.02


BATCH: list[list[Pair]] = [
    [pair(words(5), words(7)), pair(words(5), words(2)), pair(words(MOST), words(9))],
    [pair([], [])],
    [pair(None, words(30)), pair(words(3), words(4))],
]


@pytest.fixture
def feed() -> Feed:
    return pack(BATCH, once=True)


def exact(builder: EngineBuilder, feed: Feed) -> np.ndarray:
    return open_graph(builder.source)(feed)[LOGITS]


def test_it_keeps_the_rules_and_holds_where_fp16_overflows(builder: EngineBuilder, graph: Path, feed: Feed) -> None:
    model = onnx.load(graph)
    lint(model, tensorrt=True)
    onnx.checker.check_model(model, full_check=True)
    assert tuple(value.name for value in model.graph.input) == ONCE_TENSORRT_INPUTS
    assert not {node.op_type for node in model.graph.node} & {"ReduceMax", "NonZero", "CumSum", "Clip"}
    assert all(node.domain == "" for node in model.graph.node)
    logits = ReferenceEvaluator(model).run(None, add_longest(feed))[0]
    assert logits.dtype == np.float32
    assert np.allclose(logits, exact(builder, feed), atol=tolerance(graph))
    engine = ENGINES[graph.stem]
    assert 10_000 <= max(engine.fp16_range(builder, ()).values()) < 11_000, "the mask is the largest that there is"


@pytest.mark.parametrize(
    "batch",
    [BATCH, [[pair([], [])]], [[pair(None, [])]], [[pair(words(MOST), [])]]],
    ids=["several", "neither text", "an empty single text", "no candidate text"],
)
def test_no_product_of_attention_has_one_row_or_one_column(graph: Path, batch: list[list[Pair]]) -> None:
    """What TensorRT 8.6 computed wrongly on an H100."""
    model = onnx.load(graph)
    products = [node.output[0] for node in model.graph.node if node.op_type == "MatMul"]
    assert len(products) == 2 * 2 + 2, "user texts and pairs; the last layer's [CLS]"
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in products)
    session = open_on_cpu(model.SerializeToString(), for_gpu=True)
    found = session.run(products, add_longest(pack(batch, once=True)))
    assert all(min(product.shape[2:]) > 1 for product in found)


def test_a_malformed_request_harms_only_itself(graph: Path, feed: Feed) -> None:
    run = open_graph(graph, for_gpu=True)
    expected = run(feed)[LOGITS]
    feed["lengths"][3] += 1
    logits = run(feed)[LOGITS]
    assert np.isnan(logits[3]).all()
    assert np.allclose(logits[[0, 1, 2, 4, 5]], expected[[0, 1, 2, 4, 5]], atol=2e-3)


def test_it_makes_nothing_that_the_graph_with_full_attention_does_not(graph: Path, published_engines: Path) -> None:
    """TensorRT 8.6 has read every operator of that one."""
    full = onnx.load(published_engines / ENGINES[graph.stem].model / "1" / "model.onnx").graph.node
    added = {node.op_type for node in onnx.load(graph).graph.node} - {node.op_type for node in full}
    assert added <= {"Max"}, "of two sizes, as Min is there"


def test_layers_that_are_kept_stay_in_float32(builder: EngineBuilder, tmp_path: Path) -> None:
    ENGINES["trt_int8"].write(builder, tmp_path / "model.onnx", ("layers.1", "classifier"))
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert kinds["layers.1.fused_kv.weight"] == kinds["classifier.weight"] == onnx.TensorProto.FLOAT
    assert kinds["layers.0.fused_qkv.zero_point"] == onnx.TensorProto.INT8
    assert "layers.1.fused_kv.zero_point" not in kinds


def test_counts_survive_half_precision(builder: EngineBuilder, tmp_path: Path) -> None:
    """Requests of an odd number of tokens beyond 2,048, which half precision does not know."""
    ENGINES["trt_fp16"].write(builder, tmp_path / "model.onnx")
    typed = onnx.load(tmp_path / "model.onnx")
    chance = random.Random(0)
    requests = [
        [pair(words(MOST, user), words(chance.randint(9, MAX_LENGTH - 3 - MOST), n)) for n in range(16)]
        for user in range(8)
    ]
    for request in requests:  # as many users as pairs, and one user
        request.extend(pair(words(chance.randint(0, MOST), 50 + n), words(24, n)) for n in range(16))
    feed = add_longest(pack(requests, once=True))
    ends = np.cumsum(feed["token_counts"])
    assert any(end > 2048 and np.float16(end) != end for end in ends)
    weak = without_half_types(typed)
    expected = open_on_cpu(weak.SerializeToString(), for_gpu=True).run(None, feed)[0]
    assert np.isfinite(expected).all()
    digits, plain = (ReferenceEvaluator(count_in_half(model)).run(None, feed)[0] for model in (weak, typed))
    assert np.allclose(digits, expected, atol=1e-4)
    assert not np.allclose(plain, expected, atol=0.1), "counts that are not of digits do not"
