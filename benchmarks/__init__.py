"""Uses the whole: load on a served model, and the demo. Run it as `python -m benchmarks`."""
