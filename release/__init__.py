"""What a published version is. Shared by export, serving and benchmarks; imports the standard library only."""

import os

# ONNX Runtime 1.29 and later reports its use to its maker unless this is set when it is imported; its thread also hangs
# forked processes at their end. The rooms that import it import this package first, and Triton inherits the variable.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
