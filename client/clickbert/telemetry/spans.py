"""`Spans`: a span of OpenTelemetry for each call, and its trace carried on to the server.

The distribution's extra `opentelemetry` brings what is imported here: the API alone. Without an SDK set up by the
application, every span is a no-operation.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

try:
    from opentelemetry import propagate
    from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider, get_tracer
except ImportError as exc:
    raise ImportError(
        "clickbert.telemetry.spans needs opentelemetry-api: install the client with its extra, clickbert[opentelemetry]"
    ) from exc

from clickbert.telemetry.observer import Call

# By OpenTelemetry's semantic conventions. They have none for a call of several requests; these are what it sends.
_RPC = {"rpc.system.name": "grpc", "rpc.method": "inference.GRPCInferenceService/ModelInfer"}


class Spans:
    """An observer that makes a client span of each call, "clickbert rank", within the caller's own span.

    Its attributes: `clickbert.model`, `.version`, `.texts`, `.requests`, `.retries` and `.is_fallback`; and
    `error.type`, the class of the error that the call ended with. No text, and no message of an error. The call's
    requests carry the span on, by the propagators of the application (`traceparent` by default).

    Without a `tracer_provider` the spans go to the application's global one.
    """

    def __init__(self, tracer_provider: TracerProvider | None = None) -> None:
        self._tracer = get_tracer("clickbert", tracer_provider=tracer_provider)

    @contextmanager
    def observe(self, call: Call) -> Iterator[None]:
        """Have a span around the call."""
        with self._tracer.start_as_current_span(
            f"clickbert {call.name}",
            kind=SpanKind.CLIENT,
            attributes={**_RPC, "clickbert.model": call.model, "clickbert.texts": call.texts},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            finally:
                span.set_attributes(
                    {
                        "clickbert.requests": call.requests,
                        "clickbert.retries": call.retries,
                        "clickbert.is_fallback": call.is_fallback,
                    }
                )
                if call.version:
                    span.set_attribute("clickbert.version", call.version)
                if call.error:
                    span.set_attribute("error.type", call.error)
                    span.set_status(Status(StatusCode.ERROR, call.error))

    def headers(self) -> Mapping[str, str]:
        """Return the headers that carry the current span on."""
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        return carrier
