"""Starts a real Triton Inference Server on the model repository. Run it as `python -m serving`."""

import release  # noqa: F401 (before ONNX Runtime)
