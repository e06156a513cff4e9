"""Measures the further heads of a jointly trained checkpoint: topics as a classifier, the embedding as a retriever."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

from finetune.checkpoint.heads import Heads, HeadSettings
from finetune.data.clicklog import ClickRow
from finetune.evaluation.metrics import group_rows
from finetune.evaluation.ranking import CUTOFF, reciprocal_rank
from finetune.evaluation.scoring import score_texts
from release.names import EMBEDDING, TOPIC_LOGITS

LARGEST_POOL = 5000  # documents that are searched: every search compares its user text with each
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TopicScore:
    """One topic: how many measured documents have it, and how well it is found. What is undefined is 0."""

    documents: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class TopicReport:
    """The topic head on the log's distinct documents.

    `accuracy` is the share whose topics are found exactly. Precision, recall and F1 are macro: the mean over the
    topics that a measured document has. All four are None if no document could be measured.
    """

    documents: int  # measured
    accuracy: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    topics: dict[str, TopicScore] = field(default_factory=dict)
    unknown_topics: dict[str, int] = field(default_factory=dict)  # that the model does not know: documents of each
    documents_without_topic: int = 0  # not measured: the log names none
    documents_of_unknown_topics: int = 0  # not measured: the model knows none of theirs
    documents_of_several_topics: int = 0  # not measured: the model gives one topic each


@dataclass(frozen=True, slots=True)
class EmbeddingReport:
    """The embedding as a retriever: documents ranked by the cosine with the user text.

    `auc_within_groups`: that a click of a group stands above a non-click of it, ties half; the mean over `groups`,
    those whose click rates are not all equal. `recall_at_10` and `mrr`: a group's documents with a click, searched
    among `searched_documents` distinct ones; the mean over `searches`, the groups with a click. A figure without a
    group is None. Groups without a user text are counted, not measured.
    """

    groups: int
    searches: int
    searched_documents: int
    all_documents: int  # of the log; more than searched: the search takes its first groups only (`LARGEST_POOL`)
    groups_without_user_text: int
    auc_within_groups: float | None = None
    recall_at_10: float | None = None
    mrr: float | None = None


def measure_heads(
    model: BertForSequenceClassification,
    heads: Heads,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[ClickRow],
    max_length: int,
) -> tuple[TopicReport | None, EmbeddingReport | None]:
    """Measure the heads that the checkpoint has; None for one that it lacks. Texts beyond `max_length` are cut."""
    names = [name for name in (TOPIC_LOGITS, EMBEDDING) if name in heads.outputs]
    if not names:
        return None, None
    documents = find_topics(rows)
    texts = dict.fromkeys(document for document, topics in documents.items() if topics)
    if EMBEDDING in names:
        texts = dict.fromkeys(text for row in rows for text in (row.query, row.document))
    scored = score_texts(model, heads, tokenizer, list(texts), max_length)
    vectors = {name: dict(zip(texts, scored[name], strict=True)) for name in names}
    return (
        measure_topics(documents, vectors[TOPIC_LOGITS], heads.settings) if TOPIC_LOGITS in names else None,
        measure_embedding(rows, vectors[EMBEDDING]) if EMBEDDING in names else None,
    )


def find_topics(rows: Sequence[ClickRow]) -> dict[str, tuple[str, ...]]:
    """Collect the distinct documents, in the log's order, each with all topics that any of its rows names."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        found.setdefault(row.document, {}).update(dict.fromkeys(row.topics))
    return {document: tuple(topics) for document, topics in found.items()}


