"""`onnx_int8`: linear layers and word embeddings in 8 bits, for packed_cpu and Triton's onnxruntime backend."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export.engines.base import Engine
from export.graph.layer_names import EMBEDDINGS, belongs
from export.verify.gates import INT8, INT8_GATES

if TYPE_CHECKING:
    from export.builder import EngineBuilder


class OnnxInt8(Engine):
    """INT8 by ONNX Runtime's fused operators."""

    name = "onnx_int8"
    model = "clickbert_onnx_int8"
    precision = INT8
    colour = "#c8553d"
    gates = INT8_GATES

    def reduced_layers(self, linears: Sequence[str]) -> list[str]:
        """All linear layers, and the table of word embeddings."""
        return [*linears, EMBEDDINGS]

    def write(self, builder: EngineBuilder, target: Path, keep_fp32: Collection[str] = ()) -> None:
        """Puts one fused INT8 product in the place of each linear layer."""
        import onnx  # noqa: PLC0415

        from export.graph.lint import lint  # noqa: PLC0415
        from export.quantize.int8 import make_int8  # noqa: PLC0415

        graph = builder.load()
        words = None if any(belongs(EMBEDDINGS, name) for name in keep_fp32) else builder.words()
        make_int8(graph, builder.fit(keep_fp32, signed=False), words)
        lint(graph, tensorrt=False)
        onnx.save(graph, target)


ENGINE = OnnxInt8()
