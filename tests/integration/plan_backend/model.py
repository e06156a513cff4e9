"""Triton's tensorrt backend as far as the tests need it: the stand-in's code, with a plan where the graph was.

Triton's own C++ backend is in NVIDIA's container only. Found as `tensorrt/model.py` it gets the same requests by the
same config.pbtxt, and computes on the GPU. CLICKBERT_ROOT says where the project is.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime

ROOT = Path(os.environ["CLICKBERT_ROOT"])
STAND_IN = ROOT / "serving" / "backends" / "onnxruntime"
sys.path[:0] = [str(ROOT), str(STAND_IN)]

from export.tensorrt.runtime import LoadedPlan, load_tensorrt  # noqa: E402 (found by the path above)
from release.names import TENSORRT_INPUTS  # noqa: E402


class PlanSession:
    """A plan, with the part of onnxruntime.InferenceSession that the stand-in uses."""

    def __init__(self, path: str, *_: Any, **__: Any) -> None:
        self.plan = LoadedPlan(load_tensorrt(), Path(path).read_bytes())

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name) for name in TENSORRT_INPUTS]

    def get_outputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name) for name in self.plan.outputs]

    def run(self, names: list[str], feed: dict[str, Any]) -> list[Any]:
        outputs = self.plan.run(feed)
        return [outputs[name] for name in names]


onnxruntime.InferenceSession = PlanSession
spec = importlib.util.spec_from_file_location("stand_in", STAND_IN / "model.py")
stand_in = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stand_in)


class TritonPythonModel(stand_in.TritonPythonModel):
    """The stand-in; a plan's file has another name."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        config["default_model_filename"] = config["default_model_filename"] or "model.plan"
        super().initialize(args | {"model_config": json.dumps(config)})
