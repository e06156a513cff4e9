"""Graphs in ONNX Runtime that cannot be used are named, with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from clickbert import InvalidInputError
from clickbert.in_process.graph import run_constants


def test_constants_that_cannot_be_loaded_are_said_to_be_so_once(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"no graph")
    with pytest.raises(InvalidInputError) as error:
        run_constants(file)
    said = str(error.value)
    assert said.startswith(f"{file} cannot be loaded: ")
    assert said.endswith("; export the model again")
    assert said.count("cannot be loaded") == 1
