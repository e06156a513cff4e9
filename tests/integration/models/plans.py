"""Plans on the real Triton of the wheel, which lacks the tensorrt backend: plan_backend/ takes its place.

    python -m tests.integration.models.plans saturate

runs the benchmark that way on a GPU host (any command of `python -m benchmarks`).
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

import serving.repository.models
import serving.server
from release.hardware import query_gpus
from release.names import CONFIG_FILE
from serving.triton import Triton, find_triton, lay_out_backends

BACKEND = Path(__file__).parent / "plan_backend"


def serve_plans(patch: pytest.MonkeyPatch) -> None:
    """Lets every Server of this process serve plans; nothing is to be done where Triton has its own backends."""
    if find_triton().has_onnxruntime:
        return

    def with_plans(triton: Triton, folder: Path) -> None:
        lay_out_backends(triton, folder)
        shutil.copytree(BACKEND, folder / "tensorrt")

    patch.setattr(serving.server, "lay_out_backends", with_plans)
    patch.setattr(serving.repository.models, "look_for_gpus", lambda _: (None, query_gpus()))
    patch.setitem(os.environ, "CLICKBERT_ROOT", str(Path(__file__).parents[3]))


def serve_on_cpu(model: Path) -> None:
    """Lets packed_cpu compute a TensorRT model's graph, by the plan's own protocol: its config with another backend."""
    config = model / CONFIG_FILE
    text = config.read_text(encoding="utf-8").replace('backend: "tensorrt"', 'backend: "packed_cpu"')
    config.write_text(text.replace('kind: KIND_GPU profile: [ "0" ]', "kind: KIND_CPU"), encoding="utf-8")


if __name__ == "__main__":
    from benchmarks.__main__ import main

    with pytest.MonkeyPatch.context() as monkeypatch:
        serve_plans(monkeypatch)
        sys.exit(main(sys.argv[1:]))
