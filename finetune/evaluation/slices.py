"""The metrics for each value of a field of the log, and who is served worse."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from finetune.data.clicklog import ClickRow
from finetune.evaluation.bootstrap import Interval, bootstrap
from finetune.evaluation.heads import HEAD_FIGURES, EmbeddingReport, HeadScores, TopicReport, head_figures
from finetune.evaluation.metrics import LOWER_IS_BETTER, FloatArray, MetricError, ScoredLog, measure

METRICS = (
    "accuracy", "precision", "recall", "f1", "auc", "log_loss", "ece", "ndcg_at_10", "mrr", "pairwise_accuracy",
    "significant_pair_accuracy",
)  # fmt: skip
# The usual least count for a share of two outcomes. Below it, a value with two clicks would lead every list of gaps.
LEAST = 5


@dataclass(frozen=True, slots=True)
class ValueReport:
    """One value of a field. No `metrics`: fewer than `LEAST` clicks or non-clicks, too little to measure.

    The heads' reports are None if the checkpoint has none, and without figures that rest on fewer than `LEAST`
    documents or groups.
    """

    value: str
    pairs: int
    groups: int
    impressions: float
    clicks: float
    metrics: dict[str, float]
    intervals: dict[str, Interval]
    topic: TopicReport | None = None
    embedding: EmbeddingReport | None = None

    @property
    def figures(self) -> dict[str, float]:
        """What the value can be compared by: the metrics and `HEAD_FIGURES`."""
        return self.metrics | head_figures(self.topic, self.embedding)


@dataclass(frozen=True, slots=True)
class Gap:
    """The largest difference of a metric between two values of a field: `worse` is served worst, `better` best."""

    metric: str
    gap: float  # positive
    worse: str
    better: str


@dataclass(frozen=True, slots=True)
class FieldReport:
    """A field's values, positions in order, other values by impressions, the most first."""

    field: str
    values: tuple[ValueReport, ...]
    gaps: tuple[Gap, ...]  # one a metric in which two values differ
    pairs_without: int  # rows that lack the field


def find_fields(rows: Sequence[ClickRow]) -> list[str]:
    """Name the fields that `measure_by` takes and a row of the log has: topic, position, user, and any other key."""
    own = {
        "topic": any(row.topics for row in rows),
        "position": any(row.position is not None for row in rows),
        "user": any(row.user is not None for row in rows),
    }
    return [name for name, there in own.items() if there] + sorted({name for row in rows for name in row.others})


def check_fields(rows: Sequence[ClickRow], fields: Sequence[str]) -> None:
    """Refuse a field that no row has.

    Raises:
        MetricError: there is such a field; the message names those that the log has.
    """
    known = find_fields(rows)
    for field in fields:
        if field not in known:
            raise MetricError(
                f"no row of the log has the field {field!r}; "
                f"it can be measured by {', '.join(known) or 'nothing: its rows have no further fields'}"
            )


def measure_by(
    rows: Sequence[ClickRow],
    probabilities: FloatArray,
    fields: Sequence[str],
    draws: int,
    heads: HeadScores | None = None,
) -> tuple[FieldReport, ...]:
    """Measure the click probabilities [rows] for each value of each field, with intervals of `draws` draws.

    So are the heads' scores of the log, `heads` (see `HeadScores.measure`), without intervals.

    A value's metrics are those of its rows alone: within a group, only its rows are ranked against each other. So by
    position or user, ranking metrics may be absent. A row with several topics counts for each.

    Raises:
        MetricError: a field that no row has.
    """
    check_fields(rows, fields)
    return tuple(_measure_field(rows, probabilities, field, draws, heads) for field in fields)


def _measure_field(
    rows: Sequence[ClickRow], probabilities: FloatArray, field: str, draws: int, heads: HeadScores | None
) -> FieldReport:
    members: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        for value in _values(row, field):
            members[value].append(index)
    values = [
        _measure_value(value, [rows[i] for i in chosen], probabilities[chosen], draws, heads)
        for value, chosen in members.items()
    ]
    if field == "position":
        values.sort(key=lambda report: int(report.value))
    else:
        values.sort(key=lambda report: (-report.impressions, report.value))
    without = sum(not _values(row, field) for row in rows)
    return FieldReport(field, tuple(values), _find_gaps(values), without)


def _values(row: ClickRow, field: str) -> tuple[str, ...]:
    if field == "topic":
        return tuple(dict.fromkeys(row.topics))
    found = {"position": row.position, "user": row.user}.get(field, row.others.get(field))
    return () if found is None else (str(found),)


def _measure_value(
    value: str, rows: Sequence[ClickRow], probabilities: FloatArray, draws: int, heads: HeadScores | None
) -> ValueReport:
    log = ScoredLog.of(rows, probabilities)
    clicks, impressions = float(log.clicks.sum()), float(log.impressions.sum())
    enough = min(clicks, impressions - clicks) >= LEAST
    found = measure(log) if enough else {}
    metrics = {name: found[name] for name in METRICS if name in found}
    intervals = bootstrap(log, draws) if enough else {}
    topic, embedding = heads.measure(rows, LEAST) if heads else (None, None)
    return ValueReport(
        value, len(log.scores), len(log.groups), impressions, clicks, metrics, intervals, topic, embedding
    )


def _find_gaps(values: Sequence[ValueReport]) -> tuple[Gap, ...]:
    gaps = []
    for metric in (*METRICS, *HEAD_FIGURES):
        measured = sorted(
            (report for report in values if metric in report.figures),
            key=lambda report: report.figures[metric],
            reverse=metric in LOWER_IS_BETTER,
        )
        if not measured:
            continue
        worse, better = measured[0], measured[-1]
        if gap := abs(better.figures[metric] - worse.figures[metric]):
            gaps.append(Gap(metric, gap, worse.value, better.value))
    return tuple(gaps)
