"""What `--compare` is given: a whole result, or an error that says what it is instead; and adding a percentile."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import BenchmarkError
from benchmarks.measure import schema
from benchmarks.measure.compare import compare_results
from benchmarks.measure.schema import GeneratorUse, Slo, SloResult, dump, read_result, write
from benchmarks.options import RESULTS
from benchmarks.report.page import write_page
from benchmarks.report.plots import plot_latency
from benchmarks.report.tables import speedup_over_first
from tests.benchmarks.made_up import (
    MODELS,
    client_bound,
    make_result,
    make_step,
    scaled,
    unanswered,
    with_model,
    with_step,
)


def test_a_written_result_is_read_back_with_all_its_types(tmp_path: Path) -> None:
    result = make_result()
    step = result.models[MODELS[0]].open[0].step
    result = with_model(result, slo=SloResult(Slo("p99", 50.0), None, (step,)), failure="none")
    write(tmp_path / "result.json", result)
    assert read_result(tmp_path / "result.json") == result


def test_results_of_former_releases_are_read() -> None:
    kept = list(RESULTS.glob("[0-9]*.json"))  # other measurements' names begin with a word
    assert kept
    for path in kept:
        result = read_result(path)
        assert all(found.saturated for found in result.models.values()), path


def test_a_step_of_a_former_release_lacks_the_tokens_of_a_chunk(tmp_path: Path) -> None:
    document = json.loads(dump(make_result(rounds=2)))
    drop("models", MODELS[0], "rounds", 1, "step", "tokens_per_chunk")(document)
    (tmp_path / "result.json").write_text(json.dumps(document))
    rounds = read_result(tmp_path / "result.json").models[MODELS[0]].rounds
    assert [one.step.tokens_per_chunk for one in rounds] == [200.0, None]


def drop(*path: str | int) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return change


def put(value: object, *path: str | int) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (put(3, "schema"), "has schema 3, this release reads 4"),
        (drop("schema"), "has schema None, this release reads 4"),
        (drop("server"), "server"),
        (put(3, "models", MODELS[0]), rf"models\.{MODELS[0]} is 3, it must be ModelResult"),
        (drop("models", MODELS[0], "rounds"), "rounds"),
        (drop("models", MODELS[0], "rounds", 1, "left_of_ceiling"), r"rounds\[1\] has missing .*: left_of_ceiling"),
        (drop("models", MODELS[0], "open", 0, "share"), r"open\[0\] has missing or unexpected fields: share"),
        (put("fast", "models", MODELS[0], "closed", 0, "pairs_per_second"), r"closed\[0\]\.pairs_per_second is 'fast'"),
        (put(None, "models", MODELS[0], "ceiling", "rounds"), r"ceiling\.rounds is None"),
        (put(False, "complete"), "is incomplete: that run ended early; measure again"),
    ],
)
def test_a_spoilt_result_is_refused_in_a_sentence_that_says_where(
    tmp_path: Path, spoil: Callable[[Any], None], reason: str
) -> None:
    document = json.loads(dump(make_result()))
    spoil(document)
    (tmp_path / "result.json").write_text(json.dumps(document))
    with pytest.raises(BenchmarkError, match=reason) as caught:
        read_result(tmp_path / "result.json")
    assert str(tmp_path / "result.json") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe", b"[" * 100_000, b"[1]"])
def test_what_is_no_result_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(BenchmarkError, match="give a file that this version of `python -m benchmarks saturate` wrote"):
        read_result(tmp_path / "result.json")


def test_a_percentile_that_is_added_to_the_one_tuple_is_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "PERCENTILES", (50, 90, 95, 99))
    result = make_result(90)  # nobody else's: it is made with this tuple
    found = result.models[MODELS[0]]
    slo = Slo.parse("p90=25ms")
    step = found.open[0].step
    assert slo.holds(step) == (np.percentile(step.latencies_ms, 90) <= 25)
    result = with_model(result, slo=SloResult(slo, 20.0, (step,)))
    assert any("p90 ms at 50% of saturation" in str(change) for change in compare_results(result, result)[0].changes)
    assert "p90" in {str(line.get_label()) for line in plot_latency(result.models).axes[0].get_lines()}
    write_page(tmp_path / "page.html", result)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<th>p90 ms</th>" in page
    assert "p50 / p90 / p95 / p99 in ms" in page
    assert "p90=25ms holds up to 20.0 requests/s" in page


def test_the_means_of_the_rounds_are_of_those_that_are_the_servers() -> None:
    result = with_step(make_result(rounds=3), "rounds", 1, client_bound)
    found = result.models[MODELS[0]]
    kept = [found.rounds[0], found.rounds[2]]
    assert found.saturated
    assert found.saturated.users == 4
    assert found.saturated.pairs_per_second == pytest.approx(np.mean([one.step.pairs_per_second for one in kept]))
    left = np.mean([one.left_of_ceiling for one in kept])
    assert found.saturated.share_of_ceiling == pytest.approx(found.saturated.pairs_per_second / left)
    for place in (0, 2):
        result = with_step(result, "rounds", place, client_bound)
    assert result.models[MODELS[0]].saturated is None


def test_a_speedup_is_of_rounds_that_have_figures_of_both() -> None:
    result = make_result(rounds=3)
    assert speedup_over_first(result.models, MODELS[0]) == ""
    first, second = (result.models[name].rounds for name in MODELS)
    ratios = [own.step.pairs_per_second / other.step.pairs_per_second for own, other in zip(second, first, strict=True)]
    result = with_step(with_step(result, "rounds", 1, client_bound), "rounds", 0, lambda step: scaled(step, 0.5))
    halved, _, last = first
    total = second[0].step.pairs_per_second + second[2].step.pairs_per_second
    total /= 0.5 * halved.step.pairs_per_second + last.step.pairs_per_second
    each = f"{2 * ratios[0]:.2f}, {ratios[2]:.2f}"
    assert speedup_over_first(result.models, MODELS[1]) == f"{total:.2f} times clickbert_onnx (round by round: {each})"


def test_generators_take_nothing_of_a_gpu() -> None:
    ceiling = make_result().models[MODELS[0]].ceiling
    assert ceiling
    ceiling = replace(ceiling, rounds=(90.0, 110.0))
    use = GeneratorUse(1, 0.1, cores=0.5, first_messages={})
    assert ceiling.left_by(use, 2) == 75
    assert replace(ceiling, on_cpu=False).left_by(use, 2) == 100


def test_what_fails_or_is_client_bound_meets_no_objective() -> None:
    step = make_step(np.random.default_rng(0), 50, 0.02, 2, rate=50.0)
    assert Slo("p99", 1000.0).holds(step)
    assert not Slo("p99", 1.0).holds(step)
    for spoil in (unanswered, client_bound, lambda one: replace(one, errors=1)):
        assert not Slo("p99", 1000.0).holds(spoil(step))
    assert str(SloResult(Slo("p99", 50.0), None, (step,))) == "p99=50ms never holds"
    assert str(SloResult(Slo("p99", 50.0), None, (client_bound(step),))).endswith(
        "unknown: the search was client-bound"
    )


@pytest.mark.parametrize("text", ["p99=50ms", "p50=0.5ms", "p95=1200ms"])
def test_an_objective_is_a_percentile_and_its_milliseconds(text: str) -> None:
    assert str(Slo.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "p99", "p98=50ms", "p99=50", "p99=50s", "p99=0ms", "p99=-1ms", "p99=nanms", "p99=1e3ms", "p99=50ms "]
)
def test_nonsense_is_no_objective(text: str) -> None:
    with pytest.raises(ValueError, match="is not an objective like p99=50ms: one of p50, p95, p99, in milliseconds"):
        Slo.parse(text)
