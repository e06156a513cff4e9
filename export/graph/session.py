"""Opens graphs on ONNX Runtime's CPU provider."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from release.hardware import keep_products_whole


def open_on_cpu(graph: Path | bytes, *, for_gpu: bool) -> onnxruntime.InferenceSession:
    """A session of a graph, of a file or of what a file would hold.

    Args:
        graph: what to open.
        for_gpu: it is TensorRT's, and the CPU stands in for the gate: its Q/DQ is then computed as it is written.
            False: as the stand-in backend runs it, and Triton's own where a processor has VNNI.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that FP16 is slow on a CPU
    if for_gpu:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    else:
        keep_products_whole(options)
    model = graph if isinstance(graph, bytes) else str(graph)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
