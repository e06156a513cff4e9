"""`python -m export` of a checkpoint whose user text is computed once: gates, what is published, what is refused."""

import json
import re
from collections.abc import Collection
from pathlib import Path

import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from transformers import BertForSequenceClassification
from tritonclient.grpc import model_config_pb2

from export import pipeline
from export.builder import EngineBuilder
from export.configs import ConfigError, change_config
from export.engines import find_engines, find_gates
from export.engines.base import Engine
from export.graph.session import open_graph
from export.publish import TEMPLATES
from export.tensorrt.build import read_limits
from export.verify.saved_gate import gate
from finetune.checkpoint.heads import Heads
from release.manifest import read_manifest
from release.names import (
    CONFIG_FILE,
    EMBEDDING,
    HEADS_JSON,
    KEPT_INPUTS,
    LOGITS,
    LONGEST,
    LONGEST_SHAPE,
    LONGEST_USER,
    LONGEST_USER_SHAPE,
    MODEL_FILE,
    ONCE_COUNT_INPUTS,
    ONCE_GRAPH_INPUTS,
    ONCE_REQUEST_INPUTS,
    ONCE_TENSORRT_INPUTS,
    ONNX_MODEL,
    TOKENIZER_MODEL,
    USER_TOKENS,
    VARIANTS,
)
from tests.export.command import WIDE, engines, run
from tests.export.spoiled import spoil
from tests.tiny import ONCE_USER_TOKENS

MODELS = (ONNX_MODEL, "clickbert_onnx_int8")
TENSORRT = ("clickbert_trt_fp16", "clickbert_trt_int8")
CONFIGS = [Path(model) / name for model in MODELS for name in (CONFIG_FILE, f"{VARIANTS}/onnxruntime.pbtxt")]
CONFIGS += [Path(model) / CONFIG_FILE for model in TENSORRT]
CLICK = {LOGITS: 1}


