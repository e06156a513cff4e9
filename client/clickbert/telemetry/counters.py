"""`Counters`: counts of the calls, and how long they took, for Prometheus.

The distribution's extra `prometheus` brings what is imported here.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
except ImportError as exc:
    raise ImportError(
        "clickbert.telemetry.counters needs prometheus-client: install the client with its extra, clickbert[prometheus]"
    ) from exc

from clickbert.telemetry.observer import Call
from clickbert.telemetry.registries import metrics_on

OK, FALLBACK = "ok", "fallback"
# Seconds. A ranking takes some ten milliseconds to some seconds; a call's default timeout is 10 s.
_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class _Metrics:
    """The metrics of one registry. Those of the server are `clickbert_...`, so these are `clickbert_client_...`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("call", "model")
        self.calls = Counter(
            "clickbert_client_calls",
            f"Calls that ended, by outcome: {OK}, {FALLBACK}, or the class of the error",
            (*labels, "outcome"),
            registry=registry,
        )
        self.requests = Counter(
            "clickbert_client_requests", "Requests sent, retries included", labels, registry=registry
        )
        self.retries = Counter("clickbert_client_retries", "Requests sent again", labels, registry=registry)
        self.texts = Counter(
            "clickbert_client_texts", "Documents, pairs or texts asked about", labels, registry=registry
        )
        self.seconds = Histogram(
            "clickbert_client_call_seconds", "How long calls took", labels, registry=registry, buckets=_BUCKETS
        )


class Counters:
    """An observer that counts calls, requests, retries and texts, and keeps a histogram of the calls' seconds.

    The metrics' names begin with `clickbert_client_`, their labels are `call` and `model`, and for the calls `outcome`.
    Observers on the same registry, which is Prometheus' own by default, count together.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._metrics = metrics_on(registry, _Metrics)

    @contextmanager
    def observe(self, call: Call) -> Iterator[None]:
        """Count the call when it has ended."""
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            metrics, labels = self._metrics, (call.name, call.model)
            metrics.calls.labels(*labels, FALLBACK if call.is_fallback else call.error or OK).inc()
            metrics.requests.labels(*labels).inc(call.requests)
            metrics.retries.labels(*labels).inc(call.retries)
            metrics.texts.labels(*labels).inc(call.texts)
            metrics.seconds.labels(*labels).observe(seconds)

    def headers(self) -> Mapping[str, str]:
        """Return no header: nothing is counted at the server."""
        return {}
