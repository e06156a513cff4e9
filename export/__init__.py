"""Checkpoint -> packed graph -> proved -> published version. Run it as `python -m export`."""
