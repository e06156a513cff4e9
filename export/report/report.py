"""What the gates found, as one table on the screen and as a page with pictures."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from export.report.page import image
from export.report.result import Result
from export.verify.comparison import DRAWS, METRICS
from export.verify.evaluation import Evaluation
from finetune.evaluation.metrics import click_probability
from finetune.page import render
from release.files import write_whole

METRIC_NAMES = {"auc": "AUC", "log_loss": "log-loss", "ece": "ECE", "ndcg_at_10": "NDCG@10"}
TEMPLATE = Path(__file__).with_name("report.html.j2")
GREY = "#bbb"


@dataclass(frozen=True)
class About:
    """Which export a report is about, and how it ended."""

    checkpoint: str
    checkpoint_sha256: str
    date: str
    evaluation: str  # the file
    evaluation_sha256: str
    command: str
    version: int | None = None  # None: nothing was published
    refusal: str = ""  # why nothing was


def columns(result: Result) -> dict[str, str]:
    """One engine's column of the table: its figures by their names."""
    comparison = result.comparison
    heads = {}
    if found := comparison.heads:
        heads = {f"max |Δ {name}|": f"{largest:.2g}" for name, largest in found.max_abs_diff.items()}
        if found.topic_changed is not None:
            heads["topic accuracy"] = f"{100 - 100 * found.topic_changed:.2f} %"
        if found.least_cosine is not None:
            heads["least cosine"] = f"{found.least_cosine:.5f}"
    return {
        "engine": result.engine.model,
        "gate": "passed" if result.passed else "FAILED",
        "max |Δlogit|": f"{comparison.max_abs_diff:.2g}",
        "mean |Δlogit|": f"{comparison.mean_abs_diff:.2g}",
        **{f"Δ {METRIC_NAMES[name]}": f"{comparison.metrics[name].difference:+.5f}" for name in METRICS},
        "Kendall τ": f"{comparison.kendall_tau:.4f}",
        "top-1 changed": f"{100 * comparison.top1_changed:.2f} %",
        "top-1 changed beyond the tie": f"{100 * comparison.top1_changed_beyond_tie:.2f} %",
        "top-5 changed": f"{100 * comparison.top5_changed:.2f} %",
        "top-5 changed beyond the tie": f"{100 * comparison.top5_changed_beyond_tie:.2f} %",
        **heads,
        "MB": f"{result.bytes / 1e6:.1f}",
        "pairs/s": "-" if result.pairs_per_second is None else f"{result.pairs_per_second:.0f}",
    }


def screen_table(results: Sequence[Result]) -> str:
    """The table over all engines, a line a figure and a column an engine; then every check."""
    rows = [columns(result) for result in results]
    lines = [f"{name:<28}" + "".join(f"{row[name]:>24}" for row in rows) for name in rows[0]]
    base = ", ".join(f"{name} {value:.4f}" for name, value in reference_metrics(results).items())
    first = results[0].comparison
    lines.append(f"PyTorch fp32: {base}; {first.pairs} pairs, {first.groups} groups")
    lines.append("pairs/s: in process, on this machine's CPU; a TensorRT graph's figures are ONNX Runtime's")
    lines += [
        f"{'ok' if check.passed else 'FAILED':<6} {result.engine.model}: {check.name} {check.value:.4g}, "
        f"allowed {check.limit:g}"
        for result in results
        for check in result.checks
    ]
    return "\n".join(lines)


def reference_metrics(results: Sequence[Result]) -> dict[str, float]:
    """PyTorch's own metrics, by the names that a reader sees."""
    return {METRIC_NAMES[name]: results[0].comparison.metrics[name].reference for name in METRICS}


def write_report(path: Path, about: About, results: Sequence[Result], evaluation: Evaluation | None) -> None:
    """Writes the page, whole or not at all: the former one stays until this one is complete.

    An export that failed before an engine was compared has no results, and one that failed earlier no evaluation.

    Raises:
        OSError: it cannot be written.
    """
    with mpl.rc_context({"text.parse_math": False, "figure.dpi": 150}):  # a "$" in a model's name is no formula
        figures: dict[str, Any] = {}
        if results and evaluation:
            figures = {
                "comparison": results[0].comparison,
                "columns": [columns(result) for result in results],
                "reference": reference_metrics(results),
                "scatter": image(plot_scatter(results, evaluation), "click probability of each pair over PyTorch's"),
                "intervals": image(plot_intervals(results), "differences of the metrics with confidence intervals"),
                "draws": DRAWS,
            }
        page = render(TEMPLATE, about=about, results=results, **figures)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page)


def check_writable(path: Path) -> None:
    """Raises OSError if no file can be written at `path`. Leaves everything as it was."""
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder, and the report is a file", str(path))
        with TemporaryFile(dir=path.parent):
            pass
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def plot_scatter(results: Sequence[Result], evaluation: Evaluation) -> Figure:
    """Each pair's click probability, the engine's over PyTorch's: a panel an engine."""
    figure = Figure(figsize=(4.2 * len(results), 4.2), layout="constrained")
    expected = click_probability(evaluation.logits, evaluation.labels)
    for place, result in enumerate(results, start=1):
        axes = figure.add_subplot(1, len(results), place)
        actual = click_probability(result.logits, evaluation.labels)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, zorder=0)
        axes.scatter(expected, actual, s=6, alpha=0.4, color=result.engine.colour, linewidths=0, rasterized=True)
        axes.set(title=result.engine.model, xlabel="PyTorch fp32", ylabel="engine", xlim=(0, 1), ylim=(0, 1))
        axes.set_aspect("equal")
    return figure


def plot_intervals(results: Sequence[Result]) -> Figure:
    """Each metric's difference from PyTorch with its confidence interval: a panel a metric, a line an engine."""
    figure = Figure(figsize=(11, 1.4 + 0.45 * len(results)), layout="constrained")
    names = [result.engine.model for result in results]
    for place, metric in enumerate(METRICS, start=1):
        axes = figure.add_subplot(1, len(METRICS), place)
        for line, result in enumerate(results):
            found = result.comparison.metrics[metric]
            axes.plot([found.low, found.high], [line, line], color=result.engine.colour, linewidth=2.5)
            axes.plot(found.difference, line, "o", color=result.engine.colour)
        axes.axvline(0, color=GREY, linewidth=1, zorder=0)
        axes.set_yticks(np.arange(len(names)), names if place == 1 else [""] * len(names))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_title(METRIC_NAMES[metric])
        axes.tick_params(axis="x", labelrotation=45, labelsize=8)
    return figure
