"""Property: what occurs twice in a call is sent once, and the results are those of the naive way, one call a pair."""

from collections import Counter

import pytest

from clickbert import Ranker
from tests.client.fakes import FakeTransport, FakeTriton

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed: properties are not checked")
st = hypothesis.strategies

texts = st.one_of(st.sampled_from(["", "a bar", "a bar ", "A bar", "tea", "coffee " * 40]), st.text(max_size=6))


def ranker_on(server: FakeTriton) -> Ranker:
    return Ranker("localhost:8001", transport=FakeTransport(server))


def sent_pairs(server: FakeTriton) -> list[tuple[int, ...]]:
    """The token ids of every pair that was sent."""
    pairs = []
    for request in server.requests:
        if request.model == "clickbert_onnx":
            ids = iter(request.inputs["input_ids"][0].tolist())
            pairs += [tuple(next(ids) for _ in range(length)) for length in request.inputs["lengths"][0]]
    return pairs


@hypothesis.settings(max_examples=60)
@hypothesis.given(
    st.lists(st.tuples(texts, texts), min_size=1, max_size=8),
    st.data(),
    st.sampled_from(["1", "3", "64"]),
)
def test_pairs_that_repeat_are_sent_once_and_scored_alike(distinct, data, limit):
    pairs = data.draw(st.lists(st.sampled_from(distinct), min_size=1, max_size=20))
    server = FakeTriton()
    server.parameters = {"max_elements.lengths": limit}
    with ranker_on(server) as ranker:
        naive = {pair: ranker.score_pairs([pair])[0] for pair in set(pairs)}
        one_by_one = Counter(sent_pairs(server))
        server.requests.clear()
        assert ranker.score_pairs(pairs) == pytest.approx([naive[pair] for pair in pairs], abs=1e-9)
    assert Counter(sent_pairs(server)) == one_by_one


@hypothesis.settings(max_examples=60)
@hypothesis.given(texts, st.lists(texts, min_size=1, max_size=8), st.data(), st.sampled_from([None, 1, 5]))
def test_documents_that_repeat_are_all_in_the_ranking(query, distinct, data, top_k):
    documents = data.draw(st.lists(st.sampled_from(distinct), min_size=1, max_size=20))
    server = FakeTriton()
    with ranker_on(server) as ranker:
        naive = [ranker.score_pairs([(query, document)])[0] for document in documents]
        server.requests.clear()
        ranked = ranker.rank(query, documents, top_k)
    order = sorted(range(len(documents)), key=lambda index: -naive[index])[:top_k]
    assert [item.index for item in ranked] == order
    assert [item.text for item in ranked] == [documents[index] for index in order]
    assert [item.score for item in ranked] == pytest.approx([naive[index] for index in order], abs=1e-9)
    assert len(sent_pairs(server)) == len(set(documents))
