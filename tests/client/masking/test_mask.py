"""`mask`: what the model may see of a text."""

import re
import traceback

import numpy as np
import pytest

from clickbert import InvalidInputError
from tests.client.fake_model import Published
from tests.client.fakes import FakeTriton, calls

DOCUMENTS = ["call 555 1234", "a cheap bar", "call 555 9876"]


PASSAGES = {"aggregate": "max", "overlap": 2, "best": 1}


def hide_numbers(text: str) -> str:
    return re.sub(r"\d+", "#", text)


def test_the_model_sees_the_masked_text_and_the_caller_gets_his_own(server, blocking):
    with calls(server, blocking, mask=hide_numbers) as call:
        ranked = call("rank", "tea 77", DOCUMENTS)
        scores = call("score_pairs", [("tea 77", text) for text in DOCUMENTS])
    expected = [server.published[1].expected("tea #", hide_numbers(text)) for text in DOCUMENTS]
    assert expected != [server.published[1].expected("tea 77", text) for text in DOCUMENTS]
    assert scores == pytest.approx(expected, abs=1e-6)
    for item in ranked:
        assert item.text == DOCUMENTS[item.index]
        assert item.score == pytest.approx(expected[item.index], abs=1e-6)


def test_topics_embeddings_and_passages_are_of_the_masked_text(blocking):
    heads = {"topics": ["news", "food"], "several_topics": False, "embedding_size": 4, "passages": PASSAGES}
    server = FakeTriton({1: Published(heads=heads)})
    masked = [hide_numbers(text) for text in DOCUMENTS]
    with calls(server, blocking, mask=hide_numbers) as call, calls(server, blocking) as plain:
        assert call("classify", DOCUMENTS) == plain("classify", masked)
        assert np.array_equal(call("embed", DOCUMENTS), plain("embed", masked))
        assert call("similarity", DOCUMENTS[0], DOCUMENTS[1:]) == plain("similarity", masked[0], masked[1:])
        assert call("classify", DOCUMENTS) != plain("classify", DOCUMENTS)
        pairs, masked_pairs = ([("tea", text) for text in texts] for texts in (DOCUMENTS, masked))
        passages = {"long_documents": "passages"}
        assert call("score_pairs", pairs, **passages) == plain("score_pairs", masked_pairs, **passages)


def test_a_text_that_occurs_twice_is_masked_once(server, blocking):
    seen = []

    def mask(text: str) -> str:
        seen.append(text)
        return text

    with calls(server, blocking, mask=mask) as call:
        call("score_pairs", [("tea", "a bar"), ("tea", "a bank"), ("a bar", "tea")])
    assert sorted(seen) == ["a bank", "a bar", "tea"]


def test_a_mask_that_fails_is_an_error_without_the_text(server, blocking):
    def mask(text: str) -> str:
        raise ValueError(f"cannot mask {text}")

    with (
        calls(server, blocking, mask=mask) as call,
        pytest.raises(InvalidInputError, match="13 characters, SHA-256 c6ef05f9357944a7") as caught,
    ):
        call("rank", "call 555 1234", ["call 555 1234"], fallback=True)
    assert "ValueError" in str(caught.value)
    assert "1234" not in "".join(traceback.format_exception(caught.value)).replace('"call 555 1234"', "")
    assert server.asked == []


@pytest.mark.parametrize("result", [None, 7, b"masked", "lone \ud800 surrogate"])
def test_a_mask_must_return_a_text(server, blocking, result):
    with calls(server, blocking, mask=lambda text: result) as call:
        with pytest.raises(InvalidInputError, match="what mask returned"):
            call("rank", "tea", DOCUMENTS)
    assert server.asked == []
