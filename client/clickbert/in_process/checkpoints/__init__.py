"""Checkpoints, Hugging Face folders: read by name, computed by PyTorch."""
