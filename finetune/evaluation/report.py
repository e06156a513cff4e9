"""An evaluation as JSON and as a table for the screen."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from finetune.evaluation.bootstrap import Interval
from finetune.evaluation.checkpoint import Evaluation
from finetune.evaluation.heads import HEAD_FIGURES, EmbeddingReport, TopicReport
from finetune.evaluation.slices import LEAST, FieldReport, ValueReport

COUNTS = ("significant_pairs", "pairs", "groups", "ranked_groups", "impressions", "clicks")
# Of a value's metrics, those that a table and the page's pictures show. The JSON has all.
SHOWN = ("auc", "log_loss", "ece", "ndcg_at_10", "pairwise_accuracy", "significant_pair_accuracy",
         *HEAD_FIGURES)  # fmt: skip
SHOWN_VALUES = 20
LONGEST_VALUE = 40
ODDITIES = {
    "groups_of_one": "groups of one candidate, with nothing to rank",
    "empty_user_texts": "rows without a user text",
    "empty_documents": "rows without a document's text",
}


def to_document(checkpoint: str, data: str, evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as one JSON document, without NaN; what was not measured is absent."""
    document: dict[str, Any] = {
        "checkpoint": checkpoint,
        "data": data,
        **evaluation.metrics,
        **asdict(evaluation.oddities),
        "intervals": evaluation.intervals,
    }
    document |= _head_documents(evaluation)
    if evaluation.by:
        document["by"] = {report.field: _field_document(report) for report in evaluation.by}
    return document


def _head_documents(measured: Evaluation | ValueReport) -> dict[str, Any]:
    return {
        name: {key: value for key, value in asdict(head).items() if value is not None}
        for name, head in (("topic", measured.topic), ("embedding", measured.embedding))
        if head is not None
    }


def _field_document(report: FieldReport) -> dict[str, Any]:
    values = {}
    for value in report.values:
        counts = {name: getattr(value, name) for name in ("pairs", "groups", "impressions", "clicks", "intervals")}
        found = {"measured": bool(value.metrics), **value.metrics, **counts, **_head_documents(value)}
        if "topic" in found:
            del found["topic"]["topics"]  # each topic's figures, for each value: `by` would be long
        values[value.value] = found
    gaps = {gap.metric: {"gap": gap.gap, "worse": gap.worse, "better": gap.better} for gap in report.gaps}
    return {"values": values, "gaps": gaps, "pairs_without": report.pairs_without}


def screen_lines(evaluation: Evaluation) -> Iterator[str]:
    """The evaluation as lines of text: metrics with their 95 % intervals, heads, fields, and what was counted."""
    for name, value in evaluation.metrics.items():
        yield f"{name:<28}{show(name, value):>12}{show_interval(evaluation.intervals.get(name)):>20}".rstrip()
    if evaluation.topic:
        yield from ["", *topic_lines(evaluation.topic)]
    if evaluation.embedding:
        yield from ["", *embedding_lines(evaluation.embedding)]
    for report in evaluation.by:
        yield from ["", *field_lines(report)]
    if notes := oddity_notes(evaluation):
        yield from ["", *notes]


def show(name: str, value: float) -> str:
    """A figure as a reader wants it: counts whole, everything else with four decimals."""
    return f"{value:,.0f}" if name in COUNTS else f"{value:.4f}"


def show_interval(interval: Interval | None) -> str:
    """An interval, or nothing if there is none."""
    return f"{interval[0]:.4f} .. {interval[1]:.4f}" if interval else ""


def oddity_notes(evaluation: Evaluation) -> list[str]:
    """What the log has that measures less than it seems to, a line each."""
    counts = asdict(evaluation.oddities)
    return [f"{words}: {counts[name]:,}" for name, words in ODDITIES.items() if counts[name]]


def topic_lines(report: TopicReport) -> Iterator[str]:
    """The topic head's figures."""
    yield f"topics, of {report.documents:,} distinct documents"
    for name in ("accuracy", "precision", "recall", "f1"):
        value = getattr(report, name)
        if value is not None:
            yield f"  {name if name == 'accuracy' else f'{name} (macro)':<26}{value:>12.4f}"
    for note in topic_notes(report):
        yield f"  {note}"


