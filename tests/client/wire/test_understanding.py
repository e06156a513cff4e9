"""`classify`, `embed` and `similarity`: what they return, how they are sent, and models that lack the head.

Every test of a server's answers runs for `Ranker` and for `AsyncRanker`.
"""

import math

import numpy as np
import pytest

from clickbert import InvalidInputError, ProtocolError, Ranker, RankerClosedError
from tests.client.fake_model import Published, sigmoid
from tests.client.fakes import FakeTransport, FakeTriton, call_once, calls, grpc_server, publish_after

HEADS = {"topics": ["sports", "food", "news"], "several_topics": False, "embedding_size": 5, "passages": None}
TEXTS = ["a cheap bar", "", "the coffee cafe", "tea [SEP] [MASK]", "museum of the city " * 40, "中文", "a bar"]


@pytest.fixture
def server() -> FakeTriton:
    return FakeTriton({3: Published(heads=HEADS)})


def sent(server: FakeTriton) -> list[tuple[tuple[str, ...], int]]:
    """The outputs and the number of texts of each request to the click model."""
    return [
        (request.outputs, request.inputs["lengths"].shape[1])
        for request in server.requests
        if request.model == "clickbert_onnx"
    ]


def softmax(logits: list[float]) -> list[float]:
    exponents = [math.exp(logit) for logit in logits]
    return [exponent / sum(exponents) for exponent in exponents]


@pytest.mark.parametrize("several", [False, True])
def test_topics_come_with_their_probability_the_most_probable_first(server, url, blocking, several):
    published = server.published[3] = Published(heads=HEADS | {"several_topics": several})
    found = call_once(url, blocking, "classify", TEXTS)
    for text, topics in zip(TEXTS, found, strict=True):
        logits = published.of_text(text)["topic_logits"]
        expected = [sigmoid(logit) for logit in logits] if several else softmax(logits)
        assert topics == pytest.approx(dict(zip(HEADS["topics"], expected, strict=True)), abs=1e-6)
        assert list(topics.values()) == sorted(topics.values(), reverse=True)
    assert sent(server) == [(("topic_logits",), len(TEXTS))]


@pytest.mark.parametrize("length", [0.0, 0.98, 1.02, 3.0])
@pytest.mark.parametrize("method, arguments", [("embed", (TEXTS,)), ("similarity", ("a bar", TEXTS))])
def test_an_embedding_whose_length_is_not_one_is_refused(server, url, blocking, method, arguments, length):
    """One of them; the others' are right."""

    def scale_the_last(answer):
        if "embedding" in answer.outputs:
            answer.outputs["embedding"][0, -1] *= length
        return answer

    server.after_infer = scale_the_last
    with pytest.raises(ProtocolError, match="an embedding has the length"):
        call_once(url, blocking, method, *arguments)


def test_embeddings_are_rows_in_the_order_of_the_texts(server, url, blocking):
    found = call_once(url, blocking, "embed", TEXTS)
    assert found.shape == (len(TEXTS), 5) and found.dtype == np.float32
    np.testing.assert_allclose(found, [server.published[3].of_text(text)["embedding"] for text in TEXTS], atol=1e-6)
    assert sent(server) == [(("embedding",), len(TEXTS))]


def test_similarities_are_the_cosines_and_take_one_request(server, url, blocking):
    found = call_once(url, blocking, "similarity", "a bar", TEXTS)
    one, *others = (server.published[3].of_text(text)["embedding"] for text in ["a bar", *TEXTS])
    expected = [sum(a * b for a, b in zip(one, other, strict=True)) for other in others]
    assert found == pytest.approx(expected, abs=1e-6)
    assert found[-1] == pytest.approx(1.0) and all(-1 <= cosine <= 1 for cosine in found)
    assert sent(server) == [(("embedding",), len(set(TEXTS)))]


@pytest.mark.parametrize("method", ["classify", "embed"])
def test_long_calls_are_split_and_each_text_is_sent_once(server, url, blocking, method):
    server.parameters = {"max_elements.lengths": "4"}
    texts = [f"cafe {number % 10}" for number in range(37)]
    found = call_once(url, blocking, method, texts)
    assert sorted(size for _, size in sent(server)) == [2, 4, 4]
    for number, row in enumerate(found):
        if method == "embed":
            np.testing.assert_allclose(row, server.published[3].of_text(texts[number])["embedding"], atol=1e-6)
        else:
            assert row == found[number % 10]
    if method == "classify":
        found[0].clear()
        assert found[10], "two results are one dictionary"


