"""The page of a climb, on made-up results, which test_compare.py has from here."""

from __future__ import annotations

import argparse
import base64
import html
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from benchmarks import saturate as climb
from benchmarks.load_gen.workload import CLASSES
from benchmarks.measure.ceiling import Ceiling, Layout
from benchmarks.measure.compare import SCHEMA
from benchmarks.measure.stats import Sample, summarize
from benchmarks.report.page import command, write_page
from benchmarks.report.plots import LIMITED, plot_latency, plot_sizes, plot_throughput, plot_time

MODELS = ("clickbert_onnx", "clickbert_onnx_int8")
RATE, PAIRS, TOOK = 60.0, 10, 0.02  # requests a second at saturation, pairs of each, seconds until the answer
LIMIT = "its thread was busy 95% of the time"


def make_step(chance: np.random.Generator, per_second: float, took: float, seconds: int, **more: Any) -> dict[str, Any]:
    """A step as `measure` returns it: so many requests a second, give or take 3 % in each second."""
    counts = [round(per_second * (1 + 0.03 * chance.standard_normal())) for _ in range(seconds)]
    begins = np.concatenate([second + np.arange(count) / count for second, count in enumerate(counts)])
    lasted = took * chance.lognormal(0, 0.3, len(begins))
    samples = [
        Sample(float(begin), 0.0, float(last), PAIRS, None, CLASSES[place % 3])
        for place, (begin, last) in enumerate(zip(begins, lasted, strict=True))
    ]
    return {
        "users": None,
        "rate": None,
        **summarize(samples, 0, seconds),
        "generator": {"processes": 1, "busy": 0.1, "cores": 0.2, "limit": None, "first_messages": {}},
        "time_ms": {"queue": 1.5, "compute": 1000 * took - 2.5, "rest": 1.0},
        "requests_per_execution": 1.5,
        **more,
    }


def make_result(
    seed: int = 0, speed: float = 1.0, ceiling: float | None = 1.0, models: Iterable[str] = MODELS
) -> dict[str, Any]:
    """A result as climb writes it, of a server so many times as fast as RATE and TOOK; its ceiling likewise, if any."""
    chance = np.random.default_rng(seed)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "time": "2026-11-25T02:25:46+00:00",
        "commit": "6b85c8b",
        "machine": {"system": "Linux", "cpu": "AMD EPYC", "cores": 2, "memory_gib": 23.5},
        "versions": {"python": "3.11.7", "locust": "2.47.0"},
        "server": {
            "name": "triton",
            "version": "2.51.0",
            "url": "127.0.0.1:36381",
            "started_here": ceiling is not None,
        },
        "workload": {"data": "data/sample/test.jsonl", "candidates": PAIRS, "texts": "all"},
        "complete": True,
        "models": {},
    }
    if ceiling is not None:
        result["workload"] |= {
            "requests": 87,
            "pairs": 870,
            "in_closed_loops": {"requests": 40, "pairs": 400},
            "tokens": {"packed": 100, "padded to 512": 730},
        }
    for model in models:
        closed = [
            make_step(chance, RATE * speed * share, TOOK / speed, 6, users=users)
            for users, share in ((1, 0.6), (4, 1.0), (8, 0.9))
        ]
        opened = [
            make_step(chance, RATE * speed * share, TOOK / speed, 10, rate=RATE * speed * share, share=share)
            for share in (0.3, 0.5, 0.7, 0.9)
        ]
        found, around = None, [None] * 3
        if ceiling is not None:
            speeds = [float(1.2 * RATE * PAIRS * ceiling * (1 + 0.01 * chance.standard_normal())) for _ in range(4)]
            found = Ceiling(Layout(2, 1, 512), {}, float, speeds).facts()
            around = [(before + after) / 2 for before, after in pairwise(speeds)]
        rounds = [
            make_step(chance, RATE * speed, TOOK / speed, 8, users=4, **({"left_of_ceiling": left} if left else {}))
            for left in around
        ]
        means = {name: float(np.mean([each[name] for each in rounds])) for name in ("requests_per_s", "pairs_per_s")}
        result["models"][model] = {
            "version": "2",
            "config": None if ceiling is None else 'name: "it"',
            "ceiling": found,
            "closed": closed,
            "rounds": rounds,
            "open": opened,
            "saturated": {"users": 4, **means, "of_ceiling": None if ceiling is None else 0.83},
            "beside": None if not result["models"] else {"model": MODELS[0], "rounds": [2.5, 1.5], "ratio": 2.0},
        }
    return result


def limit(step: dict[str, Any]) -> None:
    """Makes the generator the limit of a step, and nonsense of its figures."""
    step["generator"]["limit"] = LIMIT
    step["latencies_ms"] = [each * 7 for each in step["latencies_ms"]]


def write(folder: Path, result: dict[str, Any]) -> str:
    write_page(folder / "report.html", result)
    assert [path.name for path in folder.iterdir()] == ["report.html"]
    return (folder / "report.html").read_text(encoding="utf-8")


