"""A small model and a click log that is large enough to calibrate on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import make_checkpoint, make_click_log


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", hidden_size=48, intermediate_size=192)


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_click_log(tmp_path_factory.mktemp("log") / "log.jsonl", groups=45)


@pytest.fixture(scope="session", autouse=True)
def graphs(one_graph_for_each_model: None) -> None:
    """Every export of these tests takes its graph from there."""
