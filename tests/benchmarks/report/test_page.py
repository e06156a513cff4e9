"""The page of a result, made up."""

from __future__ import annotations

import argparse
import base64
import html
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from benchmarks.measure.recording import CLASSES
from benchmarks.measure.schema import SaturationResult, Slo, SloResult
from benchmarks.options import saturate as add_options
from benchmarks.report.page import command, write_page
from benchmarks.report.plots import colours, plot_latency, plot_sizes, plot_throughput, plot_time
from benchmarks.report.tables import CLIENT_BOUND
from tests.benchmarks.made_up import (
    BUSY,
    MODELS,
    client_bound,
    make_result,
    unanswered,
    with_model,
    with_step,
)


def write(folder: Path, result: SaturationResult) -> str:
    write_page(folder / "report.html", result)
    assert [path.name for path in folder.iterdir()] == ["report.html"]
    return (folder / "report.html").read_text(encoding="utf-8")


def rows(page: str) -> list[list[str]]:
    """The texts in the cells of all tables."""
    return [
        [html.unescape(cell) for cell in re.findall(r"<t[dh]>(.*?)</t[dh]>", row)]
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
    assert f"{CLIENT_BOUND}:" not in page
    facts = {row[0]: row[1] for row in rows(page) if len(row) == 2}
    assert facts["time"] == result.environment.time
    assert facts["commit"] == "6b85c8b"
    assert facts["machine"] == "AMD EPYC, 2 cores, 23.5 GiB"
    assert facts["server"] == "triton 2.51.0, started on the same machine"
    assert "locust 2.47.0" in facts["versions"]
    assert "87 requests, 870 pairs; in closed loops and for the ceilings 40 of them, 400 pairs" in facts["workload"]
    for model in MODELS:
        found = result.models[model]
        assert found.saturated and found.ceiling and found.saturated.share_of_ceiling
        summary = next(row for row in rows(page) if row[0] == model)
        assert summary[2] == "4"
        assert summary[4] == f"{found.saturated.pairs_per_second:.0f}"
        assert summary[5] == f"{found.ceiling.pairs_per_second:.0f}"
        assert summary[6] == f"{found.saturated.share_of_ceiling:.0%}"
        assert ("times clickbert_onnx (round by round: " in summary[7]) == (model != MODELS[0])
        assert f"<h3>{model}</h3>" in page
    assert sum(row[0] in ("1 user", "4 users", "8 users", "18.0/s", "54.0/s") for row in rows(page)) == 13 * len(MODELS)
    for row in rows(page):
        assert row[0] != CLASSES[0] or all(re.fullmatch(r"\d+ / \d+ / \d+", cell) for cell in row[1:-1]), row


def test_client_bound_steps_have_no_figures(tmp_path: Path) -> None:
    result = with_step(with_step(make_result(), "closed", 2, client_bound), "open", 1, client_bound)
    page = write(tmp_path, result)
    marked = [rows(row)[0] for row in re.findall(r'<tr class="failed">.*?</tr>', page)]
    assert [row[0] for row in marked] == ["8 users", "30.0/s"]
    for row in marked:
        assert set(row[3:-1]) == {"-"}
        assert row[-1] == f"{CLIENT_BOUND}: {BUSY}"
    first, second = (lines(axes) for axes in plot_latency(result.models).axes)
    for percentile in ("p50", "p95", "p99"):
        assert np.isnan(first[percentile]).tolist() == [False, True, False, False]
        assert not np.isnan(second[percentile]).any()
    assert len(first[CLIENT_BOUND]) == 1
    assert CLIENT_BOUND not in second
    throughput = lines(plot_throughput(result.models, 2).axes[0])
    assert np.isnan(throughput["clickbert_onnx"]).tolist() == [False, False, True]
    assert len(throughput[CLIENT_BOUND]) == 1
    times = plot_time(result.models).axes
    sizes = lines(plot_sizes(result.models).axes[0])
    assert np.isnan(sizes[f"{CLASSES[0]}, p95"]).tolist() == [False, False, True, False, False]
    assert [text.get_text() for text in times[0].texts] == [CLIENT_BOUND, CLIENT_BOUND]
    assert not times[1].texts


def test_the_plots_have_the_figures_ceilings_and_the_objective() -> None:
    slo = SloResult(Slo("p99", 250.0), 20.0, ())
    models = with_model(make_result(), slo=slo).models
    found = models["clickbert_onnx"]
    assert found.ceiling
    latency = plot_latency(models).axes
    first, second = lines(latency[0]), lines(latency[1])
    assert first["p95"].tolist() == [one.step.latency["p95"] for one in found.open if one.step.latency]
    assert set(first["p99=250ms"]) == {250.0}
    assert "p99=250ms" not in second
    for axes, model in zip(latency, models.values(), strict=True):  # nothing is cut off
        assert axes.get_xlim()[0] == 0
        assert axes.get_xlim()[1] > max(one.step.offered_per_second for one in model.open)
    sizes = lines(plot_sizes(models).axes[0])
    assert len(sizes) == 2 * len(CLASSES)
    for size in CLASSES:
        shown = [step.latency_by_size[size] for step in found.alone_and_open]
        assert sizes[f"{size}, p50"].tolist() == [latency["p50"] for latency in shown if latency]
    throughput = lines(plot_throughput(models, 2).axes[0])
    ceiling = found.ceiling.pairs_per_second
    assert set(throughput[f"its ceiling, {ceiling:.0f}"]) == {ceiling}
    assert throughput["clickbert_onnx"].tolist() == [step.pairs_per_second for step in found.closed]
    assert len(throughput["saturated: mean of the rounds"]) == 1


def test_the_objective_is_shown(tmp_path: Path) -> None:
    result = make_result()
    first = result.models[MODELS[0]].open[0].step
    held = SloResult(Slo("p99", 250.0), 20.0, (first, replace(first, errors=1)))
    result = with_model(with_model(result, slo=held), MODELS[1], slo=SloResult(Slo("p99", 250.0), None, ()))
    found = rows(write(tmp_path, result))
    notes = [row[-1] for row in found if row[0] in MODELS]
    assert notes[0].endswith("; p99=250ms holds up to 20.0 requests/s")
    assert "; p99=250ms never holds; " in notes[1]
    steps = [row[-1] for row in found if row[0].endswith("/s") and "hold" in row[-1]]
    assert steps[:6] == ["p99=250ms holds"] * 5 + ["p99=250ms does not hold"]  # the open loop's, and the search's


def test_a_server_elsewhere_and_steps_without_an_answer(tmp_path: Path) -> None:
    result = with_step(make_result(ceiling=None), "open", 3, unanswered)
    result = replace(
        result,
        environment=replace(result.environment, commit=None),
        server=replace(result.server, url="grpcs://ranking.example:8001"),
        workload=replace(result.workload, candidates=None),
    )
    page = write(tmp_path, result)
    assert page.count("<img") == 4
    assert "not in a git checkout" in page
    assert [row[5:7] for row in rows(page) if row[0] in MODELS] == [["-", "-"]] * len(MODELS)
    assert sum(row[-1] == "at saturation" for row in rows(page)) == 8 * len(MODELS)
    assert sum(" x ServerTimeoutError" in row[-1] for row in rows(page)) == 1
    assert [text.get_text() for text in plot_time(result.models).axes[0].texts] == ["nothing was answered"]


def test_a_model_without_figures_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    none = {"rounds": (), "open": (), "failure": "it answered nothing within 4 s"}
    result = with_model(make_result(), MODELS[1], **none)
    page = write(tmp_path, result)
    assert page.count("<img") == 5
    assert next(row[-1] for row in rows(page) if row[0] == MODELS[1]).startswith("it answered nothing within 4 s")
    nothing = with_model(result, MODELS[0], **none)
    assert write(tmp_path, nothing).count("<img") == 1  # the tokens


def test_everything_from_outside_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('$x^$')</script>"
    name = f"clickbert_{evil}"
    result = make_result(models=(name,))
    found = result.models[name]
    assert found.ceiling and result.workload.sent
    closed = (replace(found.closed[0], error_kinds={evil: 1}), replace(found.closed[1], client_bound=evil))
    result = replace(
        with_model(result, name, version=evil, ceiling=replace(found.ceiling, layout=evil), closed=closed),
        environment=replace(
            result.environment,
            time=evil,
            commit=evil,
            versions={evil: evil},
            machine=replace(result.environment.machine, cpu=evil, system=evil),
        ),
        server=replace(result.server, name=evil, version=evil, url=evil, started_here=False),
        workload=replace(result.workload, data=evil, texts=evil, sent=replace(result.workload.sent, tokens={evil: 1})),
    )
    page = write(tmp_path, result)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#39;$x^$&#39;)") > 12


def test_every_model_has_a_colour_however_many_there_are(tmp_path: Path) -> None:
    result = make_result(models=tuple(f"clickbert_{number}" for number in range(5)))
    assert list(colours(result.models)) == list(result.models)
    assert len(plot_latency(result.models).axes) == 6
    assert [axes.get_visible() for axes in plot_time(result.models).axes] == [True] * 5 + [False]
    assert "<h3>clickbert_4</h3>" in write(tmp_path, result)


@pytest.mark.parametrize("ceiling", [1.0, None])
def test_the_command_line_measures_the_same(ceiling: float | None) -> None:
    result = with_model(make_result(ceiling=ceiling), slo=SloResult(Slo("p99", 250.0), 20.0, ()))
    result = replace(result, workload=replace(result.workload, data="my clicks.jsonl"))
    result = with_step(result, "closed", 2, lambda step: replace(step, generator=replace(step.generator, processes=3)))
    parser = argparse.ArgumentParser()
    add_options(parser)
    words = command(result)
    assert words[:4] == ["python", "-m", "benchmarks", "saturate"]
    options = parser.parse_args(words[4:])
    assert (str(options.data), options.candidates, options.texts) == ("my clicks.jsonl", 10, "all")
    assert (options.model, options.slo, options.processes) == (list(MODELS), Slo("p99", 250.0), 3)
    assert options.url == (None if ceiling else result.server.url)


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError, match=r"report\.html"):
        write_page(tmp_path / "report.html", make_result(models=("clickbert_onnx",)))
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
