"""Loads a checkpoint, scores a click log with it, and measures all that it can do there."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from finetune.checkpoint.base_model import check_encoder, resolve_base
from finetune.checkpoint.heads import read_heads
from finetune.checkpoint.load import label_names, load_incomplete
from finetune.data.clicklog import ClickRow
from finetune.evaluation.bootstrap import DRAWS, Interval, bootstrap
from finetune.evaluation.heads import EmbeddingReport, TopicReport, score_heads
from finetune.evaluation.metrics import ScoredLog, check_clicks, click_probability, measure
from finetune.evaluation.scoring import score_documents
from finetune.evaluation.slices import FieldReport, check_fields, measure_by


@dataclass(frozen=True, slots=True)
class Oddities:
    """What a log has that measures less than it seems to; counted, not refused."""

    groups_of_one: int  # nothing to rank
    empty_user_texts: int  # rows
    empty_documents: int  # rows


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All that was measured of a checkpoint on a click log."""

    log: ScoredLog
    metrics: dict[str, float]  # see `evaluate_ranking`
    intervals: dict[str, Interval]
    oddities: Oddities
    topic: TopicReport | None  # None: the checkpoint has no such head
    embedding: EmbeddingReport | None
    by: tuple[FieldReport, ...]
    missing: tuple[str, ...]  # the weights that the model lacks, which are drawn from seed 0


def evaluate(
    name: str,
    rows: Sequence[ClickRow],
    click_label: str | int | None = None,
    by: Sequence[str] = (),
    draws: int = DRAWS,
) -> Evaluation:
    """Evaluate a checkpoint folder, "minilm" or a hub name; a base's untrained click head, for comparison, too.

    Args:
        name: the checkpoint.
        rows: the click log.
        click_label: the label that means a click, if the names do not tell.
        by: fields of the log; all is measured for each of their values, too.
        draws: of the bootstrap that gives the intervals; 0 for none.

    Raises:
        CheckpointError: the model cannot be used, or its labels do not tell which one is the click.
        MetricError: a logit is NaN, the rows cannot be evaluated, or no row has a field of `by`.
    """
    check_clicks(ScoredLog.of(rows, np.zeros(len(rows))))  # before the model is loaded and computes for minutes
    check_fields(rows, by)
    folder = resolve_base(name)
    torch.manual_seed(0)
    model, tokenizer, max_length, missing = load_incomplete(folder, click_label)
    check_encoder(folder, missing)
    heads = read_heads(folder, model.config.hidden_size)
    logits = score_documents(model, heads, tokenizer, rows, max_length)
    log = ScoredLog.of(rows, click_probability(logits, label_names(model)))
    scores = score_heads(model, heads, tokenizer, rows, max_length)
    topic, embedding = scores.measure(rows)
    return Evaluation(
        log=log,
        metrics=measure(log),
        intervals=bootstrap(log, draws),
        oddities=_count_oddities(rows, log),
        topic=topic,
        embedding=embedding,
        by=measure_by(rows, log.scores, by, draws, scores),
        missing=tuple(missing),
    )


def _count_oddities(rows: Sequence[ClickRow], log: ScoredLog) -> Oddities:
    return Oddities(
        groups_of_one=sum(len(group) == 1 for group in log.groups),
        empty_user_texts=sum(not row.query.strip() for row in rows),
        empty_documents=sum(not row.document.strip() for row in rows),
    )
