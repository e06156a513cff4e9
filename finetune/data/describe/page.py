"""A click log's description as one page with pictures, which needs no network."""

import re
from collections.abc import Callable
from datetime import timedelta
from math import sqrt
from pathlib import Path
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from finetune.data.describe.description import EPOCH, SHOWN, Description, Rate, quantile, tables
from finetune.page import picture, render
from release.files import write_whole

TEMPLATE = Path(__file__).with_name("page.html.j2")
COLOURS = ("#3b6ea5", "#c8553d")
MOST_POSITIONS = 50
BARS = 60
SETTINGS: Any = {
    "text.parse_math": False,  # a "$" in a topic is no formula
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def write_page(path: Path, log: Path, found: Description) -> None:
    """Write the page, whole or not at all. `log` is named in its title. Raises OSError."""
    page = render(TEMPLATE, log=str(log), tables=tables(found), pictures=draw(found))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page)


def draw(found: Description) -> dict[str, Markup]:
    """Draw the pictures, by what they show; what the log does not have is not drawn."""
    pictures: dict[str, tuple[bool, Callable[[Axes, Description], None]]] = {
        "Words of a query": (True, lambda axes, _: _lengths(axes, found, "query")),
        "Words of a document": (True, lambda axes, _: _lengths(axes, found, "document")),
        "Candidates of a group": (True, _group_sizes),
        "Click rate by position": (bool(found.positions), _positions),
        "Click rate by topic": (bool(found.topics), _topics),
        "Click rate by day": (len(found.days) > 1, _days),
    }
    drawn: dict[str, Markup] = {}
    with mpl.rc_context(SETTINGS):
        for title, (possible, plot) in pictures.items():
            if possible:
                lines = min(len(found.topics), SHOWN) if plot is _topics else 0
                figure = Figure(figsize=(6.4, max(2.8, 0.8 + 0.22 * lines)), layout="constrained")
                plot(figure.subplots(), found)
                drawn[title] = picture(figure, f"picture{len(drawn)}", title)
    return drawn


def _lengths(axes: Axes, found: Description, side: str) -> None:
    counter = found.words[side]
    # The longest few would press all others together: the last bar has them.
    most = max(1, quantile(counter, 0.99))
    width = -(-(most + 1) // BARS)
    bars = [0.0] * (most // width + 1)
    for words, count in counter.items():
        bars[min(words, most) // width] += count
    axes.bar([width * place for place in range(len(bars))], bars, width, align="edge", color=COLOURS[0])
    axes.set(xlabel=f"words (the last bar: {most // width * width} or more)", ylabel="rows", xlim=(0, None))


def _group_sizes(axes: Axes, found: Description) -> None:
    most = max(1, quantile(found.group_sizes, 0.99))
    bars = [0] * (most + 1)
    for size, count in found.group_sizes.items():
        bars[min(size, most)] += count
    axes.bar(range(1, most + 1), bars[1:], 0.9, color=COLOURS[0])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=f"candidates (the last bar: {most} or more)", ylabel="groups")


def _positions(axes: Axes, found: Description) -> None:
    _line(axes, {place: found.positions[place] for place in sorted(found.positions)[:MOST_POSITIONS]})
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="position", ylabel="click rate", ylim=(0, None))


def _days(axes: Axes, found: Description) -> None:
    _line(axes, {day: found.days[day] for day in sorted(found.days)})
    ticks = sorted(found.days)[:: -(-len(found.days) // 6)]
    axes.set_xticks(ticks, [f"{EPOCH + timedelta(days=day):%Y-%m-%d}" for day in ticks], fontsize=8)
    axes.set(ylabel="click rate", ylim=(0, None))


def _line(axes: Axes, rates: dict[int, Rate]) -> None:
    """Click rates, with their standard errors."""
    values = [rate.value for rate in rates.values()]
    errors = [sqrt(rate.value * (1 - rate.value) / rate.impressions) for rate in rates.values()]
    axes.errorbar(list(rates), values, errors, color=COLOURS[0], marker="o", markersize=3, elinewidth=0.8)


def _topics(axes: Axes, found: Description) -> None:
    topics = sorted(found.topics, key=lambda topic: (-found.topics[topic].impressions, topic))[:SHOWN]
    # A control character in a topic is none that SVG, which is XML, could hold.
    names = [re.sub(r"[^\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]", " ", topic)[:40] for topic in topics]
    axes.barh(range(len(topics)), [found.topics[topic].value for topic in topics], 0.7, color=COLOURS[0])
    axes.axvline(found.overall.value, color=COLOURS[1], linewidth=1)
    axes.set_yticks(range(len(topics)), names, fontsize=8)
    axes.set(xlabel="click rate (the line: of all)", ylim=(len(topics) - 0.4, -0.6))
