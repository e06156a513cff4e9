"""The order of the steps, and how each ends: on a clock and gateways of the test."""

from __future__ import annotations

from collections import Counter

import pytest

from deploy.canary.gateways import CANARY, STABLE, AdminError, Counts, Split
from deploy.canary.judging import GOOD, OPEN, Finding, Limits, Side
from deploy.canary.run import SETTLE, STEADY, Canary, Pace, RolledBack, main, parse, plan, side

LIMITS = Limits(errors=0.01, p99=1.5, drift=0.25, least_calls=100)
GATEWAY = ("127.0.0.1", 9901)


class World:
    """Gateways, servers and a clock: each second has so many calls, split as the gateways are set."""

    def __init__(self, calls: int = 200) -> None:
        self.calls, self.seconds, self.splits = calls, 0.0, [Split()]
        self.counts: Counts = Counter()
        self.error_ratio = 0.0
        self.slow: dict[str, float] = {}  # milliseconds, where they are not 10
        self.times: list[tuple[float, str, float, int]] = []  # when, whose, how long, how many calls
        self.lag = 0.0  # seconds until a time is seen
        self.wrong = ""

    def set(self, split: Split) -> None:
        self.splits.append(split)

    def check(self, _split: Split) -> None:
        if self.wrong:
            raise AdminError(self.wrong)

    def read(self) -> Counts:
        return Counter(self.counts)

    def clock(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.second()

    def second(self) -> None:
        self.seconds += 1
        split = self.splits[-1]
        own = self.calls * split.weight // 100
        self.add(STABLE, self.calls - own, 0)
        copied = own + (self.calls - own) * split.shadow // 100
        self.add(CANARY, copied, round(copied * self.error_ratio))

    def add(self, cluster: str, calls: int, errors: int) -> None:
        for what, count in (("rq_total", calls), ("rq_success", calls - errors), ("rq_error", errors)):
            self.counts[GATEWAY, cluster, what, "server"] += count
        self.counts[GATEWAY, cluster, ("answered", "model"), "server"] += calls
        self.counts[GATEWAY, cluster, ("scores", "model", "0.10"), "server"] += calls * 10
        self.times.append((self.seconds, cluster, self.slow.get(cluster, 10.0), calls))
        for late in [each for each in self.times if each[0] + self.lag <= self.seconds]:
            self.times.remove(late)
            _, cluster, milliseconds, calls = late
            self.counts[GATEWAY, cluster, (milliseconds, milliseconds + 1), cluster] += calls

    def canary(self, pace: Pace) -> Canary:
        return Canary(self, self.read, LIMITS, pace, self.clock, self.sleep)  # type: ignore[arg-type]


def test_a_good_one_takes_every_step_in_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    world = World()
    world.canary(Pace(60, 600)).run(plan(100))
    steps = [(each.shadow, each.weight) for each in world.splits]
    assert steps == [(0, 0), (100, 0), (0, 1), (0, 10), (0, 50), (0, 100)]
    assert world.seconds == 5 * (SETTLE + 60)
    assert capsys.readouterr().out.count(": good") == 5


def test_a_step_waits_for_its_least_calls() -> None:
    world = World(calls=100)  # of which one a second is the canary's at 1 %
    world.canary(Pace(10, 600)).run(plan(100)[:2])
    assert world.seconds == (SETTLE + 10) + (SETTLE + 100 + STEADY - 1)


def test_patience_ends_where_there_are_too_few_calls() -> None:
    world = World(calls=100)
    with pytest.raises(
        RolledBack, match=r"weight 1 %.*the canary had 50 rankings of the 100 needed, patience has ended"
    ):
        world.canary(Pace(10, 50)).run(plan(100))


def test_one_that_errs_ends_within_seconds() -> None:
    world = World()
    world.error_ratio = 0.5
    with pytest.raises(RolledBack, match=r"shadow 100 %.*: errors 0.00% and 50.00% of the canary, beyond the limit"):
        world.canary(Pace(60, 600)).run(plan(100))
    assert world.seconds == SETTLE + 1


@pytest.mark.parametrize("settle, outcome", [(SETTLE, "good"), (1.0, "undecided")])
def test_late_times_of_the_step_before_are_not_this_step_s(settle: float, outcome: str) -> None:
    """The canary was slow before, and is not any more: so its slow calls would be seen in this step, up to 5 s late."""
    world = World()
    world.lag, world.slow = 5.0, {CANARY: 1000.0}
    world.splits.append(Split(shadow=100))
    world.sleep(10)
    world.slow = {}
    step = world.canary(Pace(10, 20, settle)).step
    if outcome == "good":
        step(Split(shadow=100), Side())
    else:
        with pytest.raises(RolledBack, match="p99"):
            step(Split(shadow=100), Side())


def test_what_is_good_once_is_looked_at_again() -> None:
    verdicts = iter([GOOD, GOOD, GOOD, GOOD, OPEN] * 3 + [GOOD] * 9)
    world = World()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("deploy.canary.run.judge", lambda *_, **__: [Finding(next(verdicts), "told")])
        world.canary(Pace(1, 600)).run(plan(100)[:1])
    assert world.seconds == SETTLE + 15 + STEADY


def test_what_may_be_chance_waits_for_patience() -> None:
    world = World()
    world.error_ratio = 0.015
    with pytest.raises(RolledBack, match=r"errors.*though not surely; patience has ended"):
        world.canary(Pace(10, 15)).run(plan(100))


def test_a_gateway_that_is_set_otherwise_ends_it() -> None:
    world = World()
    world.wrong = "set otherwise"
    with pytest.raises(AdminError, match="set otherwise"):
        world.canary(Pace(10, 20)).run(plan(100))


def test_calls_without_an_answer_are_errors_and_those_in_flight_are_not() -> None:
    key = [(GATEWAY, CANARY, what, "server") for what in ("rq_total", "rq_success", "rq_error", "rq_active")]
    before = Counter(dict(zip(key, (100, 90, 0, 10), strict=True)))
    after = Counter(dict(zip(key, (200, 150, 5, 20), strict=True)))
    found = side(before, after, CANARY)  # 100 began, 10 of before had been in flight; 20 still are
    assert (found.good, found.errors) == (60, 5 + 25)


def test_calls_that_ended_without_an_answer_are_lost_also_where_none_is_in_flight_any_more() -> None:
    key = [(GATEWAY, CANARY, what, "server") for what in ("rq_total", "rq_success", "rq_error", "rq_active")]
    before = Counter(dict(zip(key, (100, 90, 0, 10), strict=True)))
    after = Counter(dict(zip(key, (100, 90, 0, 0), strict=True)))
    nothing: Counts = Counter()
    assert side(before, after, CANARY).errors == 10
    assert side(before + nothing, after + nothing, CANARY).errors == 10, "`+` drops what is 0"


def test_a_server_that_was_restarted_counts_from_nothing() -> None:
    key = (GATEWAY, STABLE, ("scores", "model", "0.10"), "server")
    assert side(Counter({key: 100}), Counter({key: 30}), STABLE).scores == {("model", "0.10"): 30}


@pytest.mark.parametrize(
    "words",
    [
        ["--stable-metrics=a:1"],
        ["--stable-metrics=a:1", "--canary-metrics=b:1", "--shadow=0"],
        ["--stable-metrics=a:1", "--canary-metrics=b:1", "--least-calls=0"],
        ["--stable-metrics=a:1", "--canary-metrics=b:1", "--p99=nan"],
        ["--stable-metrics=a:1", "--canary-metrics=b:1", "--patience=5"],
        ["--admin=9901"],
    ],
)
def test_wrong_options_are_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert ended.value.code == 2


def test_without_a_gateway_it_does_not_begin(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--admin=127.0.0.1:1", "--stable-metrics=127.0.0.1:1", "--canary-metrics=127.0.0.1:1"]) == 2
    assert "not begun: the gateway with admin port 127.0.0.1:1 does not answer" in capsys.readouterr().err
