"""The configs in git, read with tritonclient's own schema, against the graphs that they describe."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tritonclient.grpc as triton
from google.protobuf import text_format
from onnx import TensorProto
from tritonclient.grpc import model_config_pb2

from clickbert.wire import inputs, protocol
from clickbert.wire.packing import PackedPairs, PackedUsers
from export.engines import find_engines
from export.engines.trt import TensorRTEngine
from export.publish import TEMPLATES
from release import expected, names
from release.manifest import read_manifest
from serving.server import Server

CLICK_MODELS = {path.parent.name for path in TEMPLATES.glob("*/config.pbtxt")} - {names.TOKENIZER_MODEL}
TENSORRT = {engine.model for engine in find_engines().values() if isinstance(engine, TensorRTEngine)}
TYPES = {"TYPE_INT32": TensorProto.INT32, "TYPE_FP32": TensorProto.FLOAT, "TYPE_UINT8": TensorProto.UINT8}


def read(model: str, repository: Path = TEMPLATES) -> model_config_pb2.ModelConfig:
    text = (repository / model / names.CONFIG_FILE).read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def tensors(entries: list) -> dict[str, tuple[int, list[int]]]:
    return {entry.name: (TYPES[model_config_pb2.DataType.Name(entry.data_type)], list(entry.dims)) for entry in entries}


def in_graph(values: list[onnx.ValueInfoProto]) -> dict[str, tuple[int, list[int]]]:
    return {
        value.name: (
            value.type.tensor_type.elem_type,
            [dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim],
        )
        for value in values
    }


@pytest.mark.parametrize("model", [path.parent.name for path in TEMPLATES.glob("*/config.pbtxt")])
def test_every_config_is_valid_and_names_its_folder(model: str) -> None:
    config = read(model)
    assert config.name == model
    backend = "onnxruntime" if model == names.TOKENIZER_MODEL else "packed_cpu"
    assert config.backend == ("tensorrt" if model in TENSORRT else backend)
    text = (TEMPLATES / model / names.CONFIG_FILE).read_text(encoding="utf-8")
    assert text.startswith("#"), "a config says what it is for"


def test_every_engine_has_a_config() -> None:
    assert {engine.model for engine in find_engines().values()} == CLICK_MODELS


@pytest.mark.parametrize("model", sorted(CLICK_MODELS))
def test_the_click_models_config_describes_the_graph(published_engines: Path, model: str) -> None:
    config = read(model, published_engines)
    graph = onnx.load(published_engines / model / "1" / names.MODEL_FILE).graph
    wanted = tensors(config.input)
    assert all(entry.allow_ragged_batch for entry in config.input)
    for entry in config.batch_input:
        is_shape = entry.target_name[0] == names.LONGEST_SHAPE
        assert entry.kind == (entry.BATCH_MAX_ELEMENT_COUNT_AS_SHAPE if is_shape else entry.BATCH_ELEMENT_COUNT)
        wanted[entry.target_name[0]] = (TYPES[model_config_pb2.DataType.Name(entry.data_type)], [-1])
    sources = {entry.target_name[0]: entry.source_input[0] for entry in config.batch_input}
    longest = {names.LONGEST_SHAPE: names.LONGEST} if model in TENSORRT else {}
    assert sources == dict(zip(names.COUNT_INPUTS, names.REQUEST_INPUTS, strict=True)) | longest
    assert in_graph(graph.input) == wanted
    assert in_graph(graph.output) == tensors(config.output) == {names.LOGITS: (TensorProto.FLOAT, [-1, 1])}
    (scatter,) = config.batch_output
    assert (list(scatter.target_name), list(scatter.source_input)) == ([names.LOGITS], ["lengths"])


@pytest.mark.parametrize("models", [TENSORRT, CLICK_MODELS - TENSORRT], ids=["tensorrt", "onnxruntime"])
def test_the_configs_of_one_backend_differ_in_the_name_alone(models: set[str]) -> None:
    configs = [read(model) for model in models]
    for config in configs:
        config.name = ""
    assert all(config == configs[0] for config in configs)


@pytest.mark.parametrize("model", sorted(CLICK_MODELS))
def test_requests_are_batched_with_limits(model: str) -> None:
    config = read(model)
    assert config.max_batch_size > 1
    assert config.version_policy.latest.num_versions == 1
    policy = config.dynamic_batching.default_queue_policy
    assert policy.max_queue_size > 0
    assert policy.default_timeout_microseconds > 0
    assert policy.timeout_action == policy.REJECT
    if model not in TENSORRT:  # their backend has a queue of its own
        assert policy.allow_timeout_override
        assert sum(group.count for group in config.instance_group) == 1
        assert float(config.parameters["deadline_seconds"].string_value) > 0


@pytest.mark.parametrize("model", sorted(CLICK_MODELS))
def test_the_warm_up_is_a_well_formed_request(model: str) -> None:
    config = read(model)
    (warmup,) = config.model_warmup
    lengths = np.fromfile(TEMPLATES / model / "warmup" / warmup.inputs["lengths"].input_data_file, np.int32)
    if model in TENSORRT:
        assert list(warmup.inputs[names.LONGEST].dims) == [lengths.max()]
    assert list(warmup.inputs["lengths"].dims) == [len(lengths)]
    for name in ("input_ids", "token_type_ids"):
        assert warmup.inputs[name].zero_data
        assert list(warmup.inputs[name].dims) == [lengths.sum()]


def test_the_tokenizers_config_describes_its_graph(published_repository: Path) -> None:
    config = read(names.TOKENIZER_MODEL)
    graph = onnx.load(published_repository / names.TOKENIZER_MODEL / "1" / names.MODEL_FILE).graph
    assert not config.input
    assert not graph.input
    assert in_graph(graph.output) == tensors(config.output)


def test_the_client_speaks_of_the_same_tensors() -> None:
    config = read(protocol.DEFAULT_MODEL)
    assert [entry.name for entry in config.input] == [protocol.INPUT_IDS, protocol.TOKEN_TYPE_IDS, protocol.LENGTHS]
    assert config.output[0].name == protocol.LOGITS
    assert tuple(field.name for field in fields(PackedPairs)) == names.REQUEST_INPUTS
    assert tuple(field.name for field in fields(PackedUsers)) == names.ONCE_REQUEST_INPUTS
    assert names.ONCE_REQUEST_INPUTS[1] == protocol.USER_LENGTHS
    assert [entry.name for entry in read("clickbert_trt_fp16").input][-1] == protocol.LONGEST == names.LONGEST
    assert config.parameters[protocol.MAX_PAIRS_PARAMETER].string_value.isdecimal()
    tokenizer = read(protocol.TOKENIZER_MODEL)
    assert {entry.name for entry in tokenizer.output} == set(protocol.TOKENIZER_OUTPUTS)


def test_the_client_has_the_manifests_classes(published_repository: Path) -> None:
    assert (inputs.CANDIDATES, inputs.TOKENS) == (expected.CANDIDATES, expected.TOKENS)
    of_the_log = read_manifest(published_repository / names.ONNX_MODEL / "1").expected
    assert of_the_log
    session = onnxruntime.InferenceSession(published_repository / names.TOKENIZER_MODEL / "1" / names.MODEL_FILE)
    (heads,) = session.run([names.HEADS_JSON], {})
    found = inputs.read_expected(json.loads(heads.tobytes()))
    assert found
    assert vars(found) == of_the_log.of_inputs()


def test_triton_serves_the_published_config_as_it_is(published_server: Server, published_repository: Path) -> None:
    client = triton.InferenceServerClient(published_server.addresses.grpc)
    served = client.get_model_config(names.ONNX_MODEL).config
    config = read(names.ONNX_MODEL, published_repository)
    for field in ("input", "output", "batch_input", "batch_output", "max_batch_size", "model_warmup", "backend"):
        assert getattr(served, field) == getattr(config, field), field
