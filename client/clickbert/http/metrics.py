"""Counts every request, and answers for every error: a failure of the app's own is one line in the log, and a 500."""

import logging
import time
from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clickbert.http.forms.choice import path_of

_logger = logging.getLogger("clickbert.http")
HUNG_UP = 499  # as nginx counts a caller that did not wait
# Seconds. A ranking takes some ten milliseconds to some seconds; a call's default timeout is 10 s.
_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Watch:
    """ASGI middleware around all routes; `paths` are the ones that are counted by name."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry, paths: Collection[str]) -> None:
        self._app, self._paths = app, frozenset(paths)
        self._requests = Counter(
            "clickbert_http_requests",
            f"Requests that ended; status {HUNG_UP}: the caller hung up before",
            ("method", "path", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "clickbert_http_request_seconds", "How long requests took", ("path",), registry=registry, buckets=_BUCKETS
        )
        self._in_flight = Gauge("clickbert_http_requests_in_flight", "Requests being answered", registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = HUNG_UP

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        began = time.perf_counter()
        self._in_flight.inc()
        fault = ""
        try:
            try:
                await self._app(scope, receive, note)
            except Exception as exc:  # whatever it is; its message might hold a text
                fault = f"{type(exc).__name__}, a fault of clickbert.http's own{_place(exc)}"
            if fault:  # out here: a log that cannot be written to shows the exception that is being handled
                _logger.error("a request failed with %s", fault)
                if status == HUNG_UP:  # no answer has begun
                    failed = "this server failed: whoever runs it finds the reason in its log"
                    await JSONResponse({"message": failed, "detail": failed}, 500)(scope, receive, note)
        finally:
            path = path_of(scope) if path_of(scope) in self._paths else "other"
            method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "OPTIONS") else "other"
            self._in_flight.dec()
            self._requests.labels(method, path, status).inc()
            self._seconds.labels(path).observe(time.perf_counter() - began)


def _place(exc: BaseException) -> str:
    """Say where it was raised: file and line hold no text."""
    trace = exc.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace else ""
