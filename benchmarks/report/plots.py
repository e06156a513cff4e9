"""The pictures of a result.

A client-bound step's figures are the generator's own: no line has them, and
the picture says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from math import nan

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter, StrMethodFormatter

from benchmarks.measure.recording import CLASSES
from benchmarks.measure.schema import ModelResult, Step, percentile_names
from benchmarks.report.tables import CLIENT_BOUND
from export.engines import colour_of

WIDTH = 10.8  # inches
COLOURS = ("#3b6ea5", "#c8553d", "#5b8e7d", "#8d6a9f")  # of what is no model: size classes, parts of a latency
GREY, FAILED = "#777", "#b00020"
MARKERS = "os^Dv"
TIMES = {"queue": COLOURS[3], "compute": COLOURS[2], "rest": "#bbb"}
Models = Mapping[str, ModelResult]  # all of them saturated


def colours(models: Models) -> dict[str, str]:
    """Each model's colour, which its engine says."""
    return {model: colour_of(model) for model in models}


def percentile_styles() -> dict[str, tuple[str, float]]:
    """Marker and opacity of each percentile: the higher, the paler."""
    names = percentile_names()
    opacities = (1.0 - 0.55 * place / max(1, len(names) - 1) for place in range(len(names)))
    return dict(zip(names, zip(cycle(MARKERS), opacities, strict=False), strict=False))


def plot_latency(models: Models) -> Figure:
    """Latency percentiles over the offered rate: the open loop, a model a panel."""
    figure, places = panels(models, 3.8, sharey=True)
    for axes, found, tint in places:
        steps = [each.step for each in found.open]
        offered = [step.offered_per_second for step in steps]
        for percentile, (marker, opacity) in percentile_styles().items():
            values = [step.shown_latency[percentile] if step.shown_latency else nan for step in steps]
            axes.plot(offered, values, marker=marker, color=tint, alpha=opacity, label=percentile)
        if found.saturated:
            most = found.saturated.requests_per_second
            axes.axvline(most, color=GREY, linewidth=1, linestyle=":", label="saturated")
        if found.slo:
            axes.axhline(found.slo.slo.limit_ms, color="#222", linewidth=1, linestyle="--", label=str(found.slo.slo))
        mark_client_bound(axes, steps, lambda step: step.offered_per_second)
        name_latency(axes)
        axes.legend(frameon=False, fontsize=9)
    # For all panels, which share it. Before the last line was drawn it would have fixed the right end, too.
    places[0][0].set_xlim(left=0)
    return figure


def plot_sizes(models: Models) -> Figure:
    """The two lowest percentiles by the size of a request, with one user's at 0: what a request takes alone."""
    figure, places = panels(models, 3.8, sharey=True)
    for axes, found, _ in places:
        steps = found.alone_and_open
        offered = [0.0 if step.users else step.offered_per_second for step in steps]
        for size, tint in zip(CLASSES, cycle(COLOURS), strict=False):
            latencies = [step.latency_by_size[size] if step.server_bound else None for step in steps]
            for percentile, (marker, opacity) in list(percentile_styles().items())[:2]:
                values = [each[percentile] if each else nan for each in latencies]
                axes.plot(offered, values, marker=marker, color=tint, alpha=opacity, label=f"{size}, {percentile}")
        name_latency(axes)
    name_lines(figure, places[0][0])
    return figure


