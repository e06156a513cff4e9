"""What the gates found, as one table on the screen and as a page with pictures."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from export.engines.base import Engine
from export.graph.packing import Logits
from export.verify.comparison import DRAWS, METRICS, Comparison
from export.verify.gates import Check
from finetune.metrics import click_probability
from release.files import write_whole
from release.manifest import GateRecord, Proof

NAMES = {"auc": "AUC", "log_loss": "log-loss", "ece": "ECE", "ndcg_at_10": "NDCG@10"}
COLOURS = ("#3b6ea5", "#c8553d", "#5b8e7d", "#8d6a9f")
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left } .failed { color: #b00020; font-weight: 600 }
img { max-width: 100% } p.note { color: #555 } div.wide { overflow-x: auto }
"""


@dataclass(frozen=True)
class Result:
    """One engine: how it compares, which checks it passed, its logits [rows, labels], its size and its speed."""

    engine: Engine
    comparison: Comparison
    checks: list[Check]
    logits: Logits
    bytes: int
    largest_fp16: dict[str, float] = field(default_factory=dict)  # of a TensorRT graph's FP16 tensors, by name
    pairs_per_second: float = float("nan")

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def with_speed(self, pairs_per_second: float) -> Result:
        """The same with its speed, which is measured when all engines are there."""
        return replace(self, pairs_per_second=pairs_per_second)

    def proof(self, parity: dict[str, float]) -> Proof:
        """What the manifest says of it; `parity` is that of the packed graph, from which all engines are made."""
        return Proof(
            engine=self.engine.name,
            precision=self.engine.precision,
            parity=parity,
            comparison=asdict(self.comparison),
            gate=tuple(GateRecord(check.name, check.value, check.limit, check.passed) for check in self.checks),
            largest_fp16_activations=self.largest_fp16,
            bytes=self.bytes,
            cpu_pairs_per_second=None if self.engine.tensorrt else round(self.pairs_per_second, 1),
        )


def columns(result: Result) -> dict[str, str]:
    """One engine's column of the table: its figures by their names."""
    comparison = result.comparison
    return {
        "engine": result.engine.model,
        "gate": "passed" if result.passed else "FAILED",
        "max |Δlogit|": f"{comparison.max_abs_diff:.2g}",
        "mean |Δlogit|": f"{comparison.mean_abs_diff:.2g}",
        **{f"Δ {NAMES[name]}": f"{comparison.metrics[name].difference:+.5f}" for name in METRICS},
        "Kendall τ": f"{comparison.kendall_tau:.4f}",
        "top-1 changed": f"{100 * comparison.top1_changed:.2f} %",
        "top-1 > tie": f"{100 * comparison.top1_changed_beyond_tie:.2f} %",
        "top-5 changed": f"{100 * comparison.top5_changed:.2f} %",
        "top-5 > tie": f"{100 * comparison.top5_changed_beyond_tie:.2f} %",
        "MB": f"{result.bytes / 1e6:.1f}",
        "pairs/s": "-" if result.engine.tensorrt else f"{result.pairs_per_second:.0f}",
    }


def screen_table(results: Sequence[Result]) -> str:
    """The table over all engines: a line for each figure, a column for each engine, then what failed."""
    rows = [columns(result) for result in results]
    reference = results[0].comparison.metrics
    lines = [f"{name:<16}" + "".join(f"{row[name]:>24}" for row in rows) for name in rows[0]]
    base = ", ".join(f"{NAMES[name]} {reference[name].reference:.4f}" for name in METRICS)
    lines.append(f"PyTorch fp32: {base}; {results[0].comparison.pairs} pairs, {results[0].comparison.groups} groups")
    lines.append("pairs/s: in process, on this machine's CPU; a TensorRT graph's figures are ONNX Runtime's of it")
    lines += [
        f"{verdict(check):<6} {result.engine.model}: {check.name} {check.value:.4g}, allowed {check.limit:g}"
        for result in results
        for check in result.checks
    ]
    return "\n".join(lines)


