"""The packed graphs as PyTorch modules."""
