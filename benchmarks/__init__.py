"""Uses the whole: load on a served model, and the demo. Run it as `python -m benchmarks`."""


class BenchmarkError(RuntimeError):
    """There are no figures; the message says what is wrong and what to do."""
