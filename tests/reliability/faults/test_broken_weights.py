"""Test 16: weights that are NaN or infinite are never ranked by: the export, the server and the client refuse each."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from tritonclient.grpc import model_config_pb2

from clickbert import ProtocolError, Ranker
from export.__main__ import main as export
from release.manifest import read_manifest, write_manifest
from serving.triton import ServingError
from tests.figures import Figures
from tests.published import serve

TEST = 16
VALUES = [float("nan"), float("inf"), float("-inf")]
MODEL = "clickbert_onnx"


@pytest.mark.parametrize("value", VALUES)
def test_the_export_refuses_them_by_name(
    published_checkpoint: Path, published_log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    checkpoint = shutil.copytree(published_checkpoint, tmp_path / "checkpoint")
    weights = load_file(checkpoint / "model.safetensors")
    name = "bert.encoder.layer.1.output.dense.weight"
    weights[name][3, 5] = value
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    repository = tmp_path / "repository"
    paths = ["--checkpoint", str(checkpoint), "--repository", str(repository), "--evaluation", str(published_log)]
    assert export([*paths, "--engine", "onnx", "--report", str(tmp_path / "report.html")]) == 1
    assert f"the weight {name} holds NaN or infinity" in capsys.readouterr().err
    assert not repository.exists(), "nothing was published"


def spoil(repository: Path, value: float, *, watched: bool = True) -> Path:
    """What no export does: such weights in a published graph, under a manifest that fits. Returns the repository.

    Where it is not `watched`, neither a warm-up nor the backend looks at what the graph answers.
    """
    model = repository / MODEL
    graph = onnx.load(model / "1/model.onnx")
    (weight,) = (each for each in graph.graph.initializer if each.name == "classifier.weight")
    weight.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(weight), value), weight.name))
    onnx.save(graph, model / "1/model.onnx")
    write_manifest(model / "1", read_manifest(model / "1"))
    if not watched:
        text = (model / "config.pbtxt").read_text(encoding="utf-8")
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        del config.model_warmup[:]
        del config.parameters["nan_is_error"]
        (model / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
    return repository


@pytest.fixture
def repository(published_engines: Path, tmp_path: Path) -> Path:
    """A copy of fp32 and its tokenizer, to be spoiled."""
    others = shutil.ignore_patterns("clickbert_trt_*", "clickbert_onnx_int8")
    return shutil.copytree(published_engines, tmp_path / "repository", ignore=others)


def test_the_server_does_not_begin_to_serve_them(repository: Path, figures: Figures) -> None:
    """Its warm-up is a request like any other."""
    log, ready = repository.with_name("triton.log"), 0
    with suppress(ServingError):
        with serve(spoil(repository, float("nan")), log=log):
            ready = 1
    figures.exactly(TEST, "servers that became ready with NaN weights", ready, 0)
    assert "answered NaN or nothing" in log.read_text(encoding="utf-8", errors="replace")


@pytest.mark.parametrize("value", VALUES)
def test_the_client_ranks_by_none(repository: Path, figures: Figures, value: float) -> None:
    """Where nobody else looks, as with Triton's C++ backend."""
    refused = 0
    served = serve(spoil(repository, value, watched=False))
    with served as server, Ranker(server.addresses.grpc, timeout=60) as ranker:
        calls = (
            lambda: ranker.rank("w1 w2", ["w3", "w4 w5", "w6"]),
            lambda: ranker.rank("w1 w2", ["w3"], top_k=1),
            lambda: ranker.score_pairs([("w1", "w2")]),
            lambda: ranker.score_pairs([(f"w{number}", "w2") for number in range(100)]),  # several requests
        )
        for call in calls:
            with pytest.raises(ProtocolError, match="are not finite"):
                call()
            refused += 1
    figures.exactly(TEST, f"calls refused by the client, of a model whose weights are {value}", refused, len(calls))
