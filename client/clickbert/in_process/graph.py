"""Graphs in ONNX Runtime, on the CPU, each computed by one thread at a time of those that share it.

The distribution's extra `in-process` brings what is imported here.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

# From 1.29 on, ONNX Runtime reports to its maker what it computes, unless this is set when it is imported. Its thread
# for that also hangs every child of a fork that ends by `sys.exit`, as gunicorn's workers do.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

try:
    import onnxruntime
except ImportError as exc:
    raise ImportError(
        "a published version is computed by ONNX Runtime: install the client with its extra,"
        " pip install 'clickbert[in-process]'"
    ) from exc

from clickbert.errors import InvalidInputError, ServerError
from clickbert.in_process.model import Compute
from clickbert.wire.protocol import Array

_CPUINFO = Path("/proc/cpuinfo")


def open_graph(file: Path, counts: Mapping[str, str]) -> Compute:
    """Open a click model's graph; `counts` are its inputs that hold how many elements another one has, by their names.

    Raises `ServerError` if it cannot be loaded.
    """
    session = _session(file)

    def compute(inputs: Mapping[str, Array], outputs: tuple[str, ...]) -> Mapping[str, Array]:
        counted = {name: np.array([inputs[source].size], np.int32) for name, source in counts.items()}
        return dict(zip(outputs, session.run(list(outputs), {**inputs, **counted}), strict=True))

    return compute


def run_constants(file: Path) -> Mapping[str, Array]:
    """Return all outputs of a graph that has no inputs. Raises `InvalidInputError` if it cannot be computed."""
    try:
        session = _session(file)
        return dict(zip((output.name for output in session.get_outputs()), session.run(None, {}), strict=True))
    except ServerError as exc:
        raise InvalidInputError(f"{exc}; export the model again") from exc
    except Exception as exc:  # ONNX Runtime's errors have no class of their own
        raise InvalidInputError(f"{file} cannot be computed: {exc}; export the model again") from exc


def _session(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # pieces are computed side by side; each fits a core's cache
    options.log_severity_level = 4  # the caller gets the error
    if not _has_vnni():
        # On x86 without VNNI the sums of integer products saturate, which changes the ranking, unless this is set.
        # With VNNI it would only cost speed.
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # ONNX Runtime's errors have no class of their own
        raise ServerError(f"{file} cannot be loaded: {exc}") from exc


def _has_vnni() -> bool:
    """Tell whether this processor sums four products of bytes in 32 bits; False where that is unknown."""
    try:
        return "_vnni" in _CPUINFO.read_text(encoding="utf-8")
    except OSError:
        return False
