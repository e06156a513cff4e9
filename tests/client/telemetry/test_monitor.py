"""What Prometheus gets of scores and inputs: exactly what was returned, and what the tokenizers library reads."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pytest
from tokenizers import Encoding, Tokenizer

from clickbert import InvalidInputError, ServerUnavailableError
from clickbert.telemetry.observer import Call
from clickbert.wire.inputs import CANDIDATES, TOKENS, Expected, Inputs, read_expected
from tests.client.fake_model import MODEL, WORDS, Published, tokenizer_json
from tests.client.fakes import FakeTriton
from tests.client.telemetry.test_telemetry import DRAINING, call, failing

prometheus = pytest.importorskip("prometheus_client", reason="prometheus-client is not installed: no count is checked")

from clickbert.telemetry.monitor import Monitor  # noqa: E402

HEADS = {"topics": ["a", "b"], "several_topics": False, "embedding_size": 0, "passages": None}
EXPECTED = {
    "candidates": dict.fromkeys(CANDIDATES, 0.0) | {"5": 0.25, "20": 0.75},
    "tokens": dict.fromkeys(TOKENS, 0.0) | {"16": 0.5, "64": 0.5},
    "truncated": 0.125,
    "unknown": 0.01,
}
UNKNOWN = "\u597d"  # a character that the vocabulary lacks
LONG = "cheap coffee near me " * 10
DOCUMENTS = ["a bar", "a bank " + UNKNOWN, LONG, "", "tea"]


class Found:
    """A monitor on a registry of its own, and what it counted of the calls of one name."""

    def __init__(self, name: str = "rank") -> None:
        self.registry = prometheus.CollectorRegistry()
        self.observer, self.name = Monitor(self.registry), name

    def of(self, figure: str, **labels: str) -> float | None:
        labels = {"call": self.name, "model": MODEL, **labels}
        return self.registry.get_sample_value(f"clickbert_client_{figure}", labels)

    def bucket(self, figure: str, bound: str) -> float | None:
        return self.of(f"{figure}_bucket", le=bound)

    def counts(self) -> list[float | None]:
        names = (
            "tokens_total",
            "truncated_texts_total",
            "unknown_tokens_total",
            "pair_tokens_count",
            "pair_tokens_sum",
        )
        return [self.of(name) for name in names]


def in_the_library(published: Published, texts: Sequence[tuple[str, ...]]) -> list[Encoding]:
    """Pairs or single texts by the tokenizers library's own form and truncation."""
    tokenizer = Tokenizer.from_str(published.tokenizer.decode())
    tokenizer.enable_truncation(published.max_length)
    return [tokenizer.encode(*each) for each in texts]


def counted(encodings: Sequence[Encoding]) -> list[float]:
    lengths = [len(each.ids) for each in encodings]
    unknown = sum(each.tokens.count("[UNK]") for each in encodings)
    return [sum(lengths), sum(bool(each.overflowing) for each in encodings), unknown, len(lengths), sum(lengths)]


def test_scores_and_inputs_are_those_of_the_call(server: FakeTriton, blocking: bool) -> None:
    found = Found()
    ranked = call(server, blocking, "rank", "tea " + UNKNOWN, DOCUMENTS, observers=[found.observer])
    scores = [document.score for document in ranked]
    assert found.of("score_count") == len(DOCUMENTS)
    assert found.of("score_sum") == pytest.approx(sum(scores))
    for bound in ("0.05", "0.5", "0.95", "1.0"):
        assert found.bucket("score", bound) == sum(score <= float(bound) for score in scores)
    assert [found.bucket("candidates", bound) for bound in ("2.0", "5.0")] == [0, 1]
    encodings = in_the_library(server.published[1], [("tea " + UNKNOWN, text) for text in DOCUMENTS])
    assert found.counts() == counted(encodings)
    assert found.of("truncated_texts_total") == 1
    assert found.of("unknown_tokens_total") == 6
    assert found.bucket("pair_tokens", "8.0") == sum(len(each.ids) <= 8 for each in encodings)


