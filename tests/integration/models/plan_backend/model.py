"""Triton's tensorrt backend as far as the tests need it: packed_cpu's code, with a plan where the graph was.

Triton's own C++ backend is in NVIDIA's container only. Found as `tensorrt/model.py` it gets the same requests by the
same config.pbtxt, and computes on the GPU. CLICKBERT_ROOT says where the project is.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime

ROOT = Path(os.environ["CLICKBERT_ROOT"])
sys.path.insert(0, str(ROOT))

from export.tensorrt.runtime import LoadedPlan, load_tensorrt  # noqa: E402 (found by the path above)


class PlanSession:
    """A plan, with the part of onnxruntime.InferenceSession that packed_cpu uses."""

    def __init__(self, path: str, *_: Any, **__: Any) -> None:
        self.plan = LoadedPlan(load_tensorrt(), Path(path).read_bytes())

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name) for name in self.plan.inputs]

    def get_outputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name) for name in self.plan.outputs]

    def run(self, names: list[str], feed: dict[str, Any]) -> list[Any]:
        outputs = self.plan.run(feed)
        return [outputs[name] for name in names]


onnxruntime.InferenceSession = PlanSession

from serving.backends.packed_cpu import model  # noqa: E402 (it opens plans from here on)


class TritonPythonModel(model.TritonPythonModel):
    """Our backend; a plan's file has another name."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        config["default_model_filename"] = config["default_model_filename"] or "model.plan"
        super().initialize(args | {"model_config": json.dumps(config)})
