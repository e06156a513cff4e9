"""What a climb makes of its steps: whose turn it is, saturation, shares of the ceiling, the highest rate for an aim."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import saturate as climb
from benchmarks.load_gen.pool import Load
from benchmarks.load_gen.target import LoadError, Target
from benchmarks.measure import ceiling
from benchmarks.measure import schedule as rounds
from benchmarks.measure.ceiling import Ceiling, Layout

MODEL = "clickbert_onnx"
MESSAGES = {"first_messages": {"ServerTimeoutError": "late"}}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "USERS", (1, 3))
    monkeypatch.setattr(rounds, "SHARES", {0.5: 1, 0.9: 1})
    monkeypatch.setattr(rounds, "ROUNDS", 2)


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
    monkeypatch.setattr(rounds, "measure", fake_measure(lambda rate: 50.0 * rate / highest))
    found = rounds.search(Target("a:1"), MODEL, Load(tmp_path), 100.0, ("p99", 50.0), tmp_path)
    assert found["aim"] == "p99=50ms"
    assert highest - 100 / 64 <= found["requests_per_s"] <= highest
    assert [step["holds"] for step in found["steps"]] == [step["rate"] <= highest for step in found["steps"]]
    assert len(found["steps"]) == 6


def test_an_aim_that_even_a_request_in_all_that_time_breaks_never_holds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rounds, "measure", fake_measure(lambda _: 99.0))
    found = rounds.search(Target("a:1"), MODEL, Load(tmp_path, processes=4), 3.0, ("p99", 50.0), tmp_path)
    assert found["requests_per_s"] is None
    assert [step["rate"] for step in found["steps"]] == [1.5, 0.75, 0.375]


@pytest.mark.parametrize(
    "others", [{"errors": 1}, {"generator": {"limit": "busy"}}, {"latency_ms": None}], ids=lambda each: next(iter(each))
)
def test_what_fails_or_was_not_measured_does_not_hold(
    others: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rounds, "measure", fake_measure(lambda _: 1.0, **others))
    found = rounds.search(Target("a:1"), MODEL, Load(tmp_path), 100.0, ("p99", 50.0), tmp_path)
    assert found["requests_per_s"] is None
    assert not any(step["holds"] for step in found["steps"])


def test_a_generator_that_is_the_limit_ends_the_search_without_a_rate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sound, limited = fake_measure(lambda _: 1.0), fake_measure(lambda _: 1.0, generator={"limit": "busy", "cores": 1.0})
    monkeypatch.setattr(rounds, "measure", lambda *given: (limited if given[2].rate > 60 else sound)(*given))
    found = rounds.search(Target("a:1"), MODEL, Load(tmp_path), 100.0, ("p99", 50.0), tmp_path)
    assert found["requests_per_s"] is None
    assert [step["holds"] for step in found["steps"]] == [True, False]


class Server:
    """Measures in place of a server: each model's pairs a second by its users, and what the machine's speed is then.

    Attributes:
        speeds: pairs a second of a model by its users.
        ceilings: the same of its ceiling; none for a server elsewhere.
        machine: its speed at each measurement at saturation, one after the other; 1 when they are used up.
        limits: why a model has no figures with so many users, or in an open loop (None).
        log: what was measured, in order.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, speeds: dict[str, dict[int, float]], folder: Path) -> None:
        self.speeds, self.ceilings, self.folder = speeds, dict[str, float](), folder
        self.machine: list[float] = []
        self.resting_now: set[str] = set()
        self.limits: dict[tuple[str, int | None], str] = {}
        self.log: list[tuple[str, str | int | float]] = []
        monkeypatch.setattr(rounds, "measure", self.measure)
        monkeypatch.setattr(rounds, "resting", self.resting)
        monkeypatch.setattr(rounds, "observed", lambda _server, _model, send: send())
        monkeypatch.setattr(rounds, "find_ceiling", self.find_ceiling)
        monkeypatch.setattr(ceiling, "ROUND_SECONDS", 0.0)
        for model in speeds:
            (folder / model / "1").mkdir(parents=True)
            (folder / model / "1" / "model.onnx").touch()
            (folder / model / "config.pbtxt").write_text(f"of {model}")

    def speed(self, at_saturation: bool) -> float:
        return self.machine.pop(0) if at_saturation and self.machine else 1.0

    def measure(self, _server: Target, model: str, load: Load, _folder: Path) -> dict[str, Any]:
        assert load.processes == min(load.users or 4, 4)
        assert load.users or not self.resting_now, "none beside the open loops"
        self.log.append((model, load.users or float(load.rate or 0)))
        pairs = self.speeds[model][load.users or 1] * self.speed(load.duration == rounds.ROUND_SECONDS)
        figures = {"users": load.users, "rate": load.rate, "requests_per_s": pairs / 10, "pairs_per_s": pairs}
        limit = self.limits.get((model, load.users))
        return figures | {"errors": 0, "generator": {"limit": limit, "cores": 0.0} | MESSAGES}

    @contextlib.contextmanager
    def resting(
        self, target: Target, model: str, load: Load, folder: Path
    ) -> Iterator[Callable[[int, int], dict[str, Any]]]:
        assert (load.distinct, load.processes) == (rounds.DISTINCT, min(load.users or 0, 4))

        def send(users: int, seconds: int) -> dict[str, Any]:
            assert users <= (load.users or 0)
            given = replace(load, users=users, duration=seconds, processes=min(users, 4))
            return rounds.measure(target, model, given, folder)

        assert model not in self.resting_now, "one set of generators a model"
        self.resting_now.add(model)
        try:
            yield send
        finally:
            self.resting_now.remove(model)

    def find_ceiling(self, version: Path, packed: list) -> Ceiling:
        model = version.parent.name

        def turn() -> float:
            self.log.append((model, "ceiling"))
            return self.ceilings[model] * self.speed(at_saturation=True)

        assert packed == [0] * 30
        return Ceiling(Layout(2, 1, 512), {}, turn)

    def climb(self) -> dict[str, dict[str, Any]]:
        target = Target("a:1", repository=self.folder if self.ceilings else None)
        *_, found = rounds.climb(target, self.speeds, Load(self.folder, processes=4), [0] * 30, self.folder)
        return found


