"""Opens graphs on ONNX Runtime's CPU provider."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnxruntime

from export.graph.packing import Feed, Outputs, add_longest
from release.hardware import keep_products_whole
from release.names import KEPT, KEPT_PREFIXES


def open_on_cpu(graph: Path | bytes, *, for_gpu: bool) -> onnxruntime.InferenceSession:
    """Opens a graph.

    Args:
        graph: the file, or its content.
        for_gpu: the graph is TensorRT's, and the CPU stands in for the GPU at the gate: Q/DQ is computed as written.
            False: the graph runs as in packed_cpu, and as in Triton's own where the processor has VNNI.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that FP16 is slow on a CPU
    if for_gpu:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    else:
        keep_products_whole(options)
    model = graph if isinstance(graph, bytes) else str(graph)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def open_graph(graph: Path, *, for_gpu: bool = False) -> Callable[[Feed], Outputs]:
    """A graph as a function of one packed batch, on ONNX Runtime's CPU provider; `for_gpu` if it is TensorRT's.

    Its output KEPT is computed only for a batch with KEPT_PREFIXES.
    """
    session = open_on_cpu(graph, for_gpu=for_gpu)
    every = [value.name for value in session.get_outputs()]

    def run(feed: Feed) -> Outputs:
        names = every if KEPT_PREFIXES in feed else [name for name in every if name != KEPT]
        return dict(zip(names, session.run(names, add_longest(feed) if for_gpu else feed), strict=True))

    return run
