"""What a run makes of its steps: whose turn it is, saturation, shares of the ceiling, the highest rate for an SLO."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from benchmarks import BenchmarkError
from benchmarks.load_gen.pool import Load
from benchmarks.load_gen.target import Target
from benchmarks.load_gen.workload import Selection
from benchmarks.measure.schema import GeneratorUse, Latency, ModelResult, Slo, Step
from benchmarks.measure.stats import summarize
from benchmarks.saturation import schedule as scheduling
from benchmarks.saturation.ceiling import Ceiling, CoreLayout
from benchmarks.saturation.schedule import SaturationRun, Schedule
from clickbert.connection import Connection

SCHEDULE = Schedule(
    users=(1, 3), rounds=2, round_seconds=5, ceiling_seconds=0.0, shares=((0.5, 1), (0.9, 1)), slo_steps=6
)
EMPTY = replace(summarize([], 0, 1), generator=GeneratorUse(1, 0.0, 0.0, {"ServerTimeoutError": "late"}))


class FakeServer(Target):
    """Triton's counts of a server that is none."""

    def with_counts(self, model: str, send: Callable[[], Step]) -> Step:
        return send()


class World:
    """Pools and ceilings in place of real ones: each model's pairs a second by its users, on a machine of some speed.

    Attributes:
        speeds: pairs a second of a model by its users.
        ceilings: the same of its ceiling; none for a server elsewhere.
        machine: its speed at each measurement at saturation, one after the other; 1 when they are used up.
        change: what becomes of a step.
        log: what was measured, in order.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, speeds: dict[str, dict[int, float]], folder: Path) -> None:
        self.speeds, self.ceilings, self.folder = speeds, dict[str, float](), folder
        self.machine: list[float] = []
        self.change: Callable[[str, Step], Step] = lambda _, step: step
        self.log: list[tuple[str, str | int | float]] = []
        self.open: set[tuple[str, bool]] = set()  # models, and whether the pool is of a closed loop
        monkeypatch.setattr(scheduling, "open_pool", self.open_pool)
        monkeypatch.setattr(scheduling, "open_ceiling", self.open_ceiling)
        for model in speeds:
            (folder / model / "1").mkdir(parents=True)
            (folder / model / "1" / "model.onnx").touch()
            (folder / model / "config.pbtxt").write_text(f"of {model}")

    def speed(self, at_saturation: bool) -> float:
        return self.machine.pop(0) if at_saturation and self.machine else 1.0

    @contextlib.contextmanager
    def open_pool(
        self, target: Target, model: str, load: Load, folder: Path, users: int | None = None
    ) -> Iterator[FakePool]:
        assert load.distinct == (SCHEDULE.distinct if users else None)
        own = (model, users is not None)
        assert own not in self.open, "one pool a model"
        assert users or not any(closed for _, closed in self.open), "no closed loop while open ones run"
        self.open.add(own)
        yield FakePool(self, model, users)
        self.open.remove(own)

    @contextlib.contextmanager
    def open_ceiling(self, version: Path, packed: list) -> Iterator[Ceiling]:
        model = version.parent.name

        def turn() -> float:
            self.log.append((model, "ceiling"))
            return self.ceilings[model] * self.speed(at_saturation=True)

        assert packed == [0] * 30
        yield Ceiling(CoreLayout(2, 1, 512), {}, turn)

    def saturate(self, slo: Slo | None = None) -> Iterator[dict[str, ModelResult]]:
        target = FakeServer(Connection("a:1"), self.folder if self.ceilings else None)
        run = SaturationRun(target, Load(Selection(Path("log")), processes=4), self.folder, SCHEDULE)
        return run.saturate(dict.fromkeys(self.speeds, "1"), [0] * 30, slo)

    def result(self, slo: Slo | None = None) -> dict[str, ModelResult]:
        *_, last = self.saturate(slo)
        return last


@dataclass
class FakePool:
    """Steps of a server whose speed is known."""

    world: World
    model: str
    most: int | None

    def send(self, seconds: int, *, users: int | None = None, rate: float | None = None) -> Step:
        assert (users or 0) <= (self.most or 0)
        self.world.log.append((self.model, users or float(rate or 0)))
        pairs = self.world.speeds[self.model][users or 1] * self.world.speed(seconds == SCHEDULE.round_seconds)
        latency = Latency({"p50": 1.0, "p95": 2.0, "p99": float(rate or 0)}, 1.0, 9.0)
        step = replace(
            EMPTY,
            users=users,
            rate=rate,
            duration=seconds,
            requests_per_second=pairs / 10,
            pairs_per_second=pairs,
            latency=latency,
        )
        return self.world.change(self.model, step)


def test_models_take_turns_between_rounds_of_their_ceilings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = World(monkeypatch, {"a": {1: 50.0, 3: 80.0, 6: 90.0}, "b": {1: 100.0, 3: 160.0, 6: 170.0}}, tmp_path)
    world.ceilings = {"a": 100.0, "b": 200.0}
    # Ceilings of both, then twice: a step of each, a ceiling of each.
    world.machine = [1.0, 1.0, 1.0, 1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.7]
    found = world.result()
    rounds = [("a", 3), ("b", 3), ("a", "ceiling"), ("b", "ceiling")] * 2
    closed = [(model, users) for users in (1, 3, 6) for model in "ab"]
    assert world.log[: len(closed) + 2 + len(rounds)] == [*closed, ("a", "ceiling"), ("b", "ceiling"), *rounds]
    opened = world.log[len(closed) + 2 + len(rounds) :]
    assert [model for model, _ in opened] == ["a", "b"] * 2
    assert [rate for _, rate in opened] == pytest.approx([0.5 * 7.6, 0.5 * 15.2, 0.9 * 7.6, 0.9 * 15.2])
    a, b = found["a"], found["b"]
    assert a.ceiling and b.saturated
    assert a.ceiling.rounds == pytest.approx([100, 90, 90])
    assert [one.left_of_ceiling for one in b.rounds] == pytest.approx([190, 160])
    assert b.saturated.share_of_ceiling == pytest.approx((160 + 144) / (190 + 160))
    assert b.saturated.pairs_per_second == pytest.approx(152)
    assert [one.share for one in a.open] == [0.5, 0.9]
    assert a.config == "of a"


def test_each_step_yields_everything_found_so_far(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = World(monkeypatch, {"a": {1: 10.0, 3: 10.0}}, tmp_path)
    counts = [(len(each["a"].closed), len(each["a"].rounds), len(each["a"].open)) for each in world.saturate()]
    assert counts == [(1, 0, 0), (2, 0, 0), (2, 1, 0), (2, 2, 0), (2, 2, 1), (2, 2, 2)]
    found = world.result()["a"]
    assert (found.ceiling, found.config) == (None, None)
    assert found.saturated and found.saturated.share_of_ceiling is None


def bound(*where: tuple[str, int | None]) -> Callable[[str, Step], Step]:
    """Makes steps of models with so many users client-bound."""
    return lambda model, step: replace(step, client_bound="busy" if (model, step.users) in where else None)


def test_client_bound_steps_are_no_saturation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = World(monkeypatch, {"a": {1: 10.0, 3: 90.0}, "b": {1: 10.0, 3: 30.0, 6: 30.0}}, tmp_path)
    world.change = bound(("a", 3))
    saturated = [found.saturated for found in world.result().values()]
    assert [each.users for each in saturated if each] == [1, 3]


def test_a_number_of_users_that_fails_is_no_saturation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = World(monkeypatch, {"a": {1: 10.0, 3: 11.0}, "b": {1: 5.0, 3: 20.0, 6: 20.0}}, tmp_path)
    failing = (("a", 3), ("b", 1), ("b", 3))
    world.change = lambda model, step: replace(step, errors=int((model, step.users) in failing))
    saturated = [found.saturated for found in world.result().values()]
    assert [each.users for each in saturated if each] == [1, 3]  # of b all have errors


def test_a_model_that_answers_nothing_in_time_does_not_end_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = World(monkeypatch, {"slow": {1: 0.0, 3: 0.0}, "b": {1: 10.0, 3: 30.0, 6: 30.0}}, tmp_path)
    found = world.result(Slo("p99", 50.0))
    assert found["slow"].failure == "it answered nothing within 4 s (ServerTimeoutError: late); see the server's log"
    assert (found["slow"].rounds, found["slow"].open, found["slow"].saturated) == ((), (), None)
    assert found["b"].saturated and found["b"].slo
    assert len(found["b"].open) == 2
    alone = World(monkeypatch, {"a": {1: 0.0, 3: 0.0}}, tmp_path / "alone")
    with pytest.raises(BenchmarkError, match="a: it answered nothing within 4 s"):
        alone.result()


def test_a_model_whose_rounds_are_client_bound_does_not_end_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = World(monkeypatch, {"a": {1: 10.0, 3: 10.0}, "b": {1: 10.0, 3: 30.0, 6: 30.0}}, tmp_path)
    in_rounds = SCHEDULE.round_seconds
    world.change = lambda model, step: replace(
        step, client_bound="busy" if model == "a" and step.duration == in_rounds else None
    )
    found = world.result()
    assert found["a"].failure == "client-bound (busy); give more --processes"
    assert (len(found["a"].rounds), len(found["a"].open), len(found["b"].open)) == (2, 0, 2)
    world.change = lambda _, step: replace(step, client_bound="busy" if step.duration == in_rounds else None)
    with pytest.raises(BenchmarkError, match=r"a: client-bound \(busy\); give more --processes; b: client-bound"):
        world.result()


@pytest.mark.parametrize(
    ("speeds", "users", "saturating"),
    [
        ({1: 10, 3: 20, 6: 20.9}, [1, 3, 6], 3),  # 3 brought more than 1, 6 no more than noise
        ({1: 10, 3: 20, 6: 40, 12: 80, 24: 79}, [1, 3, 6, 12, 24], 12),
        ({1: 10, 3: 9}, [1, 3], 3),  # as fast, but for what the machine's speed may change by
        ({1: 10, 3: 7}, [1, 3], 1),
        ({1: 10, 3: 20, 6: 25, 12: 26}, [1, 3, 6, 12], 6),
        ({1: 10, 3: 20, 6: 40, 12: 80, 24: 160, 48: 320, 96: 640}, [1, 3, 6, 12, 24, 48, 96], 96),  # 192 are too many
    ],
)
def test_users_are_doubled_while_that_brings_more(
    speeds: dict[int, float], users: list[int], saturating: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = World(monkeypatch, {"a": speeds}, tmp_path).result()["a"]
    assert [step.users for step in found.closed] == users
    assert found.saturated and found.saturated.users == saturating


@pytest.mark.parametrize("spoil", [{"errors": 1}, {"client_bound": "busy"}, {"pairs_per_second": 11.9}])
def test_a_step_with_errors_or_without_figures_does_not_rise(spoil: dict[str, object]) -> None:
    before, after = (replace(EMPTY, pairs_per_second=pairs) for pairs in (10.0, 12.1))
    assert SCHEDULE.rises([before, after])
    assert not SCHEDULE.rises([before, replace(after, **spoil)])


@pytest.mark.parametrize("highest", [1.7, 33.3, 64.0, 99.0])
def test_the_highest_rate_that_meets_an_objective_is_found(
    highest: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = World(monkeypatch, {"a": {1: 1000.0, 3: 1000.0}}, tmp_path)
    found = world.result(Slo("p99", highest))["a"].slo  # a request's p99 is as many ms as the rate
    assert found and found.requests_per_second
    assert highest - 100 / 64 <= found.requests_per_second <= highest
    assert len(found.steps) == 6
    assert all(found.slo.holds(step) == ((step.rate or 0) <= highest) for step in found.steps)


def test_an_objective_that_even_a_request_in_all_that_time_breaks_never_holds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = World(monkeypatch, {"a": {1: 30.0, 3: 30.0}}, tmp_path).result(Slo("p99", 0.01))["a"].slo
    assert found and found.requests_per_second is None
    assert [step.rate for step in found.steps] == [1.5, 0.75, 0.375]  # less is not a request for each process


def test_a_client_bound_search_ends_without_a_rate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = World(monkeypatch, {"a": {1: 1000.0, 3: 1000.0}}, tmp_path)
    world.change = lambda _, step: replace(
        step, client_bound="busy" if (step.rate or 0) > 60 and step.duration == SCHEDULE.slo_seconds else None
    )
    found = world.result(Slo("p99", 500.0))["a"].slo
    assert found and found.requests_per_second is None
    assert [step.server_bound for step in found.steps] == [True, False]