def rows(page: str) -> list[list[str]]:
    """The texts in the cells of all tables."""
    return [
        [html.unescape(cell) for cell in re.findall(r"<t[dh]>(.*?)(?=<t[dh]>|</t[dh]>)", row)]
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", page)
    ]


def lines(axes: Axes) -> dict[str, Any]:
    """The values of the lines on a plot, [points] each, by their names in its legend."""
    return {str(line.get_label()): np.asarray(line.get_ydata(), float) for line in axes.get_lines()}


def test_the_page_is_one_file_that_says_what_was_measured(tmp_path: Path) -> None:
    result = make_result()
    page = write(tmp_path, result)
    images = re.findall(r'<img [^>]*src="data:image/png;base64,([^"]*)"', page)
    assert len(images) == page.count("<img") == 5
    for image in images:
        assert base64.b64decode(image, validate=True).startswith(b"\x89PNG\r\n")
        page = page.replace(image, "")
    assert not re.search(r"https?:|url\(|@import|<script|<link|<iframe|href|srcset", page)
    assert LIMITED not in page
    facts = {row[0]: row[1] for row in rows(page) if len(row) == 2}
    assert facts["time"] == result["time"]
    assert facts["commit"] == "6b85c8b"
    assert facts["machine"] == "AMD EPYC, 2 cores, 23.5 GiB"
    assert facts["server"] == "triton 2.51.0, started on the same machine"
    assert "locust 2.47.0" in facts["versions"]
    assert "87 requests, 870 pairs; in closed loops and for the ceilings 40 of them, 400 pairs" in facts["workload"]
    for model in MODELS:
        found = result["models"][model]
        summary = next(row for row in rows(page) if row[0] == model)
        assert summary[2] == "4"
        assert summary[4] == f"{found['saturated']['pairs_per_s']:.0f}"
        assert summary[5] == f"{found['ceiling']['pairs_per_second']:.0f}"
        assert summary[6] == "83%"
        beside = found["beside"]
        assert summary[7].endswith("; 2.00 times clickbert_onnx (in turns: 2.50, 1.50)" if beside else "chunks of 512")
        assert f"<h3>{model}</h3>" in page
    assert sum(row[0] in ("1 users", "4 users", "8 users", "18.0/s", "54.0/s") for row in rows(page)) == 8 * len(MODELS)
    told = [f"at saturation: of {step['left_of_ceiling']:.0f} of the ceiling" for step in found["rounds"]]
    assert [row[-1] for row in rows(page) if "at saturation" in row[-1]][-3:] == told
    for row in rows(page):
        assert row[0] != CLASSES[0] or all(re.fullmatch(r"\d+ / \d+ / \d+", cell) for cell in row[1:-1]), row


def test_where_the_generator_was_the_limit_there_are_no_figures(tmp_path: Path) -> None:
    result = make_result()
    found = result["models"]["clickbert_onnx"]
    limit(found["closed"][2])
    limit(found["open"][1])
    page = write(tmp_path, result)
    marked = [rows(row)[0] for row in re.findall(r"<tr class=failed>.*?</tr>", page)]
    assert [row[0] for row in marked] == ["8 users", "30.0/s"]
    for row in marked:
        assert set(row[3:-1]) == {"-"}
        assert row[-1] == f"{LIMITED}: {LIMIT}"
    first, second = (lines(axes) for axes in plot_latency(result["models"]).axes)
    for percentile in ("p50", "p95", "p99"):
        assert np.isnan(first[percentile]).tolist() == [False, True, False, False]
        assert not np.isnan(second[percentile]).any()
    assert len(first[LIMITED]) == 1
    assert LIMITED not in second
    throughput = lines(plot_throughput(result["models"], 2).axes[0])
    assert np.isnan(throughput["clickbert_onnx"]).tolist() == [False, False, True]
    assert len(throughput[LIMITED]) == 1
    times = plot_time(result["models"]).axes
    sizes = lines(plot_sizes(result["models"]).axes[0])
    assert np.isnan(sizes[f"{CLASSES[0]}, p95"]).tolist() == [False, False, True, False, False]
    assert [text.get_text() for text in times[0].texts] == [LIMITED, LIMITED]
    assert not times[1].texts


def test_the_plots_have_the_figures_ceilings_and_the_aim() -> None:
    models = make_result()["models"]
    found = models["clickbert_onnx"]
    found["slo"] = {"aim": "p99=250ms", "requests_per_s": 20.0, "steps": []}
    latency = plot_latency(models).axes
    first, second = lines(latency[0]), lines(latency[1])
    assert first["p95"].tolist() == [step["latency_ms"]["p95"] for step in found["open"]]
    assert set(first["aim: p99=250ms"]) == {250.0}
    assert not any(name.startswith("aim") for name in second)
    for axes, model in zip(latency, models.values(), strict=True):  # nothing is cut off
        assert axes.get_xlim()[0] == 0
        assert axes.get_xlim()[1] > max(step["offered_per_s"] for step in model["open"])
    sizes = lines(plot_sizes(models).axes[0])
    assert len(sizes) == 2 * len(CLASSES)
    for size in CLASSES:
        shown = [step["latency_by_size_ms"][size]["p50"] for step in (found["closed"][0], *found["open"])]
        assert sizes[f"{size}, p50"].tolist() == shown
    throughput = lines(plot_throughput(models, 2).axes[0])
    ceiling = found["ceiling"]["pairs_per_second"]
    assert set(throughput[f"its ceiling, {ceiling:.0f}"]) == {ceiling}
    assert throughput["clickbert_onnx"].tolist() == [step["pairs_per_s"] for step in found["closed"]]
    assert len(throughput["saturated: mean of the rounds"]) == 1


