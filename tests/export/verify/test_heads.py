"""The further heads beside the reference: figures worked out by hand, gates from both sides, and the saved gate."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.graph.packing import Feed, Outputs
from export.verify import saved_gate
from export.verify.gates import FP16_GATES, FP32_GATES, INT8_GATES, Gate, GateError, check, check_finite
from export.verify.heads import SAMPLE, HeadComparison, HeadReference, choose_texts, compare_heads, evenly
from export.verify.parity import ParityError, prove_heads
from finetune.data.clicklog import ClickRow
from release.names import EMBEDDING, LOGITS, PASSAGE_LOGITS, TOPIC_LOGITS
from tests.export.verify.test_gates import LIMITS, PAIRS, REFERENCE, ROWS, found, right_answer

TOPICS = np.array([[2, 1, -1], [0, 3, 1], [1, -2, -3], [-1, -1, 2]], np.float32)
EMBEDDINGS = np.array([[1, 0], [0, 1], [0.6, 0.8], [-1, 0]], np.float32)
PASSAGES = np.arange(20, dtype=np.float32)[:, None] / 10
# The texts' first tokens are 500 to 503, the pairs' 0 to 19.
TEXTS = [{"input_ids": [500 + place, 1], "token_type_ids": [0, 0]} for place in range(4)]
HEADS = HeadReference(
    [*TEXTS, *PAIRS[:20]], 4, False, {TOPIC_LOGITS: TOPICS, EMBEDDING: EMBEDDINGS, PASSAGE_LOGITS: PASSAGES}
)


def right(feed: Feed) -> Outputs:
    firsts = feed["input_ids"][np.cumsum(feed["lengths"]) - feed["lengths"]]
    texts = np.where(firsts >= 500, firsts - 500, 0)
    passages = PASSAGES[np.where(firsts < 20, firsts, 0)]
    logits = right_answer(feed) if firsts.max() < 500 else np.zeros((len(firsts), 1), np.float32)
    return {LOGITS: logits, TOPIC_LOGITS: TOPICS[texts], EMBEDDING: EMBEDDINGS[texts], PASSAGE_LOGITS: passages}


def compared(reference: HeadReference = HEADS, **changed: np.ndarray) -> HeadComparison:
    return compare_heads(reference.outputs | changed, reference)


def test_the_figures_worked_out_by_hand() -> None:
    turned = EMBEDDINGS.copy()
    turned[1] = [0.6, 0.8]
    found = compared(
        topic_logits=TOPICS + np.array([[0, 1.5, 0], [0, 0, 0], [-0.5, 0, 0], [0, 0, 0]], np.float32),
        embedding=turned,
        passage_logits=PASSAGES - np.float32(0.25),
    )
    assert found.topic_changed == 1 / 4
    assert found.least_cosine == pytest.approx(0.8)
    assert found.max_abs_diff == {
        TOPIC_LOGITS: 1.5,
        EMBEDDING: pytest.approx(0.6),
        PASSAGE_LOGITS: pytest.approx(0.25),
    }
    assert found.texts == 4


def test_where_a_text_has_several_topics_the_set_counts() -> None:
    several = replace(HEADS, several_topics=True)
    other_best = TOPICS + np.array([[0, 1.5, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]], np.float32)
    assert compared(several, topic_logits=other_best).topic_changed == 0
    one_more = TOPICS + np.array([[0, 0, 1.5], [0, 0, 0], [0, 0, 0], [0, 0, 0]], np.float32)
    assert compared(several, topic_logits=one_more).topic_changed == 1 / 4


def test_a_checkpoint_with_one_head_has_its_figures_alone() -> None:
    found = compared(replace(HEADS, outputs={PASSAGE_LOGITS: PASSAGES}))
    assert found == HeadComparison(4, {PASSAGE_LOGITS: 0.0}, None, None)
    assert [one.name for one in check(INT8_GATES, comparison(found), {})] == [gate.figure for gate in INT8_GATES[:4]]


def comparison(heads: HeadComparison | None):
    return replace(found(), heads=heads)


@pytest.mark.parametrize(
    ("gates", "limit", "figure", "name"),
    [
        (
            FP32_GATES,
            "head_tolerance",
            lambda by: HeadComparison(4, {EMBEDDING: 0, TOPIC_LOGITS: by}, 9, -9),
            "largest",
        ),
        (FP16_GATES, "fp16_topic", lambda by: HeadComparison(4, {EMBEDDING: 9}, by, 1), "topics changed"),
        (FP16_GATES, "fp16_cosine", lambda by: HeadComparison(4, {EMBEDDING: 9}, None, 1 - by), "loss of an"),
        (INT8_GATES, "int8_topic", lambda by: HeadComparison(4, {EMBEDDING: 9}, by, None), "topics changed"),
        (INT8_GATES, "int8_cosine", lambda by: HeadComparison(4, {EMBEDDING: 9}, 0, 1 - by), "loss of an"),
    ],
)
def test_each_limit_from_both_sides(gates: tuple[Gate, ...], limit: str, figure, name: str) -> None:
    limits = LIMITS | {limit: 0.25}

    def failures(value: float) -> list[str]:
        return [one.name for one in check(gates, comparison(figure(value)), limits) if not one.passed]

    assert failures(0.25) == failures(0) == []
    for value in (0.26, math.nan):
        (failed,) = failures(value)
        assert failed.startswith(name)


@pytest.mark.parametrize("gates", [FP32_GATES, FP16_GATES, INT8_GATES])
def test_a_plain_checkpoint_has_no_line_of_heads(gates: tuple[Gate, ...]) -> None:
    names = [one.name for one in check(gates, comparison(None), LIMITS)]
    assert names == [gate.figure for gate in gates if gate.name in LIMITS]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(GateError, match="model: the embedding of 1 of 4 pairs are not finite"):
        check_finite("model", {EMBEDDING: np.where(np.float32(0.6) == EMBEDDINGS, value, EMBEDDINGS)})


def test_the_graphs_heads_are_proved_and_one_wrong_number_is_named() -> None:
    prove_heads(right, HEADS, 0.0)

    def off(name: str, value: float, by: float):
        def run(feed: Feed) -> Outputs:
            outputs = right(feed)
            return outputs | {name: np.where(outputs[name] == np.float32(value), value + by, outputs[name])}

        return run

    with pytest.raises(
        ParityError, match=r"at embedding, column 1 of sample 3: .* 0\.8; the difference 0\.01 .*\(1 of 4"
    ):
        prove_heads(off(EMBEDDING, 0.8, 0.01), HEADS, 1e-4)
    with pytest.raises(ParityError, match=r"at passage_logits, column 0 of sample 8: .*\(1 of 20"):
        prove_heads(off(PASSAGE_LOGITS, 0.7, math.nan), HEADS, 1e-4)
    with pytest.raises(ParityError, match="answered with topic_logits of shape"):
        prove_heads(lambda feed: right(feed) | {TOPIC_LOGITS: right(feed)[EMBEDDING]}, HEADS, 1e-4)


@given(st.integers(0, 3000))
def test_a_sample_is_evenly_chosen(count: int) -> None:
    places = evenly(count)
    assert len(places) == min(count, SAMPLE)
    steps = np.diff(places)
    assert len(places) < 2 or (steps.min() >= 1 and steps.max() - steps.min() <= 1)
    assert not places or (places[0] == 0 and count - places[-1] <= -(-count // SAMPLE))


def test_the_texts_are_distinct_user_texts_and_documents() -> None:
    rows = [ClickRow("g", query, document, 0, 1) for query in "ab" for document in "bcd"]
    assert choose_texts(rows) == ["a", "b", "c", "d"]


@pytest.fixture
def version(tmp_path: Path) -> Path:
    folder = tmp_path / "clickbert_trt_int8" / "7"
    folder.mkdir(parents=True)
    saved_gate.save_gate(folder, ROWS, PAIRS, REFERENCE, ["click"], INT8_GATES, LIMITS, HEADS)
    return folder


def test_a_plan_meets_the_gates_of_the_heads(version: Path) -> None:
    figures = saved_gate.gate(version, right, INT8_GATES)
    assert figures["heads"] == {
        "texts": 4,
        "max_abs_diff": {TOPIC_LOGITS: 0, EMBEDDING: 0, PASSAGE_LOGITS: 0},
        "topic_changed": 0,
        "least_cosine": pytest.approx(1),
    }
    with pytest.raises(GateError, match=r"topics changed is 0\.5, allowed is 0\.02$"):
        saved_gate.gate(version, lambda feed: right(feed) | {TOPIC_LOGITS: right(feed)[TOPIC_LOGITS] * 0}, INT8_GATES)
    with pytest.raises(GateError, match="loss of an embedding's cosine is 2"):
        saved_gate.gate(version, lambda feed: right(feed) | {EMBEDDING: -right(feed)[EMBEDDING]}, INT8_GATES)
    with pytest.raises(GateError, match=r"answered with embedding of shape \[\]"):
        saved_gate.gate(version, lambda feed: drop(right(feed)), INT8_GATES)


def drop(outputs: Outputs) -> Outputs:
    return {name: values for name, values in outputs.items() if name != EMBEDDING}
