"""Draws the dashboard's panels from a Prometheus' figures to one HTML page, for whoever has no Grafana at hand.

    python -m deploy dashboard --prometheus http://127.0.0.1:9090 --output page.html

The panels, their expressions, units and limits are those of dashboards/clickbert.json. The page needs no network.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, PercentFormatter

DASHBOARD = Path(__file__).parent / "dashboards" / "clickbert.json"
STEPS = 120  # points of a line
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
HEAD = """<!doctype html><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px sans-serif; margin: 1.5em auto; max-width: 1500px; background: #f4f4f5; color: #18181b }}
main {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(430px, 1fr)); gap: 1em }}
section {{ background: #fff; border-radius: 6px; padding: .8em }} h2 {{ font-size: 1em; margin: 0 }}
p {{ margin: .3em 0; color: #52525b; font-size: .85em }} svg {{ width: 100%; height: auto }}
</style><h1>{title}</h1><p>{told}</p><main>
"""
BARS = "barchart"
DAY = 86400  # seconds


class PageError(RuntimeError):
    """Prometheus cannot be asked. The message says why."""


def main(given: Sequence[str]) -> int:
    """The command. Returns the exit code: 0 written, 1 Prometheus cannot be asked, 2 usage."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy dashboard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--prometheus", default="http://127.0.0.1:9090", metavar="URL", help="default %(default)s")
    add("--minutes", type=int, default=60, help="up to now (default %(default)s)")
    add("--output", type=Path, required=True, metavar="FILE", help="the page")
    options = parser.parse_args(given)
    try:
        page = draw(options.prometheus, options.minutes * 60)
    except PageError as exc:
        print(f"dashboard: {exc}", file=sys.stderr)
        return 1
    options.output.write_text(page, encoding="utf-8")
    print(f"dashboard: {options.output}")
    return 0


@dataclass(frozen=True)
class Source:
    """A Prometheus, and the time that is looked at: seconds since 1970."""

    url: str
    start: float
    end: float
    variables: dict[str, str]  # of the dashboard: what each stands for, if all is chosen

    def ask(self, target: dict[str, Any]) -> list[dict[str, Any]]:
        """What it answers to the expression of a panel's target. Raises PageError."""
        step = max(5, round((self.end - self.start) / STEPS))
        query = target["expr"].replace("$__rate_interval", f"{max(60, 4 * step)}s")
        for name, value in self.variables.items():
            query = query.replace(f"${name}", value)
        path, words = "query", {"query": query}
        if target["range"]:
            path = "query_range"
            words |= {"start": str(self.start), "end": str(self.end), "step": str(step)}
        try:
            with DIRECTLY.open(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(words)}", timeout=30) as answer:
                return list(json.load(answer)["data"]["result"])
        except urllib.error.HTTPError as exc:
            raise PageError(f"{self.url} refuses {query!r}: {exc.read().decode(errors='replace')[:300]}") from exc
        except (OSError, ValueError, KeyError) as exc:
            raise PageError(f"{self.url} cannot be asked: {exc}; expected the URL of a Prometheus") from exc


def draw(prometheus: str, seconds: int) -> str:
    """The page, of the last so many seconds. Raises PageError."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    variables = {each["name"]: each["allValue"] for each in dashboard["templating"]["list"] if "allValue" in each}
    end = time.time()
    source = Source(prometheus.rstrip("/"), end - seconds, end, variables)
    told = f"{prometheus}, {seconds // 60} minutes up to {datetime.fromtimestamp(end, UTC):%Y-%m-%d %H:%M:%S} UTC"
    page = [HEAD.format(title=escape(dashboard["title"]), told=escape(told))]
    for panel in dashboard["panels"]:
        title, description = escape(panel["title"]), escape(panel["description"])
        page.append(f"<section><h2>{title}</h2>{draw_panel(panel, source)}<p>{description}</p></section>")
    return "".join([*page, "</main>\n"])


def draw_panel(panel: dict[str, Any], source: Source) -> str:
    """One panel, as SVG. Raises PageError."""
    figure = Figure(figsize=(5.4, 3), layout="constrained")
    axes = figure.add_subplot()
    for number, target in enumerate(panel["targets"]):
        if panel["type"] == BARS:
            draw_bars(axes, target["legendFormat"], source.ask(target), number, len(panel["targets"]))
        else:
            draw_lines(axes, target["legendFormat"], source.ask(target))
    defaults = panel["fieldConfig"]["defaults"]
    if axes.has_data():
        label_values(axes, defaults["unit"])
        axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.12), ncols=2)
        for step in defaults["thresholds"]["steps"][1:]:  # the first one is the ground
            axes.axhline(step["value"], color="#dc2626", linestyle="--", linewidth=1)
        axes.set_ylim(0, 1.05 * max(axes.dataLim.y1, 1e-9))
        if panel["type"] != BARS:
            axes.set_xlim(source.start / DAY, source.end / DAY)
            axes.xaxis_date(UTC)
            axes.xaxis.set_major_formatter(FuncFormatter(time_of_day))
    else:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color="#71717a")
        axes.set_axis_off()
    with io.StringIO() as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
        return file.getvalue()[file.getvalue().index("<svg") :]


def draw_lines(axes: Axes, legend: str, answers: list[dict[str, Any]]) -> None:
    """A line for each series of a target."""
    for answer in answers:
        days = [moment / DAY for moment, _ in answer["values"]]
        axes.plot(days, [float(value) for _, value in answer["values"]], label=fill(legend, answer["metric"]))


def draw_bars(axes: Axes, label: str, answers: list[dict[str, Any]], number: int, of: int) -> None:
    """A bar for each class of 0.05, beside those of the other targets."""
    shares = {float(answer["metric"]["up_to"]): float(answer["value"][1]) for answer in answers}
    width = 0.04 / of
    axes.bar([upper - 0.045 + (number + 0.5) * width for upper in shares], list(shares.values()), width, label=label)
    axes.set_xlim(0, 1)


def time_of_day(days: float, _place: object) -> str:
    """A tick of the time: `days` since 1970, as matplotlib counts them."""
    return f"{datetime.fromtimestamp(days * DAY, UTC):%H:%M}"


def fill(legend: str, labels: dict[str, str]) -> str:
    """A legend in Grafana's way of writing."""
    for name, value in labels.items():
        legend = legend.replace("{{" + name + "}}", value)
    return legend


def label_values(axes: Axes, unit: str) -> None:
    """Ticks by the panel's unit, as Grafana calls it."""
    formats: dict[str, Any] = {
        "percentunit": PercentFormatter(1),
        "s": EngFormatter("s"),
        "ms": FuncFormatter(lambda value, _: f"{value:,g} ms"),
        "reqps": FuncFormatter(lambda value, _: f"{value:,g}/s"),
        "bytes": EngFormatter("B"),
    }
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=unit == "none"))
    if unit in formats:
        axes.yaxis.set_major_formatter(formats[unit])
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
