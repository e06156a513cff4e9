"""Training runs, on transformers' Trainer."""
