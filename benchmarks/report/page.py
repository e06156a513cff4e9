"""A result as one page with pictures; `page.html.j2` has its words."""

from __future__ import annotations

import shlex
from pathlib import Path

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from benchmarks.measure.schema import SaturationResult, percentile_names
from benchmarks.report.plots import plot_latency, plot_sizes, plot_throughput, plot_time, plot_tokens
from benchmarks.report.tables import Table, all_steps, every_step_table, size_table, summary_table
from export.report.page import image
from finetune.page import render
from release.files import write_whole

TEMPLATE = Path(__file__).with_name("page.html.j2")


def write_page(path: Path, result: SaturationResult) -> None:
    """Writes a result's page, whole or not at all. Raises OSError."""
    page = render(
        TEMPLATE,
        facts=facts_table(result),
        summary=summary_table(result.models),
        pictures=draw_pictures(result),
        percentiles=" / ".join(percentile_names()),
        models=[
            {"name": name, "steps": every_step_table(found), "sizes": size_table(found)}
            for name, found in result.models.items()
        ],
    )
    write_whole(path, page)


def draw_pictures(result: SaturationResult) -> dict[str, Markup]:
    """The pictures by name, those without anything to show empty. Models without figures are in none."""
    models = {name: found for name, found in result.models.items() if found.saturated}
    sent = result.workload.sent
    figures: dict[str, Figure | None] = dict.fromkeys(("throughput", "latency", "sizes", "time", "tokens"))
    with mpl.rc_context({"text.parse_math": False, "font.size": 10, "axes.titlesize": 11, "figure.dpi": 150}):
        # (A "$" in a model's name is no formula.)
        if models:
            figures["throughput"] = plot_throughput(models, result.environment.machine.cores)
            figures["latency"], figures["sizes"] = plot_latency(models), plot_sizes(models)
            figures["time"] = plot_time(models)
        if sent:
            figures["tokens"] = plot_tokens(sent.tokens)
        return {name: image(figure) if figure else Markup() for name, figure in figures.items()}


def facts_table(result: SaturationResult) -> Table:
    """What was measured, when, on what, and how to do it again: names and values."""
    environment, server, workload = result.environment, result.server, result.workload
    where = "started on the same machine" if server.started_here else server.url
    sent = f"{workload.data}, {workload.candidates or 'as many as logged'} candidates a request, "
    sent += f"texts: {workload.texts}"
    if some := workload.sent:
        sent += f"; {some.requests} requests, {some.pairs} pairs; in closed loops and for the ceilings "
        sent += f"{some.closed_requests} of them, {some.closed_pairs} pairs, in turns"
    rows = (
        ("time", environment.time),
        ("commit", environment.commit or "not in a git checkout"),
        ("machine", f"{environment.machine.processors}, {environment.machine.memory_gib} GiB"),
        ("system", environment.machine.system),
        ("server", f"{server.name} {server.version}, {where}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in environment.versions.items())),
        ("workload", sent),
        ("repeat with", shlex.join(command(result))),
    )
    return Table((), rows)


def command(result: SaturationResult) -> list[str]:
    """The command line that measures the same."""
    server, workload, models = result.server, result.workload, result.models
    words = ["python", "-m", "benchmarks", "saturate", "--data", workload.data, "--texts", workload.texts]
    if workload.candidates:
        words += ["--candidates", str(workload.candidates)]
    processes = max((step.generator.processes for found in models.values() for step in all_steps(found)), default=1)
    if processes > 1:
        words += ["--processes", str(processes)]
    if not server.started_here:
        words += ["--url", server.url]
    for name in models:
        words += ["--model", name]
    for objective in sorted({str(found.slo.slo) for found in models.values() if found.slo}):
        words += ["--slo", objective]
    return words
