"""Scores a checkpoint and says how good it is."""
