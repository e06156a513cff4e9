"""Starts a real Triton Inference Server on the model repository. Run it as `python -m serving`."""
