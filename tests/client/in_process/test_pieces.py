"""Requests in pieces: every row is what the whole request gives, and no piece is larger than it may be."""

import numpy as np
import pytest

from clickbert.in_process.names import KEPT, KEPT_EARLIER
from clickbert.in_process.pieces import Piece, cut
from clickbert.wire.packing import pack_pairs, pack_texts, pack_users
from tests.client.fake_model import Published
from tests.client.in_process.made_up import compute

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed: properties are not checked")
st = hypothesis.strategies

CLS, SEP = 2, 3
ONCE = {"topics": [], "several_topics": False, "embedding_size": 0, "passages": None, "user_tokens": 12}
tokens = st.lists(st.integers(5, 60), max_size=14)
users = st.lists(st.tuples(tokens, st.lists(tokens, min_size=1, max_size=9)), min_size=1, max_size=5)
budgets = st.integers(0, 60)


def run(inputs: dict[str, np.ndarray], budget: int, published: Published) -> tuple[np.ndarray, list[list[Piece]]]:
    """The logits of a request [1, rows, 1], and its pieces in the order in which they may be computed."""
    work = cut(inputs, ("logits",), budget)
    stages, answers = [], None
    while True:
        try:
            stages.append(work.send(answers))
        except StopIteration as stop:
            return stop.value["logits"], stages
        answers = [compute(published, piece.inputs, piece.outputs) for piece in stages[-1]]


def as_request(packed: object) -> dict[str, np.ndarray]:
    return {name: array[np.newaxis] for name, array in vars(packed).items()}


def whole(packed: object, published: Published) -> list[float]:
    return compute(published, vars(packed), ("logits",))["logits"][:, 0].tolist()


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=20), budgets)
def test_pairs(pairs, budget):
    published, packed = Published(max_length=99), pack_pairs(pairs, CLS, SEP)
    logits, (pieces,) = run(as_request(packed), budget, published)
    assert logits.shape == (1, len(pairs), 1)
    assert logits[0, :, 0].tolist() == whole(packed, published)
    for piece in pieces:
        lengths = piece.inputs["lengths"]
        assert len(lengths) == 1 or len(lengths) * lengths.max() <= budget
    longest_first = [piece.inputs["lengths"].max() for piece in pieces]
    assert longest_first == sorted(longest_first, reverse=True)


@hypothesis.settings(max_examples=40)
@hypothesis.given(users, budgets)
def test_queries_that_are_sent_once(users, budget):
    published = Published(max_length=99, heads=ONCE)
    packed = pack_users([(query, document) for query, documents in users for document in documents], CLS, SEP)
    logits, stages = run(as_request(packed), budget, published)
    assert logits[0, :, 0].tolist() == whole(packed, published)
    pieces = [piece for stage in stages for piece in stage]
    for piece in pieces:
        lengths, queries = piece.inputs["lengths"], piece.inputs["user_lengths"]
        assert len(lengths) == 1 or len(lengths) * lengths.max() <= budget
        assert len(queries) == 1 or len(queries) * queries.max() <= budget
    # Each query is computed once, and never again in the second stage.
    computed = sum(piece.inputs["user_lengths"].size for piece in stages[0])
    assert computed == packed.user_lengths.size
    assert all(KEPT_EARLIER in piece.inputs and KEPT not in piece.outputs for piece in pieces[len(stages[0]) :])
    assert any(KEPT in piece.outputs for piece in stages[0]) == (len(stages) > 1)


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.lists(tokens, min_size=1, max_size=20), budgets, st.booleans())
def test_single_texts(texts, budget, by_user):
    published = Published(max_length=99, heads=ONCE if by_user else None)
    packed = pack_texts(texts, CLS, SEP, by_user=by_user)
    logits, stages = run(as_request(packed), budget, published)
    assert len(stages) == 1, "nothing is waited for"
    assert logits[0, :, 0].tolist() == whole(packed, published)


@pytest.mark.parametrize("count", [1, 5])
def test_a_request_that_fits_is_one_piece(count):
    packed = pack_pairs([([7, 8], [9])] * count, CLS, SEP)
    _, ((piece,),) = run(as_request(packed), 6 * count, Published())
    assert piece.inputs["input_ids"] is not None
    assert piece.places.tolist() == list(range(count))
