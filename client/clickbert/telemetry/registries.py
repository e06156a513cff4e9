"""One set of metrics for each registry of Prometheus: a registry refuses a name that it has."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry

Metrics = TypeVar("Metrics")

_METRICS: dict[tuple[Callable[[CollectorRegistry], Any], CollectorRegistry], Any] = {}
_LOCK = threading.Lock()


def metrics_on(registry: CollectorRegistry, make: Callable[[CollectorRegistry], Metrics]) -> Metrics:
    """Return what `make` made for this registry: a process has several rankers, and their observers share it."""
    with _LOCK:
        if (make, registry) not in _METRICS:
            _METRICS[make, registry] = make(registry)
        found: Metrics = _METRICS[make, registry]
        return found
