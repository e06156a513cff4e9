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
HEAD_FIGURES = ("topic_accuracy", "embedding_mrr")  # by which parts of a log are compared
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


@dataclass(frozen=True, slots=True)
class Pool:
    """The documents that searches look through: those of a log's first groups, `LARGEST_POOL` at most."""

    places: dict[str, int]  # of each document in `embeddings`
    embeddings: Floats  # [documents, size]
    groups: frozenset[str]  # all of whose documents are in the pool
    all_documents: int  # of the log

    @classmethod
    def of(cls, rows: Sequence[ClickRow], embeddings: Mapping[str, Floats]) -> "Pool":
        """Take the documents of as many of the log's first groups as the pool holds, at least of one."""
        places: dict[str, int] = {}
        names: list[str] = []
        for group in group_rows(rows):
            fresh = dict.fromkeys(rows[index].document for index in group if rows[index].document not in places)
            if places and len(places) + len(fresh) > LARGEST_POOL:
                break
            names.append(rows[group[0]].group)
            for document in fresh:
                places[document] = len(places)
        matrix = np.stack([embeddings[document] for document in places])
        return cls(places, matrix, frozenset(names), len({row.document for row in rows}))


@dataclass(frozen=True, slots=True)
class HeadScores:
    """What the further heads say of a log's texts: scored once, measured for any of its rows."""

    settings: HeadSettings
    documents: dict[str, tuple[str, ...]]  # the topics of each, see `find_topics`
    topic_logits: Mapping[str, Floats] | None  # by document; None: the checkpoint has no such head
    embeddings: Mapping[str, Floats] | None  # by text
    pool: Pool | None

    def measure(self, rows: Sequence[ClickRow], least: int = 1) -> tuple[TopicReport | None, EmbeddingReport | None]:
        """Measure rows of the log; None for a head that the checkpoint lacks.

        Whichever rows they are, a document has the topics that any row of the log names, and is searched among the
        documents of the log: the figures of several parts of a log can be compared. A figure that rests on fewer than
        `least` documents or groups is None.
        """
        topic, embedding = None, None
        if self.topic_logits is not None:
            documents = {row.document: self.documents[row.document] for row in rows}
            topic = measure_topics(documents, self.topic_logits, self.settings, least)
        if self.embeddings is not None and self.pool is not None:
            embedding = measure_embedding(rows, self.embeddings, self.pool, least)
        return topic, embedding


def score_heads(
    model: BertForSequenceClassification,
    heads: Heads,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[ClickRow],
    max_length: int,
) -> HeadScores:
    """Score each distinct text of a log with the heads that the checkpoint has. Texts beyond `max_length` are cut."""
    documents = find_topics(rows)
    if EMBEDDING in heads.outputs:
        texts = list(dict.fromkeys(text for row in rows for text in (row.query, row.document)))
    else:
        texts = [document for document, topics in documents.items() if topics and TOPIC_LOGITS in heads.outputs]
    scored = score_texts(model, heads, tokenizer, texts, max_length)
    logits, embeddings = (
        dict(zip(texts, scored[name], strict=True)) if name in heads.outputs else None
        for name in (TOPIC_LOGITS, EMBEDDING)
    )
    pool = None if embeddings is None else Pool.of(rows, embeddings)
    return HeadScores(heads.settings, documents, logits, embeddings, pool)


def head_figures(topic: TopicReport | None, embedding: EmbeddingReport | None) -> dict[str, float]:
    """Return the `HEAD_FIGURES` that were measured."""
    found = (topic.accuracy if topic else None, embedding.mrr if embedding else None)
    return {name: value for name, value in zip(HEAD_FIGURES, found, strict=True) if value is not None}


def find_topics(rows: Sequence[ClickRow]) -> dict[str, tuple[str, ...]]:
    """Collect the distinct documents, in the log's order, each with all topics that any of its rows names."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        found.setdefault(row.document, {}).update(dict.fromkeys(row.topics))
    return {document: tuple(topics) for document, topics in found.items()}


def measure_topics(
    documents: Mapping[str, Sequence[str]], logits: Mapping[str, Floats], settings: HeadSettings, least: int = 1
) -> TopicReport:
    """Measure topic logits [topics] of each document that has topics, `documents`, against those topics.

    Several topics a text: each whose sigmoid is 0.5 or more is predicted. One: the one with the highest logit. Topics
    that the model does not know are counted; a document is measured by its others. Of fewer than `least` measured
    documents there are counts only.
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
    if len(measured) < least:
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


def measure_embedding(
    rows: Sequence[ClickRow], embeddings: Mapping[str, Floats], pool: Pool | None = None, least: int = 1
) -> EmbeddingReport:
    """Measure embeddings [size], of length 1, of every distinct user text and document (see `EmbeddingReport`).

    `pool` is searched; by default, that of the rows. A figure of fewer than `least` groups is None.
    """
    pool = pool or Pool.of(rows, embeddings)
    groups = [[rows[index] for index in group] for group in group_rows(rows)]
    spoken = [group for group in groups if all(row.query.strip() for row in group)]
    within = [auc for group in spoken if (auc := _auc_within(group, embeddings)) is not None]
    found = [
        _search(pool.embeddings @ embeddings[group[0].query], [pool.places[row.document] for row in clicked])
        for group in spoken
        if group[0].group in pool.groups and (clicked := [row for row in group if row.clicks > 0])
    ]
    recall, rank = np.mean(found, axis=0).tolist() if len(found) >= least else (None, None)
    return EmbeddingReport(
        groups=len(within),
        searches=len(found),
        searched_documents=len(pool.places),
        all_documents=pool.all_documents,
        groups_without_user_text=len(groups) - len(spoken),
        auc_within_groups=float(np.mean(within)) if len(within) >= least else None,
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


def _search(scores: Floats, clicked: Sequence[int]) -> tuple[float, float]:
    """Recall@10 and reciprocal rank of the documents at the places `clicked`; expected values where scores are tied."""
    mask = np.zeros(len(scores), dtype=bool)
    mask[list(clicked)] = True
    # Of the `tied` documents of one score, each is as likely to get one of the places that those above leave.
    above = np.array([(scores > score).sum() for score in scores[mask]])
    tied = np.array([(scores == score).sum() for score in scores[mask]])
    rank = reciprocal_rank(mask[None], scores[None].astype(np.float64))
    return float(np.clip((CUTOFF - above) / tied, 0, 1).mean()), float(rank[0])
