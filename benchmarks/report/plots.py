"""The pictures of a climb's result.

Not known here: how they come into a page. Where the generator was the limit of a step, its figures are not the
server's: no line has them, and the picture says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from math import nan
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter, StrMethodFormatter

from benchmarks.load_gen.workload import CLASSES
from benchmarks.measure.stats import alone_and_open, is_sound, left_of_ceiling, load_name
from export.engines import find_engines

COLOURS = tuple(engine.colour for engine in find_engines().values())
WIDTH = 10.8  # inches
GREY, FAILED = "#777", "#b00020"
LIMITED = "the generator is the limit"
PERCENTILES = {"p50": ("o", 1.0), "p95": ("s", 0.7), "p99": ("^", 0.45)}  # marker, opacity
TIMES = {"queue": COLOURS[3], "compute": COLOURS[2], "rest": "#bbb"}
Found = dict[str, Any]  # one model's part of a result


def usable(step: dict[str, Any]) -> bool:
    """Whether a step has figures of the server."""
    return is_sound(step) and step["latency_ms"] is not None


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
        name_latency(axes)
        axes.legend(frameon=False, fontsize=9)
    # For all panels, which share it. Before the last line was drawn it would have fixed the right end, too.
    places[0][0].set_xlim(left=0)
    return figure


def plot_sizes(models: dict[str, Found]) -> Figure:
    """The same by the size of a request, with one user's latencies at 0: what a request takes alone."""
    figure, places = panels(models, 3.8, sharey=True)
    for axes, found, _ in places:
        steps = alone_and_open(found)
        offered = [0.0 if step["users"] else step["offered_per_s"] for step in steps]
        for size, tint in zip(CLASSES, cycle(COLOURS), strict=False):
            latency = [step["latency_by_size_ms"][size] if usable(step) else None for step in steps]
            for percentile in ("p50", "p95"):
                marker, opacity = PERCENTILES[percentile]
                values = [each[percentile] if each else nan for each in latency]
                axes.plot(offered, values, marker=marker, color=tint, alpha=opacity, label=f"{size}, {percentile}")
        name_latency(axes)
    handles, labels = places[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower center", ncols=len(labels))
    return figure


def plot_throughput(models: dict[str, Found], cores: int) -> Figure:
    """Throughput over requests in flight: the closed loop, a line a model, below its ceiling."""
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = plain(figure.subplots())
    for (name, found), tint in zip(models.items(), cycle(COLOURS), strict=False):
        users = [step["users"] for step in found["closed"]]
        served = [step["pairs_per_s"] if usable(step) else nan for step in found["closed"]]
        axes.plot(users, served, marker="o", color=tint, label=name)
        best = found["saturated"]
        axes.plot([best["users"]], [best["pairs_per_s"]], "D", color=tint, label="saturated: mean of the rounds")
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


def name_latency(axes: Axes) -> None:
    """Latency, on a logarithmic scale with plain numbers, over the offered rate."""
    axes.set(yscale="log", xlabel="offered, requests/s", ylabel="latency, ms")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())


def mark_limited(axes: Axes, steps: Sequence[dict[str, Any]], where: str) -> None:
    """A cross at the foot of the plot for each step that has no figures of the server."""
    places = [step[where] for step in steps if not is_sound(step)]
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
