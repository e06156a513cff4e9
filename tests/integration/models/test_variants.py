"""The click models by Triton's C++ onnxruntime backend: configs/onnxruntime.pbtxt, `python -m serving --config`.

Where Triton lacks that backend, packed_cpu serves the same config under its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from clickbert import Ranker
from export.publish import TEMPLATES
from finetune.data.clicklog import ClickRow
from release.names import CONFIG_FILE, ONNX_MODEL, VARIANTS
from serving.server import Server
from tests.integration.scores import PATIENCE
from tests.published import serve

NAME = "onnxruntime"
MODELS = sorted(path.parent.parent.name for path in TEMPLATES.glob(f"*/{VARIANTS}/{NAME}.pbtxt"))
SHRINKAGE, THREADS = "memory.enable_memory_arena_shrinkage", "intra_op_thread_count"
# What a variant and its main config may differ in.
FIELDS = ("backend", "max_batch_size", "dynamic_batching", "instance_group")
PARAMETERS = ("chunk_by", "chunk_elements", "deadline_seconds", THREADS, SHRINKAGE)


def read(file: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse(file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def variant(model: str) -> model_config_pb2.ModelConfig:
    return read(TEMPLATES / model / VARIANTS / f"{NAME}.pbtxt")


@pytest.mark.parametrize("model", MODELS)
def test_a_variant_is_its_main_config_but_for_the_named_differences(model: str) -> None:
    configs = [variant(model), read(TEMPLATES / model / CONFIG_FILE)]
    for config in configs:
        for field in FIELDS:
            config.ClearField(field)
        for name in {*PARAMETERS} & {*config.parameters}:
            del config.parameters[name]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("model", MODELS)
def test_a_variant_is_what_the_cpp_backend_does_best(model: str) -> None:
    config = variant(model)
    assert (config.backend, config.max_batch_size) == (NAME, 1)
    assert {*PARAMETERS} & {*config.parameters} == {THREADS, SHRINKAGE}
    assert config.parameters[THREADS].string_value == "1"
    assert config.parameters[SHRINKAGE].string_value == "cpu:0"
    assert sum(group.count for group in config.instance_group) > 1, "one, and a queue with a limit, would stall"
    policy = config.dynamic_batching.default_queue_policy
    assert policy.max_queue_size > 0
    assert policy.default_timeout_microseconds > 0
    assert policy.timeout_action == policy.REJECT
    text = (TEMPLATES / model / VARIANTS / f"{NAME}.pbtxt").read_text(encoding="utf-8")
    assert "# What it costs" in text


def test_the_variants_differ_in_the_name_alone() -> None:
    assert len(MODELS) == 2
    configs = [variant(model) for model in MODELS]
    for config in configs:
        config.name = ""
    assert configs[0] == configs[1]


@pytest.fixture(scope="module")
def variant_server(published_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(published_repository, log=tmp_path_factory.mktemp(NAME) / "triton.log", config=NAME) as server:
        yield server


def scores(server: Server, model: str, rows: list[ClickRow]) -> np.ndarray:
    if model not in server.models:
        pytest.skip(f"{model} is left out here: INT8, the C++ backend, and no VNNI")
    with Ranker(server.addresses.grpc, model=model, timeout=PATIENCE) as ranker:
        return ranker.score_pairs([(row.query, row.document) for row in rows])


def test_it_is_served_by_its_variant(variant_server: Server) -> None:
    client = triton.InferenceServerClient(variant_server.addresses.grpc)
    served = client.get_model_config(ONNX_MODEL).config
    wanted = variant(ONNX_MODEL)
    for field in ("backend", "max_batch_size", "input", "output", "batch_input", "batch_output", "parameters"):
        assert getattr(served, field) == getattr(wanted, field), field
    assert served.dynamic_batching.default_queue_policy == wanted.dynamic_batching.default_queue_policy


def test_it_scores_as_pytorch_does(variant_server: Server, rows: list[ClickRow], expected: np.ndarray) -> None:
    assert np.allclose(scores(variant_server, ONNX_MODEL, rows), expected, atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_it_scores_as_packed_cpu_does(
    variant_server: Server, published_server: Server, rows: list[ClickRow], model: str
) -> None:
    assert np.allclose(scores(variant_server, model, rows), scores(published_server, model, rows), atol=1e-5)
