"""`onnx`: the packed fp32 graph itself, for packed_cpu and Triton's onnxruntime backend. The others are made of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export.engines.base import Engine
from export.verify.gates import FP32, FP32_GATES
from release.names import ONNX_MODEL

if TYPE_CHECKING:
    from export.builder import EngineBuilder


class OnnxFp32(Engine):
    """The packed fp32 graph."""

    name = "onnx"
    model = ONNX_MODEL
    precision = FP32
    colour = "#3b6ea5"
    gates = FP32_GATES
    needs_calibration = False

    def reduced_layers(self, linears: Sequence[str]) -> list[str]:
        """None: every layer is float32."""
        return []

    def write(self, builder: EngineBuilder, target: Path, keep_fp32: Collection[str] = ()) -> None:
        """Copies the packed graph."""
        target.write_bytes(builder.source.read_bytes())  # unlike a copy by shutil, an error names `target` alone


ENGINE = OnnxFp32()
