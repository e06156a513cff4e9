"""`Ranker` over the in-memory transport and over gRPC: order, arguments, splitting, threads, closing."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from clickbert import AsyncRanker, InvalidInputError, RankedDocument, Ranker, RankerClosedError, ServerTimeoutError
from clickbert.calls import running
from tests.client.fake_model import Published
from tests.client.fakes import FakeTransport, FakeTriton, held

DOCUMENTS = ["a cheap bar", "the coffee cafe", "a bank", "", "tea [SEP] [MASK]", "museum of the city", "中文", "pizza"]


def in_memory(server: FakeTriton, **settings) -> Ranker:
    return Ranker("localhost:8001", transport=FakeTransport(server), **settings)


@pytest.mark.parametrize("labels, click_label", [(("click",), 0), (("no", "click"), 1), (("a", "click", "b"), 1)])
def test_scores_are_the_click_probabilities_and_sort_the_documents(labels, click_label):
    server = FakeTriton({7: Published(labels=labels, click_label=click_label)})
    with in_memory(server) as ranker:
        ranked = ranker.rank("coffee near me", DOCUMENTS)
    expected = [server.published[7].expected("coffee near me", document) for document in DOCUMENTS]
    assert sorted(item.index for item in ranked) == list(range(len(DOCUMENTS)))
    for item in ranked:
        assert item.text == DOCUMENTS[item.index]
        assert item.score == pytest.approx(expected[item.index], abs=1e-6)
    assert [item.score for item in ranked] == sorted((item.score for item in ranked), reverse=True)


def test_over_grpc_the_scores_are_the_same(server, url):
    with Ranker(url) as ranker, in_memory(server) as reference:
        assert ranker.rank("cheap hotel", DOCUMENTS) == reference.rank("cheap hotel", DOCUMENTS)
        assert ranker.score_pairs([("a", "b")]) == reference.score_pairs([("a", "b")])


def test_top_k_takes_the_best(server):
    with in_memory(server) as ranker:
        everything = ranker.rank("tea", DOCUMENTS)
        assert ranker.rank("tea", DOCUMENTS, top_k=3) == everything[:3]
        assert ranker.rank("tea", DOCUMENTS, 100) == everything


def test_the_earlier_document_wins_a_tie(server):
    with in_memory(server) as ranker:
        order = [item.index for item in ranker.rank("tea", ["a bar", "a bank"] * 100)]
    bars, banks = list(range(0, 200, 2)), list(range(1, 200, 2))
    assert order in (bars + banks, banks + bars)


def test_score_pairs_keeps_the_order_and_mixes_queries(server):
    pairs = [(query, document) for document in DOCUMENTS for query in ("tea", "", "a park in the city", "tea")]
    with in_memory(server) as ranker:
        scores = ranker.score_pairs(pairs)
    assert scores == pytest.approx([server.published[1].expected(*pair) for pair in pairs], abs=1e-6)


@pytest.mark.parametrize("count, sizes", [(64, [64]), (65, [64, 1]), (300, [64, 64, 64, 64, 44])])
def test_long_calls_are_split_and_come_back_in_order(server, count, sizes):
    documents = [f"cafe {number}" for number in range(count)]
    with in_memory(server) as ranker:
        ranked = ranker.rank("coffee", documents)
    sent = [r.inputs["lengths"].shape for r in server.requests if r.model == "clickbert_onnx"]
    assert sorted(sent, reverse=True) == [(1, size) for size in sizes]
    for item in ranked:
        assert item.score == pytest.approx(server.published[1].expected("coffee", documents[item.index]), abs=1e-6)


@pytest.mark.parametrize("parameters, largest", [({"max_elements.lengths": "10"}, 10), ({}, 64)])
def test_the_servers_limit_of_pairs_is_kept(server, parameters, largest):
    server.parameters = parameters
    with in_memory(server) as ranker:
        ranker.rank("tea", [f"bar {number}" for number in range(100)])
    sizes = [r.inputs["lengths"].shape[1] for r in server.requests if r.model == "clickbert_onnx"]
    assert max(sizes) == largest and sum(sizes) == 100


def test_at_most_four_requests_are_in_flight(server, url):
    running = peak = 0
    lock, four = threading.Lock(), threading.Barrier(4, timeout=30)

    class Counting(FakeTransport):
        def infer(self, request, **options):
            nonlocal running, peak
            with lock:
                running += 1
                peak = max(peak, running)
            if request.model == "clickbert_onnx":
                four.wait()  # none is answered before three others are in flight
            answer = super().infer(request, **options)
            with lock:
                running -= 1
            return answer

    with Ranker(url, transport=Counting(server)) as ranker:
        ranker.rank("tea", [f"bar {number}" for number in range(12 * 64)])
    assert peak == 4


def test_the_constructor_and_bad_arguments_send_nothing(server):
    with in_memory(server, max_documents=10) as ranker:
        for arguments in [
            ("tea", []),
            ("tea", "one text"),
            ("tea", b"bytes"),
            ("tea", None),
            ("tea", {"a", "b"}),
            ("tea", (text for text in "ab")),
            ("tea", ["fine", 7]),
            ("tea", ["fine", "lone \ud800 surrogate"]),
            ("lone \udfff surrogate", ["fine"]),
            (None, ["fine"]),
            ("tea", ["fine"], 0),
            ("tea", ["fine"], -1),
            ("tea", ["fine"], 1.0),
            ("tea", ["fine"], True),
            ("tea", ["fine"] * 11),
        ]:
            with pytest.raises(InvalidInputError):
                ranker.rank(*arguments)
        for pairs in [[], "ab", ["ab"], [("a",)], [("a", 1)], [("a", "b", "c")], [("a", "\ud800")], [("a", "b")] * 11]:
            with pytest.raises(InvalidInputError):
                ranker.score_pairs(pairs)
    assert server.requests == []


def test_too_many_documents_are_refused_with_the_limit(server):
    with in_memory(server) as ranker:
        with pytest.raises(InvalidInputError, match=r"10,000 entries, but the limit is 1,000"):
            ranker.rank("tea", ["a bar"] * 10_000)
        assert len(ranker.rank("tea", ["a bar"] * 1000)) == 1000


@pytest.mark.parametrize(
    "settings",
    [
        *({"timeout": seconds} for seconds in (0, -1, float("nan"), float("inf"), "1", True, 1e300, 10**400)),
        *({"max_documents": number} for number in (0, 1.5, True)),
        *({"model": name} for name in ("", None, "\ud800")),
        {"mask": "x"},
        *({"observers": observers} for observers in (5, None, "x", [5], [object()])),
    ],
)
def test_bad_settings_are_refused(settings):
    for kind in (Ranker, AsyncRanker):
        with pytest.raises(InvalidInputError, match=next(iter(settings))):
            kind("localhost:8001", **settings)


def test_changing_the_list_meanwhile_changes_nothing(server):
    documents = ["a bar", "a bank"]
    server.before_infer = lambda request: documents.clear()
    with in_memory(server) as ranker:
        ranked = ranker.rank("tea", documents)
    assert {item.text for item in ranked} == {"a bar", "a bank"} and documents == []


def test_a_result_cannot_be_changed():
    result = RankedDocument(0, "text", 0.5)
    with pytest.raises(AttributeError):
        result.score = 1.0  # type: ignore[misc]


def test_the_timeout_is_one_deadline_for_the_whole_call(server, monkeypatch):
    transport, now = FakeTransport(server), 100.0

    def spend_a_second(request):
        nonlocal now
        now += 1.0

    monkeypatch.setattr(running, "time", SimpleNamespace(monotonic=lambda: now))
    server.before_infer = spend_a_second
    with Ranker("localhost:8001", timeout=10, transport=transport) as ranker:
        ranker.rank("tea", [f"bar {number}" for number in range(64)])
    # Two questions about the model and its tokenizer, whose answer takes a second, and then the request.
    assert transport.timeouts == [10, 10, 9]

    with Ranker("localhost:8001", timeout=2.5, transport=transport) as ranker:
        with pytest.raises(ServerTimeoutError, match=r"within 2\.5 s"):
            ranker.rank("tea", [f"bar {number}" for number in range(1000)])
    assert len(server.asked) < 2 + 1000 / 64, "what comes too late is not sent"


def test_many_threads_share_one_ranker_and_fetch_one_tokenizer(server, url):
    queries = [f"coffee {number}" for number in range(40)]
    with Ranker(url) as ranker, ThreadPoolExecutor(16) as threads:
        results = list(threads.map(lambda query: ranker.rank(query, DOCUMENTS * 10), queries))
    for query, ranked in zip(queries, results, strict=True):
        for item in ranked[:3]:
            assert item.score == pytest.approx(server.published[1].expected(query, item.text), abs=1e-6)
    assert server.asked.count(("clickbert_tokenizer", "1")) == 1


def test_a_closed_ranker_says_so(server, url):
    ranker = Ranker(url)
    ranker.rank("tea", ["a bar"])
    ranker.close()
    ranker.close()
    with pytest.raises(RankerClosedError, match="closed"):
        ranker.rank("tea", ["a bar"])


def test_closing_ends_running_calls(server, url):
    ranker = Ranker(url)
    ranker.rank("tea", ["a bar"])
    with ThreadPoolExecutor(1) as thread, held(server) as requests:
        running = thread.submit(ranker.rank, "tea", ["a bar"])
        requests.wait_until_reached()
        ranker.close()
        with pytest.raises(RankerClosedError):
            running.result()
        assert not requests.answer.is_set(), "it waited for the answer"
