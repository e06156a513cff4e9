"""A small model and a click log that is large enough to calibrate on, and one packed graph for each model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import BertForSequenceClassification

import export.pipeline
from finetune.checkpoint.heads import Heads
from tests.tiny import make_checkpoint, make_click_log


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", hidden_size=48, intermediate_size=192)


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_click_log(tmp_path_factory.mktemp("log") / "log.jsonl", groups=45)


@pytest.fixture(scope="session", autouse=True)
def one_graph_for_each_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Most of an export's time is torch.onnx.export, which makes the same graph of the same model every time."""
    write = export.pipeline.write_click_model
    folder = tmp_path_factory.mktemp("graphs")

    def write_once(model: BertForSequenceClassification, path: Path, heads: Heads) -> None:
        content = hashlib.sha256(model.config.to_json_string().encode())
        for name, tensor in (*model.state_dict().items(), *heads.state_dict().items()):
            content.update(name.encode() + tensor.numpy().tobytes())
        graph = folder / f"{content.hexdigest()}.onnx"
        if not graph.exists():
            write(model, graph, heads)
        path.write_bytes(graph.read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.pipeline, "write_click_model", write_once)
        yield