def test_the_models_take_turns_and_so_do_their_ceilings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = Server(monkeypatch, {"a": {1: 50.0, 3: 80.0, 6: 81.0}, "b": {1: 50.0, 3: 120.0, 6: 160.0}}, tmp_path)
    server.speeds["b"][12] = 100.0
    server.ceilings = {"a": 100.0, "b": 200.0}
    # ceilings; steps; ceilings, slower by a tenth; steps; ceilings, b's slower again
    server.machine = [1.0, 1.0, 1.0, 1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.7]
    found = server.climb()
    ceilings = [("a", "ceiling"), ("b", "ceiling")]
    saturated = [("a", 3), ("b", 6)]
    assert server.log == [
        *[("a", 1), ("b", 1), ("a", 3), ("b", 3), ("a", 6), ("b", 6), ("b", 12)],
        *[*ceilings, *saturated, *ceilings, *saturated, *ceilings],
        *[
            ("a", pytest.approx(3.8)),
            ("b", pytest.approx(7.6)),
            ("a", pytest.approx(6.84)),
            ("b", pytest.approx(13.68)),
        ],
    ]
    a, b = found["a"], found["b"]
    assert [step["pairs_per_s"] for step in a["rounds"]] == pytest.approx([80, 72])
    assert [step["left_of_ceiling"] for step in a["rounds"]] == pytest.approx([95, 90])
    share = (80 + 72) / (95 + 90)
    assert a["saturated"] == pytest.approx({"users": 3, "requests_per_s": 7.6, "pairs_per_s": 76, "of_ceiling": share})
    assert a["ceiling"]["rounds"] == pytest.approx([100, 90, 90])
    assert a["ceiling"]["pairs_per_second"] == pytest.approx(280 / 3)
    assert [step["left_of_ceiling"] for step in b["rounds"]] == pytest.approx([190, 160])
    assert b["saturated"]["of_ceiling"] == pytest.approx((160 + 144) / (190 + 160))
    assert b["saturated"]["pairs_per_s"] == pytest.approx(152)
    assert (a["beside"], b["beside"]) == (
        None,
        {"model": "a", "rounds": [pytest.approx(2)] * 2, "ratio": pytest.approx(2)},
    )
    assert [step["share"] for step in a["open"]] == [0.5, 0.9]
    assert a["config"] == "of a"


def test_what_is_known_is_told_each_time_that_more_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = Server(monkeypatch, {"a": {1: 10.0, 3: 10.0}}, tmp_path)
    load = Load(tmp_path, processes=4)
    told = [
        [len(found["a"][part]) for part in ("closed", "rounds", "open")]
        for found in rounds.climb(Target("a:1"), ["a"], load, [], tmp_path)
    ]
    assert told == [[1, 0, 0], [2, 0, 0], [2, 1, 0], [2, 2, 0], [2, 2, 1], [2, 2, 2]]
    assert (server.climb()["a"]["ceiling"], server.climb()["a"]["saturated"]["of_ceiling"]) == (None, None)