def test_a_pair_that_fits_exactly_is_not_cut(server: FakeTriton) -> None:
    room = server.published[1].max_length - 3
    for words, cut in ((room - 1, 0), (room, 1)):
        found = Found()
        call(server, True, "rank", "tea", ["bar " * words], observers=[found.observer])
        assert found.of("truncated_texts_total") == cut
        assert found.of("pair_tokens_sum") == room + 3


def test_a_query_that_is_computed_once_is_counted_once(blocking: bool) -> None:
    server = FakeTriton({1: Published(heads=HEADS | {"user_tokens": 4})})
    for query, cut in (("tea bar tea bar", 0), ("tea bar tea bar tea", 2)):
        found = Found()
        call(server, blocking, "rank", query, ["a bar", "tea"], observers=[found.observer])
        tokens = (4 + 1) + (2 + 2) + (1 + 2)
        assert found.counts() == [tokens, cut, 0, 2, tokens + 4 + 1]


def test_single_texts_are_counted_without_scores(blocking: bool) -> None:
    server = FakeTriton({1: Published(heads=HEADS)})
    found = Found("classify")
    call(server, blocking, "classify", [*DOCUMENTS, "tea"], observers=[found.observer])
    assert found.counts() == counted(in_the_library(server.published[1], [(text,) for text in DOCUMENTS]))
    assert found.of("score_count") is None
    assert found.of("candidates_count") is None


def test_a_document_that_is_read_in_passages_is_not_cut(blocking: bool) -> None:
    passages = {"aggregate": "max", "overlap": 4, "best": 1}
    server = FakeTriton({1: Published(heads=HEADS | {"passages": passages})})
    published = server.published[1]
    for query, cut in (("tea", 0), (LONG, 2)):
        found, documents = Found(), [LONG + "of", "a bar " * 30]
        call(server, blocking, "rank", query, documents, observers=[found.observer], long_documents="passages")
        windows = [window for document in documents for window in published.passages(query, document)]
        tokens = sum(len(window.ids) for window in windows)
        assert len(windows) > len(documents)
        assert found.counts() == [tokens, cut, 0, len(windows), tokens]


def test_what_is_asked_again_is_counted_once(blocking: bool) -> None:
    """Version 2 has another tokenizer: the call is made anew with it."""
    server = FakeTriton({1: Published(), 2: Published(tokenizer=tokenizer_json([*WORDS, UNKNOWN]))})
    server.serving = 1
    found, documents = Found(), [f"a bar {UNKNOWN} {number}" for number in range(150)]

    def switch(request) -> None:
        if request.model == MODEL:
            server.serving = 2

    server.before_infer = switch
    call(server, blocking, "rank", "tea", documents, observers=[found.observer])
    encodings = in_the_library(server.published[2], [("tea", text) for text in documents])
    assert found.counts() == counted(encodings)
    assert found.of("unknown_tokens_total") == 0


def test_a_call_that_failed_is_not_counted(server: FakeTriton, blocking: bool) -> None:
    found = Found()
    failing(server, DRAINING, times=2)
    with pytest.raises(ServerUnavailableError):
        call(server, blocking, "rank", "tea", ["a bar"], observers=[found.observer], retries=0)
    call(server, blocking, "rank", "tea", ["a bar"], observers=[found.observer], retries=0, fallback=True)
    with pytest.raises(InvalidInputError):
        call(server, blocking, "classify", ["tea"], observers=[found.observer])
    assert b"clickbert_client_tokens_total{" not in prometheus.generate_latest(found.registry)


class Watcher:
    """An observer that keeps the calls that it sees, and asks for nothing."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    @contextmanager
    def observe(self, call: Call) -> Iterator[None]:
        self.calls.append(call)
        yield

    def headers(self) -> Mapping[str, str]:
        return {}


def test_nothing_is_counted_that_no_observer_asks_for(
    server: FakeTriton, blocking: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Inputs, "note", lambda *_: pytest.fail("it counted"))
    watcher = Watcher()
    (document,) = call(server, blocking, "rank", "tea", ["a bar"], observers=[watcher])
    (seen,) = watcher.calls
    assert (seen.inputs, list(seen.scores)) == (None, [document.score])


def test_the_evaluation_log_stands_beside_it_as_shares_up_to_each_bound(blocking: bool) -> None:
    server = FakeTriton({1: Published(heads=HEADS | {"expected": EXPECTED})})
    found = Found()
    for _ in range(2):
        call(server, blocking, "rank", "tea", ["a bar"], observers=[found.observer])

    def share(of: str, bound: str) -> float | None:
        labels = {"model": MODEL, "of": of, "le": bound}
        return found.registry.get_sample_value("clickbert_client_expected_share", labels)

    assert [share("candidates", bound) for bound in ("2.0", "5.0", "10.0", "20.0", "+Inf")] == [0, 0.25, 0.25, 1, 1]
    assert [share("pair_tokens", bound) for bound in ("8.0", "16.0", "64.0", "+Inf")] == [0, 0.5, 1, 1]
    for name, expected in (("truncated", 0.125), ("unknown", 0.01)):
        value = found.registry.get_sample_value(f"clickbert_client_expected_{name}_share", {"model": MODEL})
        assert value == expected
    for figure, of in (("candidates", "candidates"), ("pair_tokens", "pair_tokens")):
        buckets = {
            sample.labels["le"]
            for metric in found.registry.collect()
            for sample in metric.samples
            if sample.name == f"clickbert_client_{figure}_bucket"
        }
        assert all(share(of, bound) is not None for bound in buckets), "each bucket has its share, by the same label"


def test_releases_that_differ_in_what_to_expect_alone_are_interchangeable(blocking: bool) -> None:
    server = FakeTriton({1: Published(heads=HEADS), 2: Published(heads=HEADS | {"expected": EXPECTED}, shift=0.5)})
    server.serving = 1
    watcher = Watcher()
    server.before_infer = lambda request: setattr(server, "serving", 2 if request.model == MODEL else server.serving)
    call(server, blocking, "rank", "tea", ["a bar"], observers=[watcher])
    assert [version for model, version in server.asked if model == MODEL] == [""], "it is not asked again"
    assert watcher.calls[0].version == "2"
    assert watcher.calls[0].expected == Expected(**EXPECTED)


@pytest.mark.parametrize(
    "changes",
    [
        {"candidates": {}},
        {"candidates": {"1": 1.0}},
        {"tokens": None},
        {"tokens": dict.fromkeys(TOKENS, "0")},
        {"tokens": dict.fromkeys(TOKENS, float("nan"))},
        {"truncated": None},
        {"truncated": True},
        {"unknown": -1},
        {"unknown": 1e400},
    ],
)
def test_what_another_release_says_in_another_way_is_left_alone(changes: dict) -> None:
    assert read_expected({"expected": EXPECTED}) == Expected(**EXPECTED)
    assert read_expected({"expected": EXPECTED | {"more": 1}}) == Expected(**EXPECTED)
    mixed = {name: dict(sorted(EXPECTED[name].items())) for name in ("candidates", "tokens")}
    found = read_expected({"expected": EXPECTED | mixed})
    assert found and tuple(mixed["tokens"]) != TOKENS, "JSON may have them in any order; they are summed up in theirs"
    assert (tuple(found.candidates), tuple(found.tokens)) == (CANDIDATES, TOKENS)
    assert found == Expected(**EXPECTED)
    assert read_expected({"expected": EXPECTED | changes}) is None


@pytest.mark.parametrize("value", [None, [], {}, {"expected": None}, {"expected": []}, {"expected": "x"}])
def test_a_former_release_says_nothing(value: object) -> None:
    assert read_expected(value) is None


def test_monitors_on_one_registry_count_together(server: FakeTriton, blocking: bool) -> None:
    found = Found()
    both = [found.observer, Monitor(found.registry)]
    call(server, blocking, "rank", "tea", ["a bar"], observers=both[:1])
    call(server, blocking, "rank", "tea", ["a bar"], observers=both[1:])
    assert found.of("score_count") == 2


def test_what_is_exposed_has_no_text(server: FakeTriton, blocking: bool) -> None:
    found = Found()
    call(server, blocking, "rank", "canary", ["a canary"], observers=[found.observer])
    assert b"clickbert_client_score_bucket" in prometheus.generate_latest(found.registry)
    assert b"canary" not in prometheus.generate_latest(found.registry)
