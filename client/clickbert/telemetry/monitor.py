"""`Monitor`: how scores and inputs are distributed, beside those of the evaluation log, for Prometheus.

The distribution's extra `prometheus` brings what is imported here.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ImportError as exc:
    raise ImportError(
        "clickbert.telemetry.monitor needs prometheus-client: install the client with its extra, clickbert[prometheus]"
    ) from exc

from clickbert.telemetry.observer import Call
from clickbert.telemetry.registries import metrics_on
from clickbert.wire.inputs import CANDIDATES, TOKENS, Expected, Inputs

_SCORES = tuple(number / 20 for number in range(1, 21))


class _Metrics:
    """The metrics of one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("call", "model")
        self.scores = Histogram(
            "clickbert_client_score", "Click probabilities returned", labels, registry=registry, buckets=_SCORES
        )
        self.candidates = Histogram(
            "clickbert_client_candidates",
            "Documents or pairs of a call that scores",
            labels,
            registry=registry,
            buckets=tuple(map(float, CANDIDATES)),
        )
        self.lengths = Histogram(
            "clickbert_client_pair_tokens",
            "Tokens of a pair, passage or text",
            labels,
            registry=registry,
            buckets=tuple(map(float, TOKENS)),
        )
        self.tokens = Counter("clickbert_client_tokens", "Tokens sent", labels, registry=registry)
        self.truncated = Counter(
            "clickbert_client_truncated_texts", "Pairs or texts that were cut", labels, registry=registry
        )
        self.unknown = Counter("clickbert_client_unknown_tokens", "Tokens that are [UNK]", labels, registry=registry)
        self.expected = Gauge(
            "clickbert_client_expected_share",
            "Share of the evaluation log with at most `le`: of its groups by candidates, of its pairs by tokens",
            ("model", "of", "le"),
            registry=registry,
        )
        self.expected_truncated = Gauge(
            "clickbert_client_expected_truncated_share",
            "Share of the evaluation log's pairs that were cut",
            ("model",),
            registry=registry,
        )
        self.expected_unknown = Gauge(
            "clickbert_client_expected_unknown_share",
            "Share of [UNK] among the evaluation log's tokens",
            ("model",),
            registry=registry,
        )
        self.shown: dict[str, Expected] = {}  # by model, what the gauges have


class Monitor:
    """An observer of what the model is asked and answers: scores, candidates, tokens, what is cut or unknown.

    It counts calls that were answered. Beside these stand the shares that the evaluation log had, if the version that
    answers says them; those of the scores are at the server (`clickbert_scores_expected`). The metrics' names begin
    with `clickbert_client_`, the labels are `call` and `model`. Monitors on the same registry, which is Prometheus' own
    by default, count together.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._metrics = metrics_on(registry, _Metrics)

    @contextmanager
    def observe(self, call: Call) -> Iterator[None]:
        """Have the inputs counted, and take them when the call has ended."""
        if call.inputs is None:
            call.inputs = Inputs()
        yield
        if not call.error:
            self._count(call, call.inputs)

    def headers(self) -> Mapping[str, str]:
        """Return no header: nothing is counted at the server."""
        return {}

    def _count(self, call: Call, inputs: Inputs) -> None:
        metrics, labels = self._metrics, (call.name, call.model)
        if call.scores:
            scores = metrics.scores.labels(*labels)
            for score in call.scores:
                scores.observe(score)
            metrics.candidates.labels(*labels).observe(call.texts)
        lengths = metrics.lengths.labels(*labels)
        for length in inputs.lengths:
            lengths.observe(length)
        metrics.tokens.labels(*labels).inc(inputs.tokens)
        metrics.truncated.labels(*labels).inc(inputs.truncated)
        metrics.unknown.labels(*labels).inc(inputs.unknown)
        if call.expected and metrics.shown.get(call.model) is not call.expected:
            metrics.shown[call.model] = call.expected
            self._show(call.model, call.expected)

    def _show(self, model: str, expected: Expected) -> None:
        metrics = self._metrics
        for name, classes in (("candidates", expected.candidates), ("pair_tokens", expected.tokens)):
            for bound, share in zip(classes, accumulate(classes.values()), strict=True):
                le = bound if bound == "+Inf" else str(float(bound))  # as the histograms' buckets have it
                metrics.expected.labels(model, name, le).set(share)
        metrics.expected_truncated.labels(model).set(expected.truncated)
        metrics.expected_unknown.labels(model).set(expected.unknown)