def read(config: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse(config.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def heads_of(repository: Path, version: int) -> dict:
    session = onnxruntime.InferenceSession(repository / TOKENIZER_MODEL / str(version) / MODEL_FILE)
    (found,) = session.run([HEADS_JSON], {})
    return json.loads(bytes(found))


@pytest.mark.slow
def test_it_is_proved_published_and_replaced_by_a_plain_one(
    once_checkpoint: Path, checkpoint: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    repository = tmp_path / "repository"
    every = engines("onnx", "onnx_int8", "trt_fp16", "trt_int8")
    assert run(once_checkpoint, repository, log, *every, *WIDE) == 0
    models = json.loads(capsys.readouterr().out.splitlines()[-1])["models"]
    assert set(models) == {*MODELS, *TENSORRT}
    assert models[ONNX_MODEL]["parity"]["max_abs_diff"] < 1e-5
    assert models["clickbert_onnx_int8"]["comparison"]["mean_abs_diff"] < 0.1
    parity = models["clickbert_trt_fp16"]["parity"]
    assert parity == models["clickbert_trt_int8"]["parity"]
    assert parity["max_abs_diff"] < 1e-5
    assert parity["mean_abs_diff"] != models[ONNX_MODEL]["parity"]["mean_abs_diff"], "of the graph they are made of"
    assert models["clickbert_trt_fp16"]["comparison"]["mean_abs_diff"] < 0.002
    assert models["clickbert_trt_int8"]["comparison"]["mean_abs_diff"] < 0.1
    assert heads_of(repository, 1)[USER_TOKENS] == ONCE_USER_TOKENS
    for model in (*MODELS, *TENSORRT):
        version = repository / model / "1"
        assert read_manifest(version).user_tokens == ONCE_USER_TOKENS
        graph = onnx.load(version / MODEL_FILE).graph
        inputs = ONCE_TENSORRT_INPUTS if model in TENSORRT else ONCE_GRAPH_INPUTS + KEPT_INPUTS
        assert tuple(value.name for value in graph.input) == inputs
        if model in TENSORRT:
            gate(version, open_graph(version / MODEL_FILE, for_gpu=True), find_gates())
            assert read_limits(version).shapes()["longest_user_shape"][2] == ONCE_USER_TOKENS + 1
        for value in read(repository / model / CONFIG_FILE).model_warmup[0].inputs.values():
            file = repository / model / "warmup" / value.input_data_file
            assert value.zero_data or file.stat().st_size == 4 * value.dims[0]
    assert run(checkpoint, repository, log, *every, *WIDE) == 0
    assert heads_of(repository, 2)[USER_TOKENS] is None
    for config in CONFIGS:
        assert (repository / config).read_text() == (TEMPLATES / config).read_text()


@pytest.mark.parametrize("path", CONFIGS, ids=str)
@pytest.mark.parametrize("widths", [CLICK, CLICK | {EMBEDDING: 8}], ids=["click", "with a head"])
def test_the_config_has_the_inputs_of_the_checkpoint(tmp_path: Path, path: Path, widths: dict[str, int]) -> None:
    plain, config = (TEMPLATES / path).read_text() + "# mine\n", tmp_path / CONFIG_FILE
    config.write_text(plain)
    for _ in range(2):
        config.write_text(change_config(config, path.parts[0], widths, once=True))
        found = read(config)
        shapes = {LONGEST: LONGEST_SHAPE, LONGEST_USER: LONGEST_USER_SHAPE} if path.parts[0] in TENSORRT else {}
        names = (*ONCE_REQUEST_INPUTS, *shapes)
        assert tuple(value.name for value in found.input) == names
        assert all(value.allow_ragged_batch and list(value.dims) == [-1] for value in found.input)
        counts = {name: list(value.source_input) for value in found.batch_input for name in value.target_name}
        targets = zip((*ONCE_COUNT_INPUTS, *shapes.values()), names, strict=True)
        assert counts == {target: [name] for target, name in targets}
        kinds = {value.target_name[0]: value.kind for value in found.batch_input}
        as_shape = model_config_pb2.BatchInput.BATCH_MAX_ELEMENT_COUNT_AS_SHAPE
        assert {name for name, kind in kinds.items() if kind == as_shape} == set(shapes.values())
        limits = {name.removeprefix("max_elements.") for name in found.parameters if name.startswith("max_elements.")}
        assert limits == set(names)
        pairs = {found.parameters[f"max_elements.{name}"].string_value for name in ONCE_REQUEST_INPUTS[1:]}
        assert pairs == {"128" if "chunk_by" in found.parameters else "32"}
        prefixes = {key: found.parameters[key].string_value for key in ("prefix_lengths", "prefix_shares")}
        chunked = "chunk_by" in found.parameters
        assert list(prefixes.values()) == (list(ONCE_REQUEST_INPUTS[1:3]) if chunked else ["", ""])
        (warmup,) = found.model_warmup
        assert set(warmup.inputs) == set(names)
        assert [output.name for output in found.output] == list(widths)
    assert change_config(config, path.parts[0], CLICK, once=False) == plain


TEMPLATE = (TEMPLATES / CONFIGS[0]).read_text()
(BATCH_INPUT,) = re.findall(r"^batch_input \[.*?^\]$", TEMPLATE, re.DOTALL | re.MULTILINE)
WARMUP = TEMPLATE[TEMPLATE.index("model_warmup [") :]
WRITTEN_OTHERWISE = {
    "on one line": TEMPLATE.replace(BATCH_INPUT, BATCH_INPUT.replace("\n", " ")),
    "the end indented": TEMPLATE.replace(BATCH_INPUT, f"{BATCH_INPUT[:-1]}  ]"),
    "with a colon": TEMPLATE.replace("batch_input [", "batch_input: ["),
    "one at a time": TEMPLATE.replace(BATCH_INPUT, re.sub(r",?\n  {", "\nbatch_input {", BATCH_INPUT)[14:-1]),
    "brackets in strings and comments": TEMPLATE.replace(BATCH_INPUT, BATCH_INPUT.replace("[", "[ # ]", 1)).replace(
        'name: "eight_pairs"', 'name: "]}"'
    ),
    "no last newline": TEMPLATE[:-1],
    "the limit on lines of its own": TEMPLATE.replace(
        'parameters { key: "max_elements.token_type_ids" value',
        'parameters {\n  key:"max_elements.token_type_ids" value',
    ),
}


@pytest.mark.parametrize("plain", WRITTEN_OTHERWISE.values(), ids=WRITTEN_OTHERWISE)
def test_a_config_may_be_written_otherwise(tmp_path: Path, plain: str) -> None:
    assert plain != TEMPLATE
    config = tmp_path / CONFIG_FILE
    config.write_text(TEMPLATE)
    expected = text_format.Parse(change_config(config, ONNX_MODEL, CLICK, once=True), model_config_pb2.ModelConfig())
    config.write_text(plain)
    config.write_text(change_config(config, ONNX_MODEL, CLICK, once=True))
    assert read(config) == expected
    assert change_config(config, ONNX_MODEL, CLICK, once=False) == plain


REFUSED = {
    "output": TEMPLATE.replace(BATCH_INPUT, BATCH_INPUT.replace("\n", " ") + " output: { name: 'mine' dims: [ 1 ] }"),
    "batch_input": TEMPLATE.replace(BATCH_INPUT, BATCH_INPUT.replace("batch_input [", "batch_input\n[")),
    "model_warmup": TEMPLATE + "model_warmup < name: 'mine' >\n",
    "input": TEMPLATE.replace("input [", "input\n[", 1),
    "parameters": TEMPLATE + "parameters < key: 'max_elements.token_type_ids' value < string_value: '9' > >\n",
}


@pytest.mark.parametrize("part", REFUSED)
def test_a_config_whose_inputs_cannot_be_replaced_is_refused(tmp_path: Path, part: str) -> None:
    config = tmp_path / CONFIG_FILE
    config.write_text(REFUSED[part])
    with pytest.raises(ConfigError, match=rf"or beside {part}; write that part as it is in git"):
        change_config(config, ONNX_MODEL, CLICK, once=True)


def test_a_config_without_limit_chunks_or_warm_up_gets_none(tmp_path: Path) -> None:
    config = tmp_path / CONFIG_FILE
    chunk_by = 'parameters { key: "chunk_by"'
    without = TEMPLATE.replace(WARMUP, "").replace(chunk_by, f"# {chunk_by}")
    config.write_text(without.replace('parameters { key: "max_elements.lengths"', '# "max_elements.lengths"'))
    config.write_text(change_config(config, ONNX_MODEL, CLICK, once=True))
    found = read(config)
    assert not found.model_warmup
    assert not {"prefix_lengths", "prefix_shares", "max_elements.user_lengths"} & set(found.parameters)


def test_limit_and_chunks_are_what_the_config_says_not_how(tmp_path: Path) -> None:
    config = tmp_path / CONFIG_FILE
    config.write_text(TEMPLATE.replace("key: ", "key:").replace('string_value: "32"', "string_value:'7'"))
    config.write_text(change_config(config, ONNX_MODEL, CLICK, once=True))
    found = {key: value.string_value for key, value in read(config).parameters.items()}
    assert found["prefix_lengths"] == ONCE_REQUEST_INPUTS[1]
    assert found["max_elements.user_lengths"] == found["max_elements.lengths"] == "28"


@pytest.mark.parametrize(
    ("pairs", "tokens", "allowed"),
    [("32", "65536", "128"), ("64", "65536", "128"), ("200", "65536", "200"), ("32", "20000", "39"), ("a", "9", "a")],
)
def test_a_request_has_no_more_pairs_than_its_tokens_surely_hold(
    tmp_path: Path, pairs: str, tokens: str, allowed: str
) -> None:
    """The client divides a call by pairs alone, whose tokens it has not counted yet."""
    config = tmp_path / CONFIG_FILE
    text = TEMPLATE.replace(
        '"max_elements.lengths" value { string_value: "32"', f'"max_elements.lengths" value {{ string_value: "{pairs}"'
    )
    config.write_text(
        text.replace(
            '"max_elements.input_ids" value { string_value: "65536"',
            f'"max_elements.input_ids" value {{ string_value: "{tokens}"',
        )
    )
    plain = config.read_text()
    config.write_text(change_config(config, ONNX_MODEL, CLICK, once=True))
    found = {key: value.string_value for key, value in read(config).parameters.items()}
    assert [found[f"max_elements.{name}"] for name in ONCE_REQUEST_INPUTS] == [tokens, *[allowed] * 3]
    assert change_config(config, ONNX_MODEL, CLICK, once=False) == plain


@pytest.mark.parametrize("mine", ["#full attention is slower\n", "#clickbert-full: mine\n"])
def test_a_comment_of_the_user_stays(tmp_path: Path, mine: str) -> None:
    config = tmp_path / CONFIG_FILE
    config.write_text(mine + TEMPLATE)
    assert change_config(config, ONNX_MODEL, CLICK, once=False) == mine + TEMPLATE


def test_an_engine_whose_chunks_cannot_share_a_user_text_is_refused(
    once_checkpoint: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = type(find_engines()["onnx_int8"])
    write = engine.write

    def write_spoiled(self: Engine, builder: EngineBuilder, target: Path, keep_fp32: Collection[str] = ()) -> None:
        write(self, builder, target, keep_fp32)
        spoil(target, target, -1)

    monkeypatch.setattr(engine, "write", write_spoiled)
    repository = tmp_path / "repository"
    assert run(once_checkpoint, repository, log, *engines("onnx", "onnx_int8"), *WIDE) == 1
    assert "clickbert_onnx_int8 gives other logits where it computes a user text once" in capsys.readouterr().err
    assert not repository.exists()


def test_a_graph_for_tensorrt_that_is_wrong_is_refused(
    once_checkpoint: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = pipeline.write_click_model

    def write_spoiled(model: BertForSequenceClassification, path: Path, heads: Heads, *, by_shapes: bool) -> None:
        write(model, path, heads, by_shapes=by_shapes)
        if by_shapes:
            graph = onnx.load(path)
            (weight,) = (tensor for tensor in graph.graph.initializer if tensor.name == "pooler.dense.weight")
            weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.01, weight.name))
            onnx.save(graph, path)

    monkeypatch.setattr(pipeline, "write_click_model", write_spoiled)
    assert run(once_checkpoint, tmp_path / "repository", log, *engines("onnx", "trt_fp16")) == 1
    assert "parity failed at" in capsys.readouterr().err
    assert not (tmp_path / "repository").exists()
