"""Checkpoint -> packed graph -> proved -> published version. Run it as `python -m export`."""

import release  # noqa: F401 (before ONNX Runtime)