def write_report(path: Path, results: Sequence[Result], reference: Logits, labels: Sequence[str]) -> None:
    """Writes the page: the table, the checks, score scatter, metric differences with their confidence intervals.

    Raises:
        OSError: it cannot be written.
    """
    rows = [columns(result) for result in results]
    figures = ""
    for name in rows[0]:
        cells = "".join(f"<td{mark(row[name])}>{html.escape(row[name])}</td>" for row in rows)
        figures += f"<tr><td>{html.escape(name)}</td>{cells}</tr>"
    checks = "".join(
        f"<tr><td>{html.escape(result.engine.model)}</td><td>{html.escape(check.name)}</td><td>{check.value:.4g}</td>"
        f"<td>{check.limit:g}</td><td{mark(verdict(check))}>{verdict(check)}</td></tr>"
        for result in results
        for check in result.checks
    )
    size = f"{results[0].comparison.pairs} pairs in {results[0].comparison.groups} groups"
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Export report</title><style>{STYLE}</style>"
        f"<h1>Export report</h1><p>Every engine against the checkpoint in PyTorch, fp32, on {size}.</p>"
        f"<div class=wide><table>{figures}</table></div>"
        "<p class=note>Pairs/s: in process, on the exporting machine's CPU, 32 pairs of similar length at a time. Of a "
        "TensorRT model, all figures are those of its graph in ONNX Runtime; its plan's are in plan.json. A top-1 or "
        "top-5 is changed beyond the tie where PyTorch's logits of the exchanged candidates differ by more.</p>"
        f"<h2>The gates</h2><table><tr><th>engine<th>figure<th>value<th>allowed<th></tr>{checks}</table>"
        f"<h2>Scores against PyTorch</h2>{picture(scatter(results, reference, labels))}"
        "<h2>Differences of the metrics, with 95 % confidence intervals</h2>"
        f"<p class=note>From {DRAWS} bootstrap draws of whole groups.</p>"
        f"{picture(intervals(results))}</html>"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page.encode())


def verdict(check: Check) -> str:
    """One word for a check."""
    return "ok" if check.passed else "FAILED"


def mark(value: str) -> str:
    """The attribute that makes a failure stand out."""
    return " class=failed" if value == "FAILED" else ""


def scatter(results: Sequence[Result], reference: Logits, labels: Sequence[str]) -> Figure:
    """Each pair's click probability, the engine's over PyTorch's."""
    figure = Figure(figsize=(4.2 * len(results), 4.2), layout="constrained")
    wanted = click_probability(reference, labels)
    for place, (result, colour) in enumerate(zip(results, COLOURS, strict=False), start=1):
        axes = figure.add_subplot(1, len(results), place)
        got = click_probability(result.logits, labels)
        axes.plot([0, 1], [0, 1], color="#bbb", linewidth=1, zorder=0)
        axes.scatter(wanted, got, s=6, alpha=0.4, color=colour, linewidths=0, rasterized=True)
        axes.set(title=result.engine.model, xlabel="PyTorch fp32", ylabel="engine", xlim=(0, 1), ylim=(0, 1))
        axes.set_aspect("equal")
    return figure


def intervals(results: Sequence[Result]) -> Figure:
    """Each metric's difference to PyTorch, an engine a line, with its confidence interval."""
    figure = Figure(figsize=(11, 1.4 + 0.45 * len(results)), layout="constrained")
    names = [result.engine.model for result in results]
    for place, metric in enumerate(METRICS, start=1):
        axes = figure.add_subplot(1, len(METRICS), place)
        for line, (result, colour) in enumerate(zip(results, COLOURS, strict=False)):
            found = result.comparison.metrics[metric]
            axes.plot([found.low, found.high], [line, line], color=colour, linewidth=2.5)
            axes.plot(found.difference, line, "o", color=colour)
        axes.axvline(0, color="#bbb", linewidth=1, zorder=0)
        axes.set_yticks(np.arange(len(names)), names if place == 1 else [""] * len(names))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_title(NAMES[metric])
        axes.tick_params(axis="x", labelrotation=45, labelsize=8)
    return figure


def picture(figure: Figure) -> str:
    """A figure as an image inside the page."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
