"""A small model, one whose user text is computed once, and a click log that is large enough to calibrate on."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BertForSequenceClassification

from export.graph.onnx_export import write_click_model
from tests.conftest import once
from tests.export.graph.packed.once_batches import MOST
from tests.tiny import make_checkpoint, make_click_log, make_once_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", hidden_size=48, intermediate_size=192)


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_click_log(tmp_path_factory.mktemp("log") / "log.jsonl", groups=45)


@pytest.fixture(scope="session", autouse=True)
def graphs(one_graph_for_each_model: None) -> None:
    """Every export of these tests takes its graph from there."""


@pytest.fixture(scope="session")
def two_label_once_checkpoint(shared: Path) -> Path:
    """Of three layers and two labels; its user texts, of `MOST` tokens, are computed once."""
    return once(
        shared / "two-label-once-checkpoint",
        lambda path: make_once_checkpoint(path, user_tokens=MOST, labels=2, num_hidden_layers=3),
    )


@pytest.fixture(scope="session")
def once_model(two_label_once_checkpoint: Path) -> BertForSequenceClassification:
    """The model of it. Read-only."""
    return BertForSequenceClassification.from_pretrained(two_label_once_checkpoint).eval()


@pytest.fixture(scope="session")
def once_graph(shared: Path, once_model: BertForSequenceClassification) -> Path:
    """Its graph for CPUs, which takes PyTorch twenty seconds."""
    return once(shared / "once.onnx", lambda path: write_click_model(once_model, path))


@pytest.fixture(scope="session")
def shaped_graph(shared: Path, once_model: BertForSequenceClassification) -> Path:
    """Its graph for TensorRT."""
    return once(shared / "once-by-shapes.onnx", lambda path: write_click_model(once_model, path, by_shapes=True))
