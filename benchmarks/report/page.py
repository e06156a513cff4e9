"""A climb's result as one page with pictures.

Not known here: how it was measured. Where the generator was the limit of a step, its figures are not the server's: no
line has them, and the tables and the pictures say so.
"""

from __future__ import annotations

import html
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.measure.stats import beside, by_size, processors, row, slo_outcome
from benchmarks.report.plots import (
    LIMITED,
    TIMES,
    Found,
    plot_latency,
    plot_sizes,
    plot_throughput,
    plot_time,
    plot_tokens,
)
from export.verify.page import STYLE
from export.verify.page import image as picture
from release.files import write_whole

# Heads wrap, and so does a row's last cell, which is a text.
WRAP = """table { font-size: 14px } th { white-space: normal; vertical-align: bottom }
td:last-child { text-align: left; white-space: normal } td:last-child:not(:empty) { min-width: 12rem }
"""


def write_page(path: Path, result: dict[str, Any]) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: of the page, in a folder that exists.
        result: as climb writes it.

    Raises:
        OSError: it cannot be written.
    """
    models = result["models"]
    tokens = result["workload"].get("tokens")
    # A "$" in a model's name is no formula.
    with mpl.rc_context({"text.parse_math": False, "font.size": 10, "axes.titlesize": 11, "figure.dpi": 150}):
        latency, time = picture(plot_latency(models)), picture(plot_time(models))
        sizes = picture(plot_sizes(models))
        speed = picture(plot_throughput(models, result["machine"]["cores"]))
        padding = picture(plot_tokens(tokens)) if tokens else ""
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Benchmark</title><style>{STYLE}{WRAP}</style>"
        f"<h1>Benchmark</h1>{table(None, facts(result))}"
        f"<h2>Saturation</h2>{table(*summary(models))}"
        "<p class=note>Saturated: a closed loop in rounds, in which the models take turns. The ceiling: the same graph "
        "in process on the same requests, without server, client or network, measured between the rounds. Served: the "
        "share of what the generators, which run on the same cores, leave of it. A server elsewhere has no ceiling "
        "here.</p>"
        f"<h2>Throughput in a closed loop</h2>{speed}"
        f"<h2>Latency in an open loop</h2>{latency}"
        "<p class=note>Requests begin at random moments, at shares of the saturated rate, whether or not the former "
        "ones were answered. Time counts from the moment a request was to begin.</p>"
        f"<h2>Latency by the size of a request</h2>{sizes}"
        "<p class=note>The same, by the characters that a request's texts have together; at 0, one user alone in a "
        "closed loop, so that nothing waits. Of few requests p95 is nearly the slowest one.</p>"
        f"<h2>Where the time goes</h2>{time}"
        "<p class=note>Means. Queue and compute (with copies in and out) are Triton's statistics, warm-up included; "
        "rest is what the caller waited beyond them: network, client, Triton's own. Triton counts a merged execution's "
        "whole time for every request in it; where a request is answered before its execution ends, a bar is longer "
        "than what the caller waited.</p>"
        + (f"<h2>Tokens, and what padding would add</h2>{padding}" if padding else "")
        + "<h2>Every step</h2><p class=note>Merged: requests that Triton handed to one execution, on average.</p>"
        + "".join(
            f"<h3>{html.escape(name)}</h3>{table(*steps(found))}"
            f"<p class=note>By the size of a request, p50 / p95 / p99 ms:</p>{table(*sizes_table(found))}"
            for name, found in models.items()
        )
        + "</html>"
    )
    write_whole(path, page.encode())


def facts(result: dict[str, Any]) -> list[list[str]]:
    """What was measured, when, on what, and how to do it again: names and values."""
    machine, server, workload = result["machine"], result["server"], result["workload"]
    where = "started on the same machine" if server["started_here"] else server["url"]
    sent = f"{workload['data']}, {workload['candidates'] or 'as many as logged'} candidates a request, "
    sent += f"texts: {workload['texts']}"
    if "requests" in workload:
        some = workload["in_closed_loops"]
        sent += f"; {workload['requests']} requests, {workload['pairs']} pairs; "
        sent += f"in closed loops and for the ceilings {some['requests']} of them, {some['pairs']} pairs, in turns"
    return [
        ["time", result["time"]],
        ["commit", result["commit"] or "not in a git checkout"],
        ["machine", f"{processors(machine)}, {machine['memory_gib']} GiB"],
        ["system", machine["system"]],
        ["server", f"{server['name']} {server['version']}, {where}"],
        ["versions", ", ".join(f"{name} {version}" for name, version in result["versions"].items())],
        ["workload", sent],
        ["repeat with", shlex.join(command(result))],
    ]


def command(result: dict[str, Any]) -> list[str]:
    """The command line that measures the same."""
    server, workload, models = result["server"], result["workload"], result["models"]
    words = ["python", "-m", "benchmarks", "saturate", "--data", workload["data"], "--texts", workload["texts"]]
    if workload["candidates"]:
        words += ["--candidates", str(workload["candidates"])]
    processes = max(
        (step["generator"]["processes"] for found in models.values() for step in all_steps(found)), default=1
    )
    if processes > 1:
        words += ["--processes", str(processes)]
    if not server["started_here"]:
        words += ["--url", server["url"]]
    for name in models:
        words += ["--model", name]
    for aim in sorted({found["slo"]["aim"] for found in models.values() if "slo" in found}):
        words += ["--slo", aim]
    return words


def summary(models: dict[str, Found]) -> tuple[list[str], list[list[str]]]:
    """Saturation beside the ceiling: heads, and a row for each model, whose last cell is a text."""
    heads = ["model", "version", "users", "requests/s", "pairs/s", "ceiling, pairs/s", "served", ""]
    rows = []
    for name, found in models.items():
        best, ceiling, notes = found["saturated"], found["ceiling"], []
        share = best["of_ceiling"]
        if ceiling:
            notes.append(f"fastest in process: {ceiling['layout']}")
        if "slo" in found:
            notes.append(slo_outcome(found["slo"]))
        if found["beside"]:
            notes.append(beside(found["beside"]))
        cells = [name, found["version"], str(best["users"]), f"{best['requests_per_s']:.1f}"]
        cells += [f"{best['pairs_per_s']:.0f}", f"{ceiling['pairs_per_second']:.0f}" if ceiling else "-"]
        rows.append([*cells, "-" if share is None else f"{share:.0%}", "; ".join(notes)])
    return heads, rows


def steps(found: Found) -> tuple[list[str], list[list[str]]]:
    """Every step of a model: heads and rows, whose last cell says what is to be known."""
    rows = []
    for step in all_steps(found):
        limit, time = step["generator"]["limit"], step["time_ms"]
        shown = limit is None
        cells = row(step)
        cells[f"{' / '.join(TIMES)} ms"] = " / ".join(f"{time[part]:.0f}" for part in TIMES) if shown and time else "-"
        merged = step["requests_per_execution"]
        cells["merged"] = f"{merged:.1f}" if shown and merged else "-"
        notes = [f"{count} x {kind}" for kind, count in step["error_kinds"].items()]
        if step in found["rounds"]:
            left = step.get("left_of_ceiling") if shown else None
            notes.insert(0, f"at saturation: of {left:.0f} of the ceiling" if left else "at saturation")
        notes += [f"{LIMITED}: {limit}"] * (not shown)
        if "holds" in step:
            notes.append(f"{found['slo']['aim']} {'holds' if step['holds'] else 'does not hold'}")
        rows.append(cells | {"": "; ".join(notes)})
    return list(rows[0]) if rows else [], [list(cells.values()) for cells in rows]


def sizes_table(found: Found) -> tuple[list[str], list[list[str]]]:
    """A model's latencies by the size of a request: heads and rows, whose last cell, a text, is empty."""
    heads, rows = by_size(found)
    return [*heads, ""], [[*cells, ""] for cells in rows]


def all_steps(found: Found) -> list[dict[str, Any]]:
    """A model's steps: closed, those at saturation, open, and those of the search for its SLO."""
    return [*found["closed"], *found["rounds"], *found["open"], *found.get("slo", {}).get("steps", [])]


def table(heads: Sequence[str] | None, rows: Iterable[Sequence[str]]) -> str:
    """A table of texts, escaped; a row whose figures are the generator's stands out. Without heads: names, values."""
    lines = "" if heads is None else "<tr>" + "".join(f"<th>{html.escape(head)}" for head in heads) + "</tr>"
    for cells in rows:
        mark = " class=failed" if LIMITED in cells[-1] else ""
        lines += f"<tr{mark}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
    return f"<div class=wide><table>{lines}</table></div>"
