"""A model that reads each query once: what is sent, what is scored, and a server whose parts disagree."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clickbert import ProtocolError, Ranker
from clickbert.wire.packing import PackedPairs, PackedUsers
from clickbert.wire.protocol import ModelDescription
from clickbert.wire.tokenization import PairTokenizer
from tests.client.fakes import FakeTransport, FakeTriton, Published, call_once, tokenizer_json

HEADS = {"topics": ["a", "b"], "several_topics": False, "embedding_size": 4, "passages": None, "user_tokens": 6}
QUERIES = ["", "cheap coffee", "near me " * 20]
DOCUMENTS = ["a bar", "", "the museum of the city", "park " * 60, "中文", "a bar"]
words = st.lists(st.sampled_from(["the", "cheap", "tea", "ings", "中", "q"]), max_size=40).map(" ".join)


@pytest.fixture
def server() -> FakeTriton:
    return FakeTriton({3: Published(heads=HEADS)})


def sent(server: FakeTriton) -> list[dict[str, list[int]]]:
    """The lengths that each request to the click model gave."""
    return [
        {name: request.inputs[name][0].tolist() for name in ("user_lengths", "user_pairs", "lengths")}
        for request in server.requests
        if request.model == "clickbert_onnx"
    ]


def unpacked(packed: PackedUsers | PackedPairs) -> list[list[int]]:
    """Each pair's ids, as Hugging Face has them."""
    ids = packed.input_ids.tolist()
    if isinstance(packed, PackedPairs):
        ends = np.cumsum(packed.lengths)
        return [ids[end - length : end] for end, length in zip(ends, packed.lengths, strict=True)]
    found, lengths = [], iter(packed.lengths.tolist())
    for size, pairs in zip(packed.user_lengths.tolist(), packed.user_pairs.tolist(), strict=True):
        user, ids = ids[:size], ids[size:]
        for _ in range(pairs):
            length = next(lengths)
            found.append([ids[0], *user, *ids[1:length]])
            ids = ids[length:]
    assert not ids
    return found


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_is_sent_once_and_every_document_has_its_score(server, url, blocking, query):
    ranked = call_once(url, blocking, "rank", query, DOCUMENTS)
    expected = [server.published[3].expected(query, document) for document in DOCUMENTS]
    assert [each.score for each in ranked] == pytest.approx(sorted(expected, reverse=True), abs=1e-6)
    assert all(each.score == pytest.approx(expected[each.index], abs=1e-6) for each in ranked)
    (request,) = sent(server)
    assert request["user_lengths"][0] <= 7, "six tokens and [SEP]"
    assert request["user_pairs"] == [len(set(DOCUMENTS))]


def test_pairs_of_many_queries_are_one_request_with_each_query_once(server, url, blocking):
    pairs = list(product(QUERIES, DOCUMENTS))[::-1]
    scores = call_once(url, blocking, "score_pairs", pairs)
    assert scores == pytest.approx([server.published[3].expected(*pair) for pair in pairs], abs=1e-6)
    (request,) = sent(server)
    assert sorted(request["user_pairs"]) == [5, 5, 5]


def test_a_large_call_has_a_query_in_each_of_its_requests(server, url, blocking):
    server.parameters["max_elements.lengths"] = "4"
    documents = [f"tea {number}" for number in range(10)]
    ranked = call_once(url, blocking, "rank", "cheap coffee", documents)
    assert {each.index: each.score for each in ranked} == pytest.approx(
        {index: server.published[3].expected("cheap coffee", document) for index, document in enumerate(documents)}
    )
    assert sorted(request["user_pairs"] for request in sent(server)) == [[2], [4], [4]]


def test_single_texts_have_no_query(server, url, blocking):
    found = call_once(url, blocking, "embed", DOCUMENTS)
    np.testing.assert_allclose(found, [server.published[3].of_text(text)["embedding"] for text in DOCUMENTS], atol=1e-6)
    (request,) = sent(server)
    assert (request["user_lengths"], request["user_pairs"]) == ([0], [5])


@pytest.mark.parametrize("user_tokens", [None, 6])
def test_a_server_whose_parts_disagree_is_named(server, user_tokens):
    server.published[3].heads = HEADS | {"user_tokens": user_tokens}
    inputs = ("input_ids", "token_type_ids", "lengths") if user_tokens else ("input_ids", "user_lengths", "lengths")
    server.describe = lambda model: ModelDescription(("3",), {}, inputs)
    ranker = Ranker("localhost:1", transport=FakeTransport(server))
    with pytest.raises(ProtocolError, match="user_tokens, but the click model's inputs are"):
        ranker.rank("tea", ["a bar"])


@pytest.mark.parametrize("user_tokens", [0, -1, "6", True, 1.5])
def test_a_number_of_tokens_that_is_none_is_refused(server, user_tokens):
    server.published[3].heads = HEADS | {"user_tokens": user_tokens}
    with pytest.raises(ProtocolError, match="'user_tokens' is"):
        Ranker("localhost:1", transport=FakeTransport(server)).rank("tea", ["a bar"])


@given(st.lists(st.tuples(words, words), min_size=1, max_size=8), st.integers(4, 40), st.data())
def test_the_query_does_not_depend_on_its_documents_and_what_fits_is_the_same(pairs, max_length, data):
    user_tokens = data.draw(st.integers(1, max_length - 3))
    content = tokenizer_json()
    once, full = PairTokenizer(content, max_length, user_tokens), PairTokenizer(content, max_length)
    whole = unpacked(PairTokenizer(content, 2000).pack_pairs(pairs))
    found = unpacked(once.pack_pairs(pairs))
    assert len(found) == len(pairs)
    sep = 3
    for ours, theirs, uncut in zip(found, unpacked(full.pack_pairs(pairs)), whole, strict=True):
        assert len(ours) <= max_length
        user = uncut[1 : uncut.index(sep)]
        assert ours[1 : ours.index(sep)] == user[:user_tokens]
        if len(uncut) <= max_length and len(user) <= user_tokens:
            assert ours == theirs == uncut
