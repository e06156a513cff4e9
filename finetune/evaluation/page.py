"""An evaluation as one page with pictures; `page.html.j2` has its words."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from finetune.evaluation.checkpoint import Evaluation
from finetune.evaluation.heads import head_figures
from finetune.evaluation.metrics import BINS, ScoredLog
from finetune.evaluation.report import (
    SHOWN_VALUES,
    embedding_lines,
    field_notes,
    oddity_notes,
    shorten_value,
    show,
    show_interval,
    shown_metrics,
    topic_notes,
    value_cells,
)
from finetune.evaluation.slices import FieldReport
from finetune.page import picture, render
from release.files import write_whole

TEMPLATE = Path(__file__).with_name("page.html.j2")
CLICKED, OTHERS, GREY = "#1b7a43", "#5c6370", "#bbb"
POINTS = 500  # of a ROC curve


def write_page(path: Path, checkpoint: str, data: str, evaluation: Evaluation) -> None:
    """Write an evaluation's page, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    # A "$" in a value is no formula; and an offset beside an axis is easily missed.
    style: Any = {"text.parse_math": False, "axes.formatter.useoffset": False, "font.size": 10, "axes.titlesize": 11}
    with mpl.rc_context(style):
        page = render(
            TEMPLATE,
            checkpoint=checkpoint,
            data=data,
            missing=evaluation.missing,
            notes=oddity_notes(evaluation),
            metrics=[
                (name, show(name, value), show_interval(evaluation.intervals.get(name)))
                for name, value in evaluation.metrics.items()
            ],
            roc=picture(plot_roc(evaluation), "roc", "ROC curve: true over false positive rate"),
            calibration=picture(plot_calibration(evaluation.log), "calibration", "click rate over probability, by bin"),
            scores=picture(
                plot_scores(evaluation.log), "scores", "histograms of the probabilities of clicks and others"
            ),
            topic=evaluation.topic,
            topic_notes=list(topic_notes(evaluation.topic)) if evaluation.topic else [],
            embedding=list(embedding_lines(evaluation.embedding)) if evaluation.embedding else [],
            fields=[_field_section(number, report, evaluation) for number, report in enumerate(evaluation.by)],
        )
    write_whole(path, page)


def _field_section(number: int, report: FieldReport, evaluation: Evaluation) -> dict[str, Any]:
    names = shown_metrics(report)
    figure = plot_values(report, evaluation.metrics | head_figures(evaluation.topic, evaluation.embedding))
    alt = f"the metrics for each value of {report.field}, with their intervals"
    return {
        "name": report.field,
        "heads": ["impressions", "clicks", *names],
        "values": [(value.value, value_cells(value, names)) for value in report.values],
        "notes": list(field_notes(report)),
        "picture": picture(figure, f"field{number}", alt) if figure else "",
        "drawn": SHOWN_VALUES,
    }


def plot_roc(evaluation: Evaluation) -> Figure:
    """The ROC curve over impressions, with its AUC."""
    log = evaluation.log
    truth = np.repeat([1, 0], len(log.scores))
    weights = np.concatenate([log.clicks, log.impressions - log.clicks])
    false, true, _ = roc_curve(truth, np.tile(log.scores, 2), sample_weight=weights)
    kept = np.unique(np.linspace(0, len(false) - 1, POINTS).astype(int))
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    axes.plot(false[kept], true[kept], color=CLICKED)
    interval = show_interval(evaluation.intervals.get("auc"))
    title = f"AUC {evaluation.metrics['auc']:.4f}" + (f" ({interval})" if interval else "")
    axes.set(title=title, xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1))
    axes.set_aspect("equal")
    return figure


def plot_calibration(log: ScoredLog) -> Figure:
    """The reliability diagram: each bin's click rate over its mean probability, and below how much is in each bin.

    The bins are equally wide from the smallest to the largest probability: click rates may all be small.
    """
    low, high = float(log.scores.min()), float(log.scores.max())
    edges = np.linspace(low, high if high > low else low + 1e-6, BINS + 1)
    bins = np.clip(np.searchsorted(edges, log.scores, side="right") - 1, 0, BINS - 1)
    shown, clicked, expected = (
        np.bincount(bins, weights, minlength=BINS)
        for weights in (log.impressions, log.clicks, log.impressions * log.scores)
    )
    used = shown > 0
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    rates, means = clicked[used] / shown[used], expected[used] / shown[used]
    upper.plot([edges[0], edges[-1]], [edges[0], edges[-1]], color=GREY, linewidth=1)
    upper.plot(means, rates, "o-", color=CLICKED, markersize=4)
    upper.set(title="calibration", ylabel="click rate")
    lower.bar(edges[:-1], shown, width=np.diff(edges), align="edge", color=OTHERS)
    lower.set(xlabel="click probability, mean of each bin", ylabel="impressions", yscale="log")
    lower.minorticks_off()
    lower.yaxis.set_major_formatter("{x:,.0f}")  # the default is a formula
    lower.tick_params(axis="x", labelrotation=30, labelsize=8)
    return figure


def plot_scores(log: ScoredLog) -> Figure:
    """How the probabilities of clicks and of impressions without a click are spread, each as a share of its own."""
    figure = Figure(figsize=(9.4, 3), layout="constrained")
    axes = figure.add_subplot()
    edges = np.histogram_bin_edges(log.scores, bins=40).tolist()
    for weights, name, colour in (
        (log.impressions - log.clicks, "no click", OTHERS),
        (log.clicks, "click", CLICKED),
    ):
        label = f"{name} ({weights.sum():,.0f})"
        axes.hist(log.scores, edges, weights=weights / weights.sum(), alpha=0.6, color=colour, label=label)
    axes.set(title="scores of clicks and of other impressions", xlabel="click probability", ylabel="share")
    axes.legend(frameon=False)
    return figure


def plot_values(report: FieldReport, overall: dict[str, float]) -> Figure | None:
    """Each main metric by value, with intervals: a panel a metric, a line a value, the whole log's figure in grey."""
    values = [value for value in report.values if value.figures][:SHOWN_VALUES]
    if not values:
        return None
    names = shown_metrics(report)
    figure = Figure(figsize=(max(2.4 * len(names), 4) + 1, 1.2 + 0.3 * len(values)), layout="constrained")
    panels: list[Axes] = np.atleast_1d(figure.subplots(1, len(names), sharey=True)).tolist()
    for axes, name in zip(panels, names, strict=True):
        for line, value in enumerate(values):
            if name in value.intervals:
                axes.plot(value.intervals[name], [line, line], color=CLICKED, linewidth=2)
            if name in value.figures:
                axes.plot(value.figures[name], line, "o", color=CLICKED)
        if name in overall:
            axes.axvline(overall[name], color=GREY, linewidth=1, zorder=0)
        axes.set_title(name)
        axes.tick_params(axis="x", labelrotation=45, labelsize=8)
    labels = [f"{shorten_value(value.value)} ({value.clicks:,.0f} clicks)" for value in values]
    panels[0].set_yticks(range(len(values)), labels)
    panels[0].set_ylim(len(values) - 0.5, -0.5)
    return figure