CALLS = {
    "classify": (["a bar"],),
    "embed": (["a bar"],),
    "similarity": ("a bar", ["tea"]),
}


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize(
    "heads", [None, {"topics": [], "several_topics": False, "embedding_size": 0, "passages": None}]
)
def test_a_model_without_the_head_says_how_to_get_it(server, url, blocking, method, heads):
    server.published[3] = Published(heads=heads)
    option = "--understanding topic" if method == "classify" else "--understanding similarity"
    with pytest.raises(InvalidInputError, match=f"version 3 .*{option}"):
        call_once(url, blocking, method, *CALLS[method])
    assert sent(server) == []
    assert len(call_once(url, blocking, "rank", "tea", ["a bar"])) == 1


def test_a_version_published_later_may_have_the_head(server, blocking):
    server.published[3] = Published()
    with calls(server, blocking) as call:
        with pytest.raises(InvalidInputError, match="no topic head"):
            call("classify", ["a bar"])
        server.published[4], server.serving = Published(heads=HEADS), 4
        assert set(call("classify", ["a bar"])[0]) == set(HEADS["topics"])


def test_a_version_published_later_may_lack_the_head(server, blocking):
    with calls(server, blocking) as call:
        call("classify", ["a bar"])
        server.published[4], server.serving = Published(), 4
        with pytest.raises(InvalidInputError, match="version 4 of the model has no topic head"):
            call("classify", ["a bar"])


CHANGES = {
    "other topics": HEADS | {"topics": ["food", "sports"]},
    "other order": HEADS | {"topics": ["news", "food", "sports"]},
    "several topics": HEADS | {"several_topics": True},
    "other size": HEADS | {"embedding_size": 3},
    "the same": HEADS,
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("requests_before", [0, 1])
def test_a_version_that_comes_between_or_during_calls_answers_whole(server, blocking, name, requests_before):
    server.parameters = {"max_elements.lengths": "4"}
    with calls(server, blocking) as call:
        call("classify", TEXTS)
        server.published[4] = Published(heads=CHANGES[name], shift=0.5)
        publish_after(server, requests_before, 4)
        topics, embeddings = call("classify", TEXTS), call("embed", TEXTS)
    expected = [server.published[4].of_text(text) for text in TEXTS]
    names = CHANGES[name]["topics"]
    for found, row in zip(topics, expected, strict=True):
        logits = row["topic_logits"]
        probabilities = [sigmoid(logit) for logit in logits] if CHANGES[name]["several_topics"] else softmax(logits)
        assert found == pytest.approx(dict(zip(names, probabilities, strict=True)), abs=1e-6)
    np.testing.assert_allclose(embeddings, [row["embedding"] for row in expected], atol=1e-6)


def test_bad_arguments_send_nothing(server):
    with Ranker("localhost:8001", max_documents=5, transport=FakeTransport(server)) as ranker:
        for texts in [[], "one text", None, {"a"}, ["fine", 7], ["\ud800"], ["fine"] * 6]:
            for call in (ranker.classify, ranker.embed, lambda others: ranker.similarity("fine", others)):
                with pytest.raises(InvalidInputError):
                    call(texts)
        for text in (None, 7, "\ud800", ["fine"]):
            with pytest.raises(InvalidInputError, match=r"^text "):
                ranker.similarity(text, ["fine"])
        assert len(ranker.similarity("fine", ["fine"] * 5)) == 5
        server.requests.clear()
        ranker.close()
        for method, arguments in CALLS.items():
            with pytest.raises(RankerClosedError):
                getattr(ranker, method)(*arguments)
    assert server.requests == []


def test_rankings_ask_for_the_logits_alone(server):
    with grpc_server(server) as url, Ranker(url) as ranker:
        ranker.rank("tea", ["a bar"])
        ranker.score_pairs([("tea", "a bar")])
    assert sent(server) == [(("logits",), 1)] * 2