def measure_topics(
    documents: Mapping[str, Sequence[str]], logits: Mapping[str, Floats], settings: HeadSettings
) -> TopicReport:
    """Measure topic logits [topics] of each document that has topics, `documents`, against those topics.

    Several topics a text: each whose sigmoid is 0.5 or more is predicted. One: the one with the highest logit. Topics
    that the model does not know are counted; a document is measured by its others.
    """
    columns = {topic: column for column, topic in enumerate(settings.topics)}
    named = {document: topics for document, topics in documents.items() if topics}
    clear = {document: topics for document, topics in named.items() if settings.several_topics or len(topics) == 1}
    known = {document: [columns[topic] for topic in topics if topic in columns] for document, topics in clear.items()}
    measured = [document for document, topics in known.items() if topics]
    unknown = Counter(topic for topics in named.values() for topic in topics if topic not in columns)
    counts = TopicReport(
        len(measured),
        unknown_topics=dict(unknown),
        documents_without_topic=len(documents) - len(named),
        documents_of_unknown_topics=len(known) - len(measured),
        documents_of_several_topics=len(named) - len(clear),
    )
    if not measured:
        return counts
    truth = np.zeros((len(measured), len(columns)), dtype=bool)
    for number, document in enumerate(measured):
        truth[number, known[document]] = True
    scores = np.stack([logits[document] for document in measured])
    predicted = scores >= 0 if settings.several_topics else np.arange(len(columns)) == scores.argmax(axis=1)[:, None]
    figures = np.array(precision_recall_fscore_support(truth, predicted, zero_division=0.0)[:3])  # [3, topics]
    support = truth.sum(axis=0)
    precision, recall, f1 = figures[:, support > 0].mean(axis=1).tolist()
    return replace(
        counts,
        accuracy=float(accuracy_score(truth, predicted)),
        precision=precision,
        recall=recall,
        f1=f1,
        topics={
            topic: TopicScore(int(support[column]), *figures[:, column].tolist()) for topic, column in columns.items()
        },
    )


def measure_embedding(rows: Sequence[ClickRow], embeddings: Mapping[str, Floats]) -> EmbeddingReport:
    """Measure embeddings [size], of length 1, of every distinct user text and document (see `EmbeddingReport`)."""
    groups = [[rows[index] for index in group] for group in group_rows(rows)]
    spoken = [group for group in groups if all(row.query.strip() for row in group)]
    within = [auc for group in spoken if (auc := _auc_within(group, embeddings)) is not None]
    pool, searched = _choose_pool(groups)
    matrix = np.stack([embeddings[document] for document in pool])
    found = [
        _search(matrix @ embeddings[group[0].query], [pool[row.document] for row in group if row.clicks > 0])
        for group in searched
        if all(row.query.strip() for row in group) and any(row.clicks > 0 for row in group)
    ]
    recall, rank = np.mean(found, axis=0).tolist() if found else (None, None)
    return EmbeddingReport(
        groups=len(within),
        searches=len(found),
        searched_documents=len(pool),
        all_documents=len({row.document for row in rows}),
        groups_without_user_text=len(groups) - len(spoken),
        auc_within_groups=float(np.mean(within)) if within else None,
        recall_at_10=recall,
        mrr=rank,
    )


def _auc_within(group: Sequence[ClickRow], embeddings: Mapping[str, Floats]) -> float | None:
    clicks, impressions = (np.array([getattr(row, name) for row in group]) for name in ("clicks", "impressions"))
    if np.ptp(clicks / impressions) == 0:
        return None
    scores = np.array([embeddings[row.query] @ embeddings[row.document] for row in group])
    weights = clicks[:, None] * (impressions - clicks)
    return float((weights * (0.5 + 0.5 * np.sign(scores[:, None] - scores))).sum() / weights.sum())


def _choose_pool(groups: Sequence[Sequence[ClickRow]]) -> tuple[dict[str, int], Sequence[Sequence[ClickRow]]]:
    """Choose the documents to search, with their places, and the groups whose documents are all among them.

    These are all, or the first groups that `LARGEST_POOL` documents hold, at least one.
    """
    pool: dict[str, int] = {}
    for number, group in enumerate(groups):
        fresh = dict.fromkeys(row.document for row in group if row.document not in pool)
        if pool and len(pool) + len(fresh) > LARGEST_POOL:
            return pool, groups[:number]
        for document in fresh:
            pool[document] = len(pool)
    return pool, groups


def _search(scores: Floats, clicked: Sequence[int]) -> tuple[float, float]:
    """Recall@10 and reciprocal rank of the documents at the places `clicked`; expected values where scores are tied."""
    mask = np.zeros(len(scores), dtype=bool)
    mask[list(clicked)] = True
    # Of the `tied` documents of one score, each is as likely to get one of the places that those above leave.
    above = np.array([(scores > score).sum() for score in scores[mask]])
    tied = np.array([(scores == score).sum() for score in scores[mask]])
    rank = reciprocal_rank(mask[None], scores[None].astype(np.float64))
    return float(np.clip((CUTOFF - above) / tied, 0, 1).mean()), float(rank[0])