def test_the_aim_is_shown(tmp_path: Path) -> None:
    result = make_result()
    first, second = result["models"].values()
    held = first["open"][0] | {"holds": True}
    first["slo"] = {"aim": "p99=250ms", "requests_per_s": 20.0, "steps": [held, held | {"holds": False}]}
    second["slo"] = {"aim": "p99=250ms", "requests_per_s": None, "steps": []}
    found = rows(write(tmp_path, result))
    notes = [row[-1] for row in found if row[0] in MODELS]
    assert notes[0].endswith("; p99=250ms holds up to 20.0 requests/s")
    assert "; p99=250ms never holds; 2.00 times" in notes[1]
    assert [row[-1] for row in found if "hold" in row[-1]][-2:] == ["p99=250ms holds", "p99=250ms does not hold"]


def test_a_server_elsewhere_and_steps_without_an_answer(tmp_path: Path) -> None:
    result = make_result(ceiling=None) | {"commit": None}
    result["server"]["url"] = "grpcs://ranking.example:8001"
    result["workload"]["candidates"] = None
    for found in result["models"].values():
        found["open"][3] |= {"latency_ms": None, "latencies_ms": [], "time_ms": None, "requests_per_execution": None}
        found["open"][3]["error_kinds"] = {"ServerTimeoutError": 9}
    page = write(tmp_path, result)
    assert page.count("<img") == 4
    summaries = [row for row in rows(page) if row[0] in MODELS]
    assert [row[5:7] for row in summaries] == [["-", "-"]] * len(MODELS)
    assert [row[7] for row in summaries] == ["", "2.00 times clickbert_onnx (in turns: 2.50, 1.50)"]
    assert sum(row[-1] == "at saturation" for row in rows(page)) == 3 * len(MODELS)
    assert sum(row[-1] == "9 x ServerTimeoutError" for row in rows(page)) == len(MODELS)
    assert [text.get_text() for text in plot_time(result["models"]).axes[0].texts] == ["nothing was answered"]


def test_everything_from_outside_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('$x^$')</script>"
    name = f"clickbert_{evil}"
    result = make_result(models=[name])
    found = result["models"][name]
    found["version"] = found["ceiling"]["layout"] = evil
    found["closed"][0]["error_kinds"] = {evil: 1}
    found["closed"][2]["generator"]["limit"] = evil
    result |= {"time": evil, "commit": evil, "versions": {evil: evil}}
    result["machine"] |= {"cpu": evil, "system": evil}
    result["server"] |= {"name": evil, "version": evil, "url": evil, "started_here": False}
    result["workload"] |= {"data": evil, "texts": evil, "tokens": {evil: 1}}
    page = write(tmp_path, result)
    assert "<script" not in page
    assert page.count(html.escape(evil)) > 12


def test_more_models_than_colours(tmp_path: Path) -> None:
    result = make_result(models=[f"clickbert_{number}" for number in range(5)])
    assert len(plot_latency(result["models"]).axes) == 6
    assert [axes.get_visible() for axes in plot_time(result["models"]).axes] == [True] * 5 + [False]
    assert "<h3>clickbert_4</h3>" in write(tmp_path, result)


@pytest.mark.parametrize("ceiling", [1.0, None])
def test_the_command_line_measures_the_same(ceiling: float | None) -> None:
    result = make_result(ceiling=ceiling)
    result["workload"]["data"] = "my clicks.jsonl"
    result["models"]["clickbert_onnx"]["slo"] = {"aim": "p99=250ms", "requests_per_s": 20.0, "steps": []}
    result["models"]["clickbert_onnx"]["closed"][2]["generator"]["processes"] = 3
    parser = argparse.ArgumentParser()
    climb.add_arguments(parser)
    words = command(result)
    assert words[:4] == ["python", "-m", "benchmarks", "saturate"]
    options = parser.parse_args(words[4:])
    assert (str(options.data), options.candidates, options.texts) == ("my clicks.jsonl", 10, "all")
    assert (options.model, options.slo, options.processes) == (list(MODELS), ("p99", 250.0), 3)
    assert options.url == (None if ceiling else result["server"]["url"])


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError, match=r"report\.html"):
        write_page(tmp_path / "report.html", make_result(models=["clickbert_onnx"]))
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
