"""`trt_int8`: linear layers in INT8 by Q/DQ, everything else in FP16, for Triton's tensorrt backend."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from export.engines.trt import TensorRTEngine
from export.verify.gates import INT8, INT8_GATES

if TYPE_CHECKING:
    import onnx

    from export.builder import EngineBuilder


class TrtInt8(TensorRTEngine):
    """INT8 by explicit quantization."""

    name = "trt_int8"
    model = "clickbert_trt_int8"
    precision = INT8
    colour = "#8d6a9f"
    gates = INT8_GATES

    def quantize(self, graph: onnx.ModelProto, builder: EngineBuilder, keep_fp32: Collection[str]) -> None:
        """Puts Q/DQ around the linear layers."""
        from export.quantize.int8 import make_qdq  # noqa: PLC0415

        make_qdq(graph, builder.fit(keep_fp32, signed=True))


ENGINE = TrtInt8()
