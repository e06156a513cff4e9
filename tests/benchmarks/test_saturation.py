"""What a climb makes of its steps: saturation, how many users are tried, the highest rate that holds an aim."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import climb
from benchmarks.generator import Load
from benchmarks.target import LoadError, Target

MODEL = "clickbert_onnx"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(climb, "USERS", (1, 3))
    monkeypatch.setattr(climb, "SHARES", {0.5: 1})


def fake_measure(latency: Callable[[float], float], **others: Any) -> Callable[..., dict[str, Any]]:
    """An open loop whose p99 is a function of the rate."""

    def measure(_server: Target, _model: str, load: Load, _folder: Path) -> dict[str, Any]:
        assert load.users is None
        assert load.rate
        shown = {"p50": 1.0, "p95": 2.0, "p99": latency(load.rate)}
        return {"rate": load.rate, "latency_ms": shown, "errors": 0, "generator": {"limit": None}} | others

    return measure


@pytest.mark.parametrize("highest", [1.7, 33.3, 64.0, 99.0])
def test_the_highest_rate_that_holds_is_found(highest: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(climb, "measure", fake_measure(lambda rate: 50.0 * rate / highest))
    found = climb.search(Target("a:1"), MODEL, Load(tmp_path), 100.0, ("p99", 50.0), tmp_path)
    assert found["aim"] == "p99=50ms"
    assert highest - 100 / 64 <= found["requests_per_s"] <= highest
    assert [step["holds"] for step in found["steps"]] == [step["rate"] <= highest for step in found["steps"]]
    assert len(found["steps"]) == 6


@pytest.mark.parametrize(
    "others", [{"errors": 1}, {"generator": {"limit": "busy"}}, {"latency_ms": None}], ids=lambda each: next(iter(each))
)
def test_what_fails_or_was_not_measured_does_not_hold(
    others: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(climb, "measure", fake_measure(lambda _: 1.0, **others))
    found = climb.search(Target("a:1"), MODEL, Load(tmp_path), 100.0, ("p99", 50.0), tmp_path)
    assert found["requests_per_s"] is None
    assert not any(step["holds"] for step in found["steps"])


def test_a_generator_that_is_the_limit_ends_the_search_without_a_rate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sound, limited = fake_measure(lambda _: 1.0), fake_measure(lambda _: 1.0, generator={"limit": "busy", "cores": 1.0})
    monkeypatch.setattr(climb, "measure", lambda *given: (limited if given[2].rate > 60 else sound)(*given))
    found = climb.search(Target("a:1"), MODEL, Load(tmp_path), 100.0, ("p99", 50.0), tmp_path)
    assert found["requests_per_s"] is None
    assert [step["holds"] for step in found["steps"]] == [True, False]


def test_saturation_is_the_best_step_whose_figures_are_the_servers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    speeds = {1: (10.0, None), 3: (30.0, None), 5: (20.0, None), 8: (90.0, "its thread was busy 99% of the time")}
    monkeypatch.setattr(climb, "USERS", tuple(speeds))

    def measure(_server: Target, _model: str, load: Load, _folder: Path) -> dict[str, Any]:
        speed, limit = speeds[load.users or 1]
        limit = limit or told.get(load.users)
        assert load.users is None or load.processes == min(load.users, 4)
        figures = {"users": load.users, "rate": load.rate, "requests_per_s": speed / 10, "pairs_per_s": speed}
        return figures | {"errors": 0, "generator": {"limit": limit, "cores": 0.1}}

    told: dict[int | None, str] = {}
    monkeypatch.setattr(climb, "measure", measure)
    load = Load(tmp_path, processes=4)
    found = climb.climb(Target("a:1"), MODEL, load, [], tmp_path)
    assert found["saturated"] == {"users": 3, "requests_per_s": 3.0, "pairs_per_s": 30.0, "of_ceiling": None}
    assert [step["rate"] for step in found["open"]] == [pytest.approx(1.5)]
    told |= dict.fromkeys(speeds, "busy")
    with pytest.raises(LoadError, match="give more --processes"):
        climb.climb(Target("a:1"), MODEL, load, [], tmp_path)


@pytest.mark.parametrize(
    ("speeds", "users"),
    [
        ({1: 10, 3: 20, 6: 20.9}, [1, 3, 6]),  # 3 brought more than 1, 6 no more than noise
        ({1: 10, 3: 20, 6: 40, 12: 80, 24: 79}, [1, 3, 6, 12, 24]),
        ({1: 10, 3: 9}, [1, 3]),
        ({1: 10, 3: 20, 6: 40, 12: 80, 24: 160, 48: 320, 96: 640}, [1, 3, 6, 12, 24, 48, 96]),  # 192 are too many
    ],
)
def test_users_are_doubled_while_that_brings_more(
    speeds: dict[int, float], users: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measure(_server: Target, _model: str, load: Load, _folder: Path) -> dict[str, Any]:
        speed = speeds[load.users or 1]
        figures = {"users": load.users, "rate": load.rate, "requests_per_s": speed / 10, "pairs_per_s": speed}
        return figures | {"errors": 0, "generator": {"limit": None, "cores": 0.1}}

    monkeypatch.setattr(climb, "measure", measure)
    monkeypatch.setattr(climb, "MOST_USERS", 128)
    found = climb.climb(Target("a:1"), MODEL, Load(tmp_path), [], tmp_path)
    assert [step["users"] for step in found["closed"]] == users


@pytest.mark.parametrize("spoil", [{"errors": 1}, {"generator": {"limit": "busy"}}, {"pairs_per_s": 10.4}])
def test_a_step_with_errors_or_without_figures_does_not_rise(spoil: dict[str, Any]) -> None:
    before = {"pairs_per_s": 10.0, "requests_per_s": 1.0, "errors": 0, "generator": {"limit": None}}
    assert climb.rises([before, before | {"pairs_per_s": 10.6}])
    assert not climb.rises([before, before | {"pairs_per_s": 10.6} | spoil])


@pytest.mark.parametrize("text", ["p99=50ms", "p50=0.5ms", "p95=1200ms"])
def test_an_aim_is_a_percentile_and_its_milliseconds(text: str) -> None:
    percentile, limit = climb.slo(text)
    assert f"{percentile}={limit:g}ms" == text


@pytest.mark.parametrize(
    "text", ["", "p99", "p98=50ms", "p99=50", "p99=50s", "p99=0ms", "p99=-1ms", "p99=nanms", "p99=1e3ms", "p99=50ms "]
)
def test_nonsense_is_no_aim(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no such aim as p99=50ms"):
        climb.slo(text)
