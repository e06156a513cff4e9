"""What OpenTelemetry and Prometheus get of a ranker's calls, by their own SDK and registry."""

import asyncio
import subprocess
import sys

import pytest

from clickbert import (
    AsyncRanker,
    AuthenticationError,
    InvalidInputError,
    Ranker,
    ServerTimeoutError,
    ServerUnavailableError,
)
from tests.client.fake_model import MODEL, FakeStatusError
from tests.client.fakes import AsyncFakeTransport, FakeTransport, FakeTriton, Guard, grpc_server

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="opentelemetry-sdk is not installed: no span is checked")
prometheus = pytest.importorskip("prometheus_client", reason="prometheus-client is not installed: no count is checked")

from opentelemetry import trace  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402
from opentelemetry.trace import SpanKind, StatusCode  # noqa: E402

from clickbert.telemetry.counters import Counters  # noqa: E402
from clickbert.telemetry.observer import Call  # noqa: E402
from clickbert.telemetry.spans import Spans  # noqa: E402

DRAINING = FakeStatusError("UNAVAILABLE", "Server is stopping, scheduler for model has stopped accepting new requests")


class Traces:
    """An SDK with its spans in memory."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = sdk.TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    @property
    def finished(self):
        return self.exporter.get_finished_spans()


@pytest.fixture
def traces() -> Traces:
    return Traces()


@pytest.fixture
def registry() -> "prometheus.CollectorRegistry":
    return prometheus.CollectorRegistry()


def failing(server: FakeTriton, error: FakeStatusError, times: int) -> None:
    """Let the first requests to the click model fail."""
    left = [times]

    def fail(request):
        if request.model == MODEL and left[0]:
            left[0] -= 1
            raise error

    server.before_infer = fail


def call(server: FakeTriton, blocking: bool, method: str, *arguments, observers, retries: int = 2, **options):
    """One call of a method of either ranker over the in-memory transport."""
    settings = {"observers": observers, "retries": retries}
    if blocking:
        ranker = Ranker("localhost:8001", transport=FakeTransport(server), **settings)
        return getattr(ranker, method)(*arguments, **options)

    async def ask():
        ranker = AsyncRanker("localhost:8001", transport=AsyncFakeTransport(server), **settings)
        return await getattr(ranker, method)(*arguments, **options)

    return asyncio.run(ask())


def test_a_call_is_a_client_span_with_its_counts_and_no_text(server, blocking, traces):
    call(server, blocking, "rank", "tea for two", ["a bar", "a bank"], observers=[Spans(traces.provider)])
    (span,) = traces.finished
    assert (span.name, span.kind, span.status.status_code) == ("clickbert rank", SpanKind.CLIENT, StatusCode.UNSET)
    requests = span.attributes["clickbert.requests"]
    assert requests >= 2, "the tokenizer's, and the model's"
    assert dict(span.attributes) == {
        "rpc.system.name": "grpc",
        "rpc.method": "inference.GRPCInferenceService/ModelInfer",
        "clickbert.model": MODEL,
        "clickbert.version": "1",
        "clickbert.texts": 2,
        "clickbert.requests": requests,
        "clickbert.retries": 0,
        "clickbert.is_fallback": False,
    }
    assert not span.events
    assert all(text not in span.to_json() for text in ("tea", "bar", "bank"))


def test_a_failed_calls_span_has_the_errors_class_and_not_its_message(server, blocking, traces):
    failing(server, FakeStatusError("DEADLINE_EXCEEDED", "Deadline Exceeded (canary)"), times=1)
    with pytest.raises(ServerTimeoutError, match="canary"):
        call(server, blocking, "score_pairs", [("tea", "a bar")], observers=[Spans(traces.provider)])
    (span,) = traces.finished
    assert span.name == "clickbert score_pairs"
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "ServerTimeoutError")
    assert span.attributes["error.type"] == "ServerTimeoutError"
    assert "clickbert.version" not in span.attributes
    assert not span.events
    assert "canary" not in span.to_json()


def test_an_exception_that_comes_through_a_span_is_not_recorded(traces):
    with pytest.raises(ValueError, match="canary"), Spans(traces.provider).observe(Call("rank", MODEL, 1)):
        raise ValueError("canary")
    (span,) = traces.finished
    assert not span.events
    assert "canary" not in span.to_json()


def test_a_retry_and_a_fallback_are_told(server, blocking, traces):
    failing(server, DRAINING, times=1)
    spans = Spans(traces.provider)
    call(server, blocking, "rank", "tea", ["a bar"], observers=[spans])
    failing(server, DRAINING, times=1)
    call(server, blocking, "rank", "tea", ["a bar"], observers=[spans], retries=0, fallback=True)
    retried, fell_back = traces.finished
    assert (retried.attributes["clickbert.retries"], retried.status.status_code) == (1, StatusCode.UNSET)
    assert (fell_back.attributes["clickbert.is_fallback"], fell_back.attributes["clickbert.retries"]) == (True, 0)
    assert fell_back.attributes["error.type"] == "ServerUnavailableError"


def test_requests_carry_the_span_on_within_the_callers_own(server, blocking, traces):
    guard = Guard("traceparent", None)  # refuses every call that has the header, and keeps what was sent
    tracer = trace.get_tracer("page", tracer_provider=traces.provider)
    with grpc_server(server, guard) as url, tracer.start_as_current_span("page"):
        observers = [Spans(traces.provider)]
        with pytest.raises(AuthenticationError, match="not with 00-"):
            if blocking:
                with Ranker(url, observers=observers) as ranker:
                    ranker.rank("tea", ["a bar"])
            else:

                async def rank():
                    async with AsyncRanker(url, observers=observers) as ranker:
                        await ranker.rank("tea", ["a bar"])

                asyncio.run(rank())
    span, page = traces.finished
    assert span.parent.span_id == page.context.span_id
    assert span.context.trace_id == page.context.trace_id
    assert guard.calls
    expected = f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}"
    assert {sent.rpartition("-")[0] for _, sent in guard.calls} == {expected}


def test_calls_at_once_have_spans_of_their_own(server, traces):
    async def ask():
        transport = AsyncFakeTransport(server)
        ranker = AsyncRanker("localhost:8001", transport=transport, observers=[Spans(traces.provider)])
        await asyncio.gather(*(ranker.rank("tea", [f"bar {number}"] * (number + 1)) for number in range(20)))
        return transport.inner.headers

    headers = asyncio.run(ask())
    assert sorted(span.attributes["clickbert.texts"] for span in traces.finished) == list(range(1, 21))
    assert all(span.parent is None for span in traces.finished)
    ids = {f"{span.context.span_id:016x}" for span in traces.finished}
    assert len(ids) == 20
    assert {sent["traceparent"].split("-")[2] for sent in headers} == ids


def test_without_an_sdk_spans_cost_no_call(server, blocking):
    assert call(server, blocking, "rank", "tea", ["a bar"], observers=[Spans()])


def test_calls_are_counted_by_outcome(server, blocking, registry):
    counters = [Counters(registry)]
    call(server, blocking, "rank", "tea", ["a bar", "a bank"], observers=counters)
    failing(server, DRAINING, times=1)
    call(server, blocking, "rank", "tea", ["a bar"], observers=counters)  # after a retry
    failing(server, DRAINING, times=1)
    call(server, blocking, "rank", "tea", ["a bar"], observers=counters, retries=0, fallback=True)
    failing(server, DRAINING, times=1)
    with pytest.raises(ServerUnavailableError):
        call(server, blocking, "rank", "tea", ["a bar"], observers=counters, retries=0)
    with pytest.raises(InvalidInputError):
        call(server, blocking, "classify", ["tea"], observers=counters)  # this model has no topics

    def of(name: str, call: str = "rank", **labels: str) -> float | None:
        return registry.get_sample_value(f"clickbert_client_{name}", {"call": call, "model": MODEL, **labels})

    assert [of("calls_total", outcome=outcome) for outcome in ("ok", "fallback", "ServerUnavailableError")] == [2, 1, 1]
    assert of("calls_total", "classify", outcome="InvalidInputError") == 1
    assert (of("texts_total"), of("texts_total", "classify")) == (5, 1)
    assert of("retries_total") == 1
    assert of("requests_total") >= 5 + of("retries_total")
    assert (of("call_seconds_count"), of("call_seconds_count", "classify")) == (4, 1)
    assert 0 < of("call_seconds_sum") < 60


def test_observers_on_one_registry_count_together(server, blocking, registry):
    for _ in range(2):
        call(server, blocking, "rank", "tea", ["a bar"], observers=[Counters(registry)])
    labels = {"call": "rank", "model": MODEL, "outcome": "ok"}
    assert registry.get_sample_value("clickbert_client_calls_total", labels) == 2


def test_what_is_exposed_has_no_text(server, blocking, registry):
    call(server, blocking, "rank", "canary", ["a canary"], observers=[Counters(registry)])
    assert b"clickbert_client_calls_total" in prometheus.generate_latest(registry)
    assert b"canary" not in prometheus.generate_latest(registry)


def test_the_default_is_prometheus_own_registry():
    """In a process of its own: nothing else is to be in that registry."""
    script = (
        "from clickbert.telemetry.counters import Counters; from prometheus_client import generate_latest;"
        " Counters(); Counters(); print(generate_latest().decode())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "clickbert_client_call_seconds" in done.stdout


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("spans", "opentelemetry", "opentelemetry"),
        ("counters", "prometheus_client", "prometheus"),
        ("monitor", "prometheus_client", "prometheus"),
    ],
)
def test_without_its_extra_the_import_says_which_one(module, library, extra):
    script = f"import sys; sys.modules[{library!r}] = None; import clickbert; import clickbert.telemetry.{module}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert f"ImportError: clickbert.telemetry.{module} needs" in done.stderr
    assert f"clickbert[{extra}]" in done.stderr


def test_the_client_alone_imports_neither():
    script = "import sys, clickbert; print({'opentelemetry', 'prometheus_client'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


def test_both_at_once(server, blocking, traces, registry):
    observers = [Spans(traces.provider), Counters(registry)]
    assert call(server, blocking, "rank", "tea", ["a bar"], observers=observers)
    assert len(traces.finished) == 1
    labels = {"call": "rank", "model": MODEL}
    assert registry.get_sample_value("clickbert_client_call_seconds_count", labels) == 1