def test_steps_and_rounds_without_figures_of_the_server_are_no_saturation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = Server(monkeypatch, {"a": {1: 10.0, 3: 90.0}, "b": {1: 10.0, 3: 30.0, 6: 30.0}}, tmp_path)
    server.limits["a", 3] = "its thread was busy 99% of the time"
    found = server.climb()
    assert (found["a"]["saturated"]["users"], found["b"]["saturated"]["users"]) == (1, 3)
    assert found["b"]["beside"]["ratio"] == pytest.approx(3)
    server.limits["a", 1] = "busy"
    with pytest.raises(LoadError, match="a: its thread was busy 99% of the time; give more --processes"):
        server.climb()


def test_a_number_of_users_that_fails_is_no_saturation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = Server(monkeypatch, {"a": {1: 10.0, 3: 11.0}, "b": {1: 5.0, 3: 20.0, 6: 20.0}}, tmp_path)
    measure, failing = server.measure, (("a", 3), ("b", 1), ("b", 3))

    def fail(target: Target, model: str, load: Load, folder: Path) -> dict[str, Any]:
        return measure(target, model, load, folder) | {"errors": int((model, load.users) in failing)}

    monkeypatch.setattr(rounds, "measure", fail)
    found = server.climb()
    assert found["a"]["saturated"]["users"] == 1
    assert found["b"]["saturated"]["users"] == 3  # all have errors


def test_where_nothing_is_answered_the_server_is_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = Server(monkeypatch, {"a": {1: 0.0, 3: 0.0}}, tmp_path)
    with pytest.raises(LoadError, match=r"a answered nothing in time \(ServerTimeoutError: late\); see the"):
        server.climb()


def test_rounds_without_figures_of_the_server_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = Server(monkeypatch, {"a": {1: 10.0, 3: 10.0}, "b": {1: 10.0, 3: 30.0, 6: 30.0}}, tmp_path)
    measure, seen = server.measure, list[str]()

    def spoilt(target: Target, model: str, load: Load, folder: Path) -> dict[str, Any]:
        step = measure(target, model, load, folder)
        if load.duration == rounds.ROUND_SECONDS:
            seen.append(model)
            if seen.count(model) in spoil.get(model, ()):
                step["generator"]["limit"] = "busy"
                step["pairs_per_s"] *= 7
        return step

    spoil: dict[str, tuple[int, ...]] = {"b": (1,)}
    monkeypatch.setattr(rounds, "measure", spoilt)
    found = server.climb()
    assert found["b"]["saturated"]["pairs_per_s"] == pytest.approx(30)
    assert found["b"]["beside"]["rounds"] == [pytest.approx(3)]
    seen.clear()
    spoil["a"] = (2,)
    assert server.climb()["b"]["beside"] is None
    seen.clear()
    spoil["a"] = (1, 2)
    with pytest.raises(LoadError, match="a: busy; give more --processes"):
        server.climb()


@pytest.mark.parametrize(
    ("speeds", "users", "saturating"),
    [
        ({1: 10, 3: 20, 6: 20.9}, [1, 3, 6], 3),  # 3 brought more than 1, 6 no more than noise
        ({1: 10, 3: 20, 6: 40, 12: 80, 24: 79}, [1, 3, 6, 12, 24], 12),
        ({1: 10, 3: 9}, [1, 3], 3),  # as fast but for what the machine's speed may change by
        ({1: 10, 3: 7}, [1, 3], 1),
        ({1: 10, 3: 20, 6: 25, 12: 26}, [1, 3, 6, 12], 6),
        ({1: 10, 3: 20, 6: 40, 12: 80, 24: 160, 48: 320, 96: 640}, [1, 3, 6, 12, 24, 48, 96], 96),  # 192 are too many
    ],
)
def test_users_are_doubled_while_that_brings_more(
    speeds: dict[int, float], users: list[int], saturating: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = Server(monkeypatch, {"a": speeds}, tmp_path).climb()["a"]
    assert [step["users"] for step in found["closed"]] == users
    assert found["saturated"]["users"] == saturating


@pytest.mark.parametrize("spoil", [{"errors": 1}, {"generator": {"limit": "busy"}}, {"pairs_per_s": 11.9}])
def test_a_step_with_errors_or_without_figures_does_not_rise(spoil: dict[str, Any]) -> None:
    before = {"pairs_per_s": 10.0, "requests_per_s": 1.0, "errors": 0, "generator": {"limit": None}}
    assert rounds.rises([before, before | {"pairs_per_s": 12.1}])
    assert not rounds.rises([before, before | {"pairs_per_s": 12.1} | spoil])


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
