"""Moves the callers to a new release step by step, or back. Run it as `python -m deploy canary`."""
