"""A model that reads each query once: what is sent, what is scored, and a server whose parts disagree."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from clickbert import ProtocolError, Ranker
from clickbert.wire.protocol import ModelDescription
from tests.client.fake_model import Published
from tests.client.fakes import FakeTransport, FakeTriton, call_once

HEADS = {"topics": ["a", "b"], "several_topics": False, "embedding_size": 4, "passages": None, "user_tokens": 6}
QUERIES = ["", "cheap coffee", "near me " * 20]
DOCUMENTS = ["a bar", "", "the museum of the city", "park " * 60, "中文", "a bar"]


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


def test_a_tensorrt_model_is_told_the_longest_query_and_the_longest_document(server, url, blocking):
    describe = server.describe
    server.describe = lambda model: replace(
        described := describe(model), inputs=(*described.inputs, "longest", "longest_user")
    )
    call_once(url, blocking, "score_pairs", list(product(QUERIES, DOCUMENTS)))
    call_once(url, blocking, "rank", "", DOCUMENTS)
    call_once(url, blocking, "embed", DOCUMENTS)
    asked = [request.inputs for request in server.requests if request.model == "clickbert_onnx"]
    assert len(asked) == 3
    for inputs in asked:
        assert not inputs["longest"].any()
        assert not inputs["longest_user"].any()
        assert inputs["longest"].shape == (1, inputs["lengths"].max())
    assert [inputs["longest_user"].shape for inputs in asked] == [(1, 7), (1, 1), (1, 1)], "never empty"


def test_a_model_of_another_backend_is_not(server, url, blocking):
    call_once(url, blocking, "rank", "tea", DOCUMENTS)
    assert not {"longest", "longest_user"} & server.requests[-1].inputs.keys()


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
