"""Graphs in ONNX Runtime that cannot be used are named, with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from clickbert import InvalidInputError

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: no graph is opened")

from clickbert.in_process import graph


def test_constants_that_cannot_be_loaded_are_said_to_be_so_once(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"no graph")
    with pytest.raises(InvalidInputError) as error:
        graph.run_constants(file)
    said = str(error.value)
    assert said.startswith(f"{file} cannot be loaded: ")
    assert said.endswith("; export the model again")
    assert said.count("cannot be loaded") == 1


def test_constants_that_cannot_be_computed_are_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def get_outputs(self) -> list[object]:
            return []

        def run(self, *unused: object) -> None:
            raise RuntimeError("no memory")

    monkeypatch.setattr(graph, "_session", lambda file: Broken())
    with pytest.raises(InvalidInputError) as error:
        graph.run_constants(tmp_path / "model.onnx")
    assert str(error.value) == f"{tmp_path / 'model.onnx'} cannot be computed: no memory; export the model again"
