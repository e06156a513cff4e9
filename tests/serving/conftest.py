"""A repository with one small model, for tests of the server around it."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import TensorProto, helper

from tests.serving.small_models import value, write_model


@pytest.fixture(scope="session")
def small_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only: `small` answers what it is sent. A model that is not published lies beside it."""
    folder = tmp_path_factory.mktemp("small") / "repository"
    write_model(
        folder,
        "small",
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", TensorProto.FLOAT, "n")],
        [value("y", TensorProto.FLOAT, "n")],
        """max_batch_size: 0 input { name: "x" data_type: TYPE_FP32 dims: [ -1 ] }
        output { name: "y" data_type: TYPE_FP32 dims: [ -1 ] }""",
    )
    unpublished = folder / "unpublished"
    unpublished.mkdir()
    (unpublished / "config.pbtxt").write_text('name: "unpublished" backend: "tensorrt"')
    return folder