def plot_throughput(models: Models, cores: int) -> Figure:
    """Throughput over requests in flight: the closed loop, a line a model, below its ceiling."""
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = plain(figure.subplots())
    for (name, found), tint in zip(models.items(), colours(models).values(), strict=True):
        users = [step.users or 0 for step in found.closed]
        served = [step.pairs_per_second if step.server_bound else nan for step in found.closed]
        axes.plot(users, served, marker="o", color=tint, label=name)
        if best := found.saturated:
            axes.plot([best.users], [best.pairs_per_second], "D", color=tint, label="saturated: mean of the rounds")
        if found.ceiling:
            most = found.ceiling.pairs_per_second
            left = [found.ceiling.left_by(step.generator, cores) for step in found.closed]
            axes.axhline(most, color=tint, linestyle="--", linewidth=1.2, label=f"its ceiling, {most:.0f}")
            axes.fill_between(users, left, most, color=tint, alpha=0.2, linewidth=0, label="used by the generators")
        mark_client_bound(axes, found.closed, lambda step: step.users or 0)
    axes.set(xlabel="users: requests in flight", ylabel="pairs/s", ylim=(0, None))
    axes.set_xticks(sorted({step.users or 0 for found in models.values() for step in found.closed}))
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def plot_time(models: Models) -> Figure:
    """Where a request's time goes on average: a bar for each step, a model a panel."""
    steps_of = {name: [*found.closed, *(each.step for each in found.open)] for name, found in models.items()}
    figure, places = panels(models, 1.2 + 0.32 * max(map(len, steps_of.values())), sharey=False)
    for (axes, _, _), steps in zip(places, steps_of.values(), strict=True):
        begins = [0.0] * len(steps)
        for part, tint in TIMES.items():
            splits = [step.time_split if step.shown_latency else None for step in steps]
            widths = [getattr(split, part) if split else 0.0 for split in splits]
            axes.barh(range(len(steps)), widths, 0.7, begins, color=tint, label=part)
            begins = [begin + width for begin, width in zip(begins, widths, strict=True)]
        means = [step.shown_latency.mean if step.shown_latency else nan for step in steps]
        axes.scatter(means, range(len(steps)), 130, "#222", marker="|", linewidths=2, label="the caller's mean")
        for place, step in enumerate(steps):
            if step.shown_latency is None:
                why = CLIENT_BOUND if step.client_bound else "nothing was answered"
                axes.annotate(why, (0, place), (4, 0), textcoords="offset points", va="center", color=FAILED)
        axes.set_yticks(range(len(steps)), [step.load for step in steps])
        axes.set(xlabel="ms a request", ylim=(len(steps) - 0.4, -0.6))
        axes.grid(visible=False, axis="y")
    name_lines(figure, places[0][0])
    places[0][0].set_xlim(0, 1.04 * places[0][0].get_xlim()[1])
    return figure


def plot_tokens(tokens: Mapping[str, int]) -> Figure:
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


def name_lines(figure: Figure, axes: Axes) -> None:
    """A legend below all panels, which have the same lines."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower center", ncols=len(labels))


def name_latency(axes: Axes) -> None:
    """Latency, on a logarithmic scale with plain numbers, over the offered rate."""
    axes.set(yscale="log", xlabel="offered, requests/s", ylabel="latency, ms")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())


def mark_client_bound(axes: Axes, steps: Sequence[Step], where: Callable[[Step], float]) -> None:
    """A cross at the foot of the plot for each step that has no figures of the server."""
    places = [where(step) for step in steps if not step.server_bound]
    if places:
        foot = axes.get_xaxis_transform()
        axes.plot(places, [0.03] * len(places), "x", color=FAILED, transform=foot, label=CLIENT_BOUND)


def panels(models: Models, height: float, sharey: bool) -> tuple[Figure, list[tuple[Axes, ModelResult, str]]]:
    """A figure with a panel for each model, two in a row, on one scale: axes, model, colour."""
    lines = -(-len(models) // 2)
    figure = Figure(figsize=(WIDTH, height * lines), layout="constrained")
    places = list(figure.subplots(lines, min(2, len(models)), sharex=True, sharey=sharey, squeeze=False).flat)
    for empty in places[len(models) :]:
        empty.set_visible(False)
    for axes, name in zip(places, models, strict=False):
        plain(axes).set_title(name, loc="left", pad=10)
        axes.tick_params(labelbottom=True, labelleft=True)
    return figure, list(zip(places[: len(models)], models.values(), colours(models).values(), strict=True))


def plain(axes: Axes) -> Axes:
    """Axes without a box, with thin lines to read values at."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes
