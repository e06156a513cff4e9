"""The topic head as a classifier and the embedding as a retriever, against values by hand and plain loops."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.checkpoint.heads import HeadSettings, read_heads
from finetune.checkpoint.load import load_checkpoint
from finetune.data.clicklog import ClickRow
from finetune.evaluation import heads as module
from finetune.evaluation.heads import (
    TopicScore,
    find_topics,
    measure_embedding,
    measure_topics,
    score_heads,
)
from tests.finetune.conftest import TOPICS
from tests.finetune.evaluation.joint import add_heads

ONE = HeadSettings(topics=("tea", "bike", "moon"))
SEVERAL = replace(ONE, several_topics=True)


def logits(**documents: list[float]) -> dict[str, np.ndarray]:
    return {document: np.array(values, dtype=np.float32) for document, values in documents.items()}


def test_one_topic_each_worked_out_by_hand() -> None:
    documents = {"a": ["tea"], "b": ["tea"], "c": ["bike"], "d": ["bike"]}
    found = measure_topics(documents, logits(a=[-1, -2, -3], b=[0, 0, 5], c=[9, 1, 0], d=[0, 1, 0]), ONE)
    assert (found.documents, found.accuracy) == (4, 0.5)
    assert found.topics == {
        "tea": TopicScore(2, 1 / 2, 1 / 2, 1 / 2),
        "bike": TopicScore(2, 1, 1 / 2, pytest.approx(2 / 3)),
        "moon": TopicScore(0, 0, 0, 0),
    }
    # Macro: the mean over tea and bike; no document has the moon.
    assert (found.precision, found.recall, found.f1) == pytest.approx((3 / 4, 1 / 2, 7 / 12))


def test_several_topics_are_predicted_from_a_half_on() -> None:
    documents = {"a": ["tea", "bike"], "b": ["moon"]}
    found = measure_topics(documents, logits(a=[0.0, 0.1, -0.1], b=[-1, 2, 3]), SEVERAL)
    assert found.accuracy == 0.5, "a exactly; b has one too many"
    assert found.topics["bike"] == TopicScore(1, 0.5, 1, pytest.approx(2 / 3))
    assert (found.precision, found.recall) == pytest.approx(((1 + 1 / 2 + 1) / 3, 1))


def test_topics_that_the_model_does_not_know_are_counted() -> None:
    documents = {"a": ["tea"], "b": ["opera"], "c": ["opera"], "d": ["tea", "chess"], "e": []}
    scores = logits(a=[1, 0, 0], b=[1, 0, 0], c=[1, 0, 0], d=[1, -1, -1])
    one = measure_topics(documents, scores, ONE)
    assert one.unknown_topics == {"opera": 2, "chess": 1}
    assert (one.documents, one.documents_without_topic) == (1, 1)
    assert (one.documents_of_unknown_topics, one.documents_of_several_topics) == (2, 1)
    several = measure_topics(documents, scores, SEVERAL)
    assert several.unknown_topics == {"opera": 2, "chess": 1}
    assert (several.documents, several.documents_of_unknown_topics, several.documents_of_several_topics) == (2, 2, 0)


@pytest.mark.parametrize("documents", [{}, {"a": []}, {"a": ["opera"]}, {"a": ["tea", "bike"]}])
def test_without_a_document_to_measure_there_are_counts_only(documents: dict[str, list[str]]) -> None:
    found = measure_topics(documents, logits(a=[1, 0, 0]), ONE)
    assert found.documents == 0
    assert found.accuracy is found.precision is found.recall is found.f1 is None
    assert found.topics == {}


def test_documents_are_distinct_and_have_the_topics_of_all_their_rows() -> None:
    rows = [ClickRow("g", "q", text, 0, 1, topics) for text, topics in (("a", ("x",)), ("b", ()), ("a", ("y", "x")))]
    assert find_topics(rows) == {"a": ("x", "y"), "b": ()}


def unit(*angles: float) -> list[np.ndarray]:
    return [np.array([math.cos(angle), math.sin(angle)], dtype=np.float32) for angle in angles]


def test_an_embedding_worked_out_by_hand() -> None:
    rows = [
        ClickRow("g", "u", "near", 0, 1), ClickRow("g", "u", "middle", 1, 1), ClickRow("g", "u", "far", 0, 1),
        ClickRow("h", "v", "far", 1, 1), ClickRow("h", "v", "near", 0, 1),
        ClickRow("silent", " ", "near", 1, 1), ClickRow("silent", " ", "far", 0, 1),
        ClickRow("unclicked", "u", "near", 0, 1),
    ]  # fmt: skip
    embeddings = dict(zip(["u", "v", "near", "middle", "far", " "], unit(0, 3, 0.1, 1, 3.1, 0), strict=True))
    found = measure_embedding(rows, embeddings)
    assert (found.groups, found.searches, found.groups_without_user_text) == (2, 2, 1)
    assert (found.searched_documents, found.all_documents) == (3, 3)
    assert found.auc_within_groups == pytest.approx((1 / 2 + 1) / 2)
    assert found.mrr == pytest.approx((1 / 2 + 1) / 2)
    assert found.recall_at_10 == 1


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(11, 30), st.integers(1, 5))
def test_retrieval_equals_a_plain_loop(seed: int, documents: int, groups: int) -> None:
    chance = np.random.default_rng(seed)
    texts = [f"d{number}" for number in range(documents)]
    rows = [
        ClickRow(f"g{group}", f"u{group}", text, float(chance.integers(0, 4)), 3.0)
        for group in range(groups)
        for text in chance.choice(texts, size=6, replace=False)
    ]
    names = {row.query for row in rows} | {row.document for row in rows}
    embeddings = dict(zip(names, unit(*chance.uniform(0, 6, len(names))), strict=True))
    pool = sorted({row.document for row in rows})
    aucs, recalls, ranks = [], [], []
    for group in range(groups):
        own = [row for row in rows if row.group == f"g{group}"]
        cosine = {text: float(embeddings[f"u{group}"] @ embeddings[text]) for text in pool}
        clicked = {row.document for row in own if row.clicks > 0}
        order = sorted(pool, key=lambda text: -cosine[text])
        if clicked:
            recalls.append(len(clicked & set(order[:10])) / len(clicked))
            ranks.append(1 / (1 + min(order.index(text) for text in clicked)))
        if len({row.clicks for row in own}) > 1:
            pairs = [(a, b, a.clicks * (b.impressions - b.clicks)) for a in own for b in own]
            right = sum(
                weight * (0.5 if a is b else float(cosine[a.document] > cosine[b.document])) for a, b, weight in pairs
            )
            aucs.append(right / sum(weight for *_, weight in pairs))
    found = measure_embedding(rows, embeddings)
    for value, expected in ((found.auc_within_groups, aucs), (found.recall_at_10, recalls), (found.mrr, ranks)):
        assert value == (pytest.approx(np.mean(expected)) if expected else None)


def test_an_embedding_that_says_nothing_gets_what_chance_gets() -> None:
    rows = [ClickRow("g", "u", f"d{number}", int(number < 2), 1) for number in range(40)]
    found = measure_embedding(rows, dict.fromkeys(["u", *(row.document for row in rows)], unit(0)[0]))
    assert found.auc_within_groups == 0.5
    assert found.recall_at_10 == pytest.approx(10 / 40)


def test_a_large_log_is_searched_in_its_first_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_POOL", 5)
    rows = [
        ClickRow(f"g{group}", "u", f"d{2 * group + n}", int(n == 0), 1)  # each group has two documents of its own
        for group in range(4)
        for n in range(2)
    ]
    embeddings = dict.fromkeys(["u", *(row.document for row in rows)], unit(0)[0])
    found = measure_embedding(rows, embeddings)
    assert (found.searched_documents, found.all_documents, found.searches, found.groups) == (4, 8, 2, 4)
    monkeypatch.setattr(module, "LARGEST_POOL", 1)
    assert measure_embedding(rows, embeddings).searched_documents == 2, "the first group in any case"


def test_without_user_texts_nothing_is_measured() -> None:
    rows = [ClickRow("g", "", f"d{number}", number, 9) for number in range(3)]
    found = measure_embedding(rows, dict.fromkeys(["", "d0", "d1", "d2"], unit(0)[0]))
    assert (found.groups, found.searches, found.groups_without_user_text) == (0, 0, 1)
    assert found.auc_within_groups is found.recall_at_10 is found.mrr is None


ROWS = [
    ClickRow(f"g{user}", f"likes {user}", f"new {topic} {topic}", int(topic == user), 1, (topic,))
    for user in TOPICS
    for topic in (*TOPICS, "letters")
]


def test_a_checkpoints_heads_are_measured(checkpoint: Path) -> None:
    add_heads(checkpoint)
    model, tokenizer, max_length = load_checkpoint(checkpoint)
    heads = read_heads(checkpoint, 32)
    topic, embedding = score_heads(model, heads, tokenizer, ROWS, max_length).measure(ROWS)
    assert topic is not None and embedding is not None
    assert topic.unknown_topics == {"letters": 1}
    right = []
    for name in TOPICS:
        with torch.inference_mode():
            first = model.bert(**tokenizer(f"new {name} {name}", return_tensors="pt")).last_hidden_state[:, 0]
            right.append(TOPICS[int(heads(first)["topic_logits"].argmax())] == name)
    assert (topic.documents, topic.accuracy) == (4, sum(right) / 4)
    assert (embedding.groups, embedding.searches, embedding.searched_documents) == (4, 4, 5)
    assert embedding.recall_at_10 == 1, "five documents in all"


def test_a_head_that_is_missing_is_not_measured(checkpoint: Path) -> None:
    model, tokenizer, max_length = load_checkpoint(checkpoint)
    assert score_heads(model, read_heads(checkpoint, 32), tokenizer, ROWS, max_length).measure(ROWS) == (None, None)
    heads = add_heads(checkpoint, HeadSettings(topics=TOPICS))
    topic, embedding = score_heads(model, heads, tokenizer, ROWS, max_length).measure(ROWS)
    assert topic is not None and embedding is None
    plain = [replace(row, topics=()) for row in ROWS]
    topic, _ = score_heads(model, heads, tokenizer, plain, max_length).measure(plain)
    assert topic is not None and (topic.documents, topic.documents_without_topic) == (0, 5)
    heads = add_heads(checkpoint, HeadSettings(embedding_size=4))
    topic, embedding = score_heads(model, heads, tokenizer, ROWS, max_length).measure(ROWS)
    assert topic is None and embedding is not None