def topic_notes(report: TopicReport) -> Iterator[str]:
    """Which documents and topics could not be measured."""
    for count, reason in (
        (report.documents_without_topic, "the log names no topic of theirs"),
        (report.documents_of_unknown_topics, "the model knows no topic of theirs"),
        (report.documents_of_several_topics, "they have several topics, and the model gives one"),
    ):
        if count:
            yield f"documents not measured, as {reason}: {count:,}"
    if report.unknown_topics:
        named = ", ".join(f"{topic} ({count:,} documents)" for topic, count in report.unknown_topics.items())
        yield f"topics that the model does not know: {named}"


def embedding_lines(report: EmbeddingReport) -> Iterator[str]:
    """The embedding's figures."""
    pool = f"{report.searched_documents:,} distinct documents"
    if report.searched_documents < report.all_documents:
        pool += f" (those of the log's first groups, of {report.all_documents:,} in all)"
    yield "embedding, documents ranked by the cosine with the user text"
    for name, value, among in (
        ("auc within groups", report.auc_within_groups, f"{report.groups:,} groups with contrast"),
        ("recall at 10", report.recall_at_10, f"{report.searches:,} groups' clicks among {pool}"),
        ("mrr", report.mrr, "the same"),
    ):
        yield f"  {name:<26}{'-' if value is None else f'{value:.4f}':>12}   {among}"
    if report.groups_without_user_text:
        yield f"  groups without a user text, which are not measured: {report.groups_without_user_text:,}"


def field_lines(report: FieldReport) -> Iterator[str]:
    """A field's values with their counts and main metrics, then the gaps."""
    names = shown_metrics(report)
    shown = report.values[:SHOWN_VALUES]
    width = max(len(report.field) + 3, *(len(shorten_value(value.value)) for value in shown))
    heads = ["impressions", "clicks", *names]
    widths = [max(len(name) + 3, 10) for name in heads]
    for first, cells in (
        (f"by {report.field}", heads),
        *((shorten_value(value.value), value_cells(value, names)) for value in shown),
    ):
        yield f"{first:<{width}}" + "".join(f"{cell:>{room}}" for cell, room in zip(cells, widths, strict=False))
    if len(report.values) > len(shown):
        yield f"and {len(report.values) - len(shown):,} further values, which the JSON lists"
    for note in field_notes(report):
        yield f"  {note}"


def shorten_value(value: str) -> str:
    """A field's value on one line, at most 40 characters: it may be any text of the log."""
    line = "".join(character if character.isprintable() else " " for character in value)
    return line if len(line) <= LONGEST_VALUE else line[: LONGEST_VALUE - 3] + "..."


def shown_metrics(report: FieldReport) -> list[str]:
    """The main metrics that a value of the field has."""
    return [name for name in SHOWN if any(name in value.figures for value in report.values)]


def value_cells(value: ValueReport, names: list[str]) -> list[str]:
    """A value's counts and main metrics; of one with too little to measure, its counts and a word on it."""
    counts = [show("impressions", value.impressions), show("clicks", value.clicks)]
    figures = value.figures
    if not figures:
        return [*counts, "too few"]
    return counts + [show(name, figures[name]) if name in figures else "-" for name in names]


def field_notes(report: FieldReport) -> Iterator[str]:
    """The largest gaps, who is served worse, and what was not measured."""
    by_name = {value.value: value for value in report.values}
    for gap in report.gaps:
        if gap.metric in SHOWN:
            worse, better = (_named(by_name[name], gap.metric) for name in (gap.worse, gap.better))
            yield f"largest gap in {gap.metric}: {gap.gap:.4f}; {worse} is served worst, {better} best"
    few = sum(not value.metrics for value in report.values)
    if few:
        yield f"clicks not measured, with under {LEAST} clicks or under {LEAST} impressions without one: {few:,} values"
    if report.pairs_without:
        yield f"rows without {report.field}: {report.pairs_without:,}"


def _named(value: ValueReport, metric: str) -> str:
    interval = show_interval(value.intervals.get(metric))
    return f"{shorten_value(value.value)} ({value.figures[metric]:.4f}{interval and f', {interval}'})"
