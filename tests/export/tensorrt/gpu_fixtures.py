"""Fixtures for tests of TensorRT plans; a test module loads them with `pytest_plugins`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from export import plan as plan_command
from export.publish import TEMPLATES
from release.manifest import write_manifest
from tests.export.tensorrt.fake_gpu import MODEL, Gpu, nvidia_smi, pass_gate, write_graph
from tests.release.examples import MANIFEST


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gpu:
    gpu = Gpu()
    monkeypatch.setitem(sys.modules, "tensorrt", gpu.tensorrt)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", gpu.driver)
    monkeypatch.setattr(plan_command, "run_gate", pass_gate)
    nvidia_smi(monkeypatch, tmp_path, "NVIDIA L4, 8.9, 580.65.06")
    return gpu


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A published version without a plan: the newer of two."""
    for number in (2, 10):
        version = tmp_path / "repository" / MODEL / str(number)
        version.mkdir(parents=True)
        write_graph(version / "model.onnx")
        write_manifest(version, replace(MANIFEST, model=MODEL, max_length=512))
    (version.parent / "config.pbtxt").write_bytes((TEMPLATES / MODEL / "config.pbtxt").read_bytes())
    return version
