"""A climb's result as one page with pictures.

Not known here: how it was measured. Where the generator was the limit of a step, its figures are not the server's: no
line has them, and the tables and the pictures say so.
"""

from __future__ import annotations

import html
import shlex
from collections.abc import Iterable, Sequence
from itertools import cycle
from math import nan
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter, StrMethodFormatter

from benchmarks.figures import left_of_ceiling, load_name, row, slo_outcome
from export.files import write_whole
from export.report import COLOURS, STYLE, picture

# Heads wrap, and so does a row's last cell, which is a text.
WRAP = """table { font-size: 14px } th { white-space: normal; vertical-align: bottom }
td:last-child { text-align: left; white-space: normal } td:last-child:not(:empty) { min-width: 12rem }
"""
WIDTH = 10.8  # inches
GREY, FAILED = "#777", "#b00020"
LIMITED = "the generator is the limit"
PERCENTILES = {"p50": ("o", 1.0), "p95": ("s", 0.7), "p99": ("^", 0.45)}  # marker, opacity
TIMES = {"queue": COLOURS[3], "compute": COLOURS[2], "rest": "#bbb"}
Found = dict[str, Any]  # one model's part of a result


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
        speed = picture(plot_throughput(models, result["machine"]["cores"]))
        padding = picture(plot_tokens(tokens)) if tokens else ""
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Benchmark</title><style>{STYLE}{WRAP}</style>"
        f"<h1>Benchmark</h1>{table(None, facts(result))}"
        f"<h2>Saturation</h2>{table(*summary(models))}"
        "<p class=note>Saturated: the closed loop's best step. The ceiling: the same graph in process on the same "
        "requests, without server, client or network. Served: the share of what the generators, which run on the same "
        "cores, leave of it. A server elsewhere has no ceiling here.</p>"
        f"<h2>Throughput in a closed loop</h2>{speed}"
        f"<h2>Latency in an open loop</h2>{latency}"
        "<p class=note>Requests begin at random moments, at shares of the saturated rate, whether or not the former "
        "ones were answered. Time counts from the moment a request was to begin.</p>"
        f"<h2>Where the time goes</h2>{time}"
        "<p class=note>Means. Queue and compute (with copies in and out) are Triton's statistics, warm-up included; "
        "rest is what the caller waited beyond them: network, client, Triton's own. Triton counts a merged execution's "
        "whole time for every request in it; where a request is answered before its execution ends, a bar is longer "
        "than what the caller waited.</p>"
        + (f"<h2>Tokens, and what padding would add</h2>{padding}" if padding else "")
        + "<h2>Every step</h2><p class=note>Merged: requests that Triton handed to one execution, on average.</p>"
        + "".join(f"<h3>{html.escape(name)}</h3>{table(*steps(found))}" for name, found in models.items())
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
        sent += f"; {workload['requests']} requests, {workload['pairs']} pairs, in turn"
    return [
        ["time", result["time"]],
        ["commit", result["commit"] or "not in a git checkout"],
        ["machine", f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB"],
        ["system", machine["system"]],
        ["server", f"{server['name']} {server['version']}, {where}"],
        ["versions", ", ".join(f"{name} {version}" for name, version in result["versions"].items())],
        ["workload", sent],
        ["repeat with", shlex.join(command(result))],
    ]


def command(result: dict[str, Any]) -> list[str]:
    """The command line that measures the same."""
    server, workload, models = result["server"], result["workload"], result["models"]
    words = ["python", "-m", "benchmarks", "climb", "--data", workload["data"], "--texts", workload["texts"]]
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
        notes += [f"{LIMITED}: {limit}"] * (not shown)
        if "holds" in step:
            notes.append(f"{found['slo']['aim']} {'holds' if step['holds'] else 'does not hold'}")
        rows.append(cells | {"": "; ".join(notes)})
    return list(rows[0]) if rows else [], [list(cells.values()) for cells in rows]


def all_steps(found: Found) -> list[dict[str, Any]]:
    """A model's steps: closed, open, and those of the search for its SLO."""
    return [*found["closed"], *found["open"], *found.get("slo", {}).get("steps", [])]


def table(heads: Sequence[str] | None, rows: Iterable[Sequence[str]]) -> str:
    """A table of texts, escaped; a row whose figures are the generator's stands out. Without heads: names, values."""
    lines = "" if heads is None else "<tr>" + "".join(f"<th>{html.escape(head)}" for head in heads) + "</tr>"
    for cells in rows:
        mark = " class=failed" if LIMITED in cells[-1] else ""
        lines += f"<tr{mark}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
    return f"<div class=wide><table>{lines}</table></div>"


def usable(step: dict[str, Any]) -> bool:
    """Whether a step has figures of the server."""
    return step["generator"]["limit"] is None and step["latency_ms"] is not None


def plot_latency(models: dict[str, Found]) -> Figure:
    """Latency percentiles over the offered rate: the open loop, a model a panel."""
    figure, places = panels(models, 3.8, sharey=True)
    for axes, found, tint in places:
        offered = [step["offered_per_s"] for step in found["open"]]
        for percentile, (marker, opacity) in PERCENTILES.items():
            values = [step["latency_ms"][percentile] if usable(step) else nan for step in found["open"]]
            axes.plot(offered, values, marker=marker, color=tint, alpha=opacity, label=percentile)
        axes.axvline(found["saturated"]["requests_per_s"], color=GREY, linewidth=1, linestyle=":", label="saturated")
        if "slo" in found:
            limit = float(found["slo"]["aim"].partition("=")[2].removesuffix("ms"))
            axes.axhline(limit, color="#222", linewidth=1, linestyle="--", label=f"aim: {found['slo']['aim']}")
        mark_limited(axes, found["open"], "offered_per_s")
        axes.set(yscale="log", xlabel="offered, requests/s", ylabel="latency, ms")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.legend(frameon=False, fontsize=9)
    # For all panels, which share it. Before the last line was drawn it would have fixed the right end, too.
    places[0][0].set_xlim(left=0)
    return figure


def plot_throughput(models: dict[str, Found], cores: int) -> Figure:
    """Throughput over requests in flight: the closed loop, a line a model, below its ceiling."""
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = plain(figure.subplots())
    for (name, found), tint in zip(models.items(), cycle(COLOURS), strict=False):
        users = [step["users"] for step in found["closed"]]
        served = [step["pairs_per_s"] if usable(step) else nan for step in found["closed"]]
        axes.plot(users, served, marker="o", color=tint, label=name)
        if found["ceiling"]:
            ceiling = found["ceiling"]["pairs_per_second"]
            left = [left_of_ceiling(found["ceiling"], step, cores) for step in found["closed"]]
            axes.axhline(ceiling, color=tint, linestyle="--", linewidth=1.2, label=f"its ceiling, {ceiling:.0f}")
            axes.fill_between(users, left, ceiling, color=tint, alpha=0.2, linewidth=0, label="used by the generators")
        mark_limited(axes, found["closed"], "users")
    axes.set(xlabel="users: requests in flight", ylabel="pairs/s", ylim=(0, None))
    axes.set_xticks(sorted({step["users"] for found in models.values() for step in found["closed"]}))
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def plot_time(models: dict[str, Found]) -> Figure:
    """Where a request's time goes on average: a bar for each step, a model a panel."""
    most = max(len(found["closed"]) + len(found["open"]) for found in models.values())
    figure, places = panels(models, 1.2 + 0.32 * most, sharey=False)
    for axes, found, _ in places:
        shown = [*found["closed"], *found["open"]]
        begins = [0.0] * len(shown)
        for part, tint in TIMES.items():
            widths = [step["time_ms"][part] if usable(step) and step["time_ms"] else 0.0 for step in shown]
            axes.barh(range(len(shown)), widths, 0.7, begins, color=tint, label=part)
            begins = [begin + width for begin, width in zip(begins, widths, strict=True)]
        means = [step["latency_ms"]["mean"] if usable(step) else nan for step in shown]
        axes.scatter(means, range(len(shown)), 130, "#222", marker="|", linewidths=2, label="the caller's mean")
        for place, step in enumerate(shown):
            if not usable(step):
                why = LIMITED if step["generator"]["limit"] else "nothing was answered"
                axes.annotate(why, (0, place), (4, 0), textcoords="offset points", va="center", color=FAILED)
        axes.set_yticks(range(len(shown)), [load_name(step) for step in shown])
        axes.set(xlabel="ms a request", ylim=(len(shown) - 0.4, -0.6))
        axes.grid(visible=False, axis="y")
        axes.legend(frameon=False, fontsize=9)
    places[0][0].set_xlim(0, 1.04 * places[0][0].get_xlim()[1])
    return figure


def plot_tokens(tokens: dict[str, int]) -> Figure:
    """Tokens that are computed, and that padding would have computed."""
    figure = Figure(figsize=(WIDTH, 0.8 + 0.4 * len(tokens)), layout="constrained")
    axes = plain(figure.subplots())
    axes.barh(list(tokens), list(tokens.values()), 0.6, color=[COLOURS[0], *["#bbb"] * (len(tokens) - 1)])
    least = next(iter(tokens.values()))
    for place, count in enumerate(tokens.values()):
        axes.annotate(
            f"{count:,}  (x {count / least:.1f})", (count, place), (6, 0), textcoords="offset points", va="center"
        )
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set(xlabel="tokens in all requests", xlim=(0, 1.2 * max(tokens.values())))
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    return figure


def mark_limited(axes: Axes, steps: Sequence[dict[str, Any]], where: str) -> None:
    """A cross at the foot of the plot for each step that has no figures of the server."""
    places = [step[where] for step in steps if step["generator"]["limit"] is not None]
    if places:
        foot = axes.get_xaxis_transform()
        axes.plot(places, [0.03] * len(places), "x", color=FAILED, transform=foot, label=LIMITED)


def panels(models: dict[str, Found], height: float, sharey: bool) -> tuple[Figure, list[tuple[Axes, Found, str]]]:
    """A figure with a panel for each model, two in a row, on one scale: axes, model, colour."""
    lines = -(-len(models) // 2)
    figure = Figure(figsize=(WIDTH, height * lines), layout="constrained")
    places = list(figure.subplots(lines, min(2, len(models)), sharex=True, sharey=sharey, squeeze=False).flat)
    for empty in places[len(models) :]:
        empty.set_visible(False)
    for axes, name in zip(places, models, strict=False):
        plain(axes).set_title(name, loc="left", pad=10)
        axes.tick_params(labelbottom=True, labelleft=True)
    return figure, list(zip(places, models.values(), cycle(COLOURS), strict=False))


def plain(axes: Axes) -> Axes:
    """Axes without a box, with thin lines to read values at."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes
