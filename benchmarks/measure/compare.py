"""Compares a result with an earlier one: what became worse beyond what chance explains.

Machines are shared and noisy. So a figure is taken relative to the ceiling that its own run measured, where both runs
have one: throughput / its round's ceiling, latency x the mean ceiling. A machine that is slower then changes nothing.

One rule decides for every figure. It is new / earlier, with a 95 % interval of DRAWS bootstrap draws (seeded), and it
is worse if the whole interval is worse by more than MARGIN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import BenchmarkError
from benchmarks.measure import schema
from benchmarks.measure.schema import ModelResult, OpenStep, SaturationResult, Step, WorkloadInfo

# Extra margin on top of the interval, which covers only what varied within the runs: two runs of the same server were
# seen to differ by more (docs/benchmarks.md).
MARGIN = 0.1
DRAWS = 2000
INTERVAL = (2.5, 97.5)  # percentiles of the draws: 95 %
# Open loops up to this share of saturation decide. Above it ten seconds hold a few long queues, not hundreds of
# independent requests: of a simulated server (two workers, 15 to 100 requests a second, its speed 10 or 20 % off from
# second to second) two runs alike differed by more than 5 % in 13 to 47 % of the p50s at 0.9 and 2 to 12 % at 0.7.
STEADY = 0.5
# Requests that must be slower than a percentile for it to decide. With fewer, all of a run's requests may by chance be
# faster than the server's true percentile (more often than in 2.5 % of runs), and an interval has no upper end.
BEYOND = 4
SHORTEST = 0.05  # ms; what is shorter was rounded to 0.0
# A figure, and what it was in each draw: [1 + DRAWS].
Draws = NDArray[np.float64]


@dataclass(frozen=True)
class Change:
    """A figure, new / earlier, with its 95 % interval: 1 is no change, infinite where nothing was answered any more."""

    name: str
    ratio: float
    low: float
    high: float
    more_is_better: bool = False  # true of throughput, false of latency and failures
    decides: bool = True  # whether it can be a regression; otherwise it is only shown

    @property
    def worse(self) -> bool:
        """Whether the whole interval is worse by more than MARGIN."""
        return self.high < 1 - MARGIN if self.more_is_better else self.low > 1 + MARGIN

    @property
    def regressed(self) -> bool:
        """Whether it is worse, and that is certain enough to count."""
        return self.worse and self.decides

    def __str__(self) -> str:
        verdict = "  WORSE" if self.regressed else "  worse, but too uncertain to count" if self.worse else ""
        if math.isinf(self.ratio):
            return f"{self.name}: nothing was answered{verdict}"
        return f"{self.name}: x {self.ratio:.2f} ({self.low:.2f} to {self.high:.2f}){verdict}"


@dataclass(frozen=True)
class ModelChange:
    """One model in two results."""

    model: str
    normalised: bool = False  # whether its figures are relative to ceilings
    changes: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()  # what was left out
    missing: str | None = None  # why the new result has no figures of it

    @property
    def regressed(self) -> bool:
        """Whether it is missing, or a figure regressed."""
        return self.missing is not None or any(change.regressed for change in self.changes)

    def lines(self) -> Iterator[str]:
        """For the screen."""
        basis = "relative to the ceiling of the same run" if self.normalised else "not relative to a ceiling"
        yield f"{self.model}: {basis if self.missing is None else f'MISSING ({self.missing})'}"
        yield from (f"    {line}" for line in (*self.changes, *self.notes))


def regressed_models(changes: Sequence[ModelChange]) -> list[str]:
    """The models that regressed."""
    return [change.model for change in changes if change.regressed]


def show_changes(earlier: SaturationResult, result: SaturationResult, changes: Sequence[ModelChange]) -> str:
    """What `compare_results` found, for the screen."""
    was, now = earlier.environment, result.environment
    lines = [f"compared with {was.time} (commit {was.commit}): new / earlier, 95 % intervals"]
    if was.machine.processors != now.machine.processors:
        lines.append(f"another machine: {now.machine.processors}; earlier {was.machine.processors}")
    if new := sorted(set(result.models) - set(earlier.models)):
        lines.append(f"not in the earlier result: {', '.join(new)}")
    lines += [line for change in changes for line in change.lines()]
    worse = ", ".join(regressed_models(changes)) or "nothing"
    return "\n".join([*lines, f"regressed (worse by more than {MARGIN:.0%}, or missing): {worse}"])


def check_comparable(earlier: SaturationResult, workload: WorkloadInfo, path: Path) -> None:
    """Raises BenchmarkError, with the reason, unless a result of this workload can be compared with an earlier one."""
    lacking = [name for name, found in earlier.models.items() if found.failure is None and not has_figures(found)]
    if lacking or not earlier.models:
        raise BenchmarkError(f"{path} has no figures of {', '.join(lacking) or 'any model'}; measure again")
    differ = []
    pairs: list[tuple[object, object]] = [(earlier.workload, workload)]
    if earlier.workload.sent and workload.sent:  # known of a server that was started here
        pairs.append((earlier.workload.sent, workload.sent))
    for was, now in pairs:
        for name in vars(was):
            old, new = getattr(was, name), getattr(now, name)
            if name == "data":
                old, new = Path(old).name, Path(new).name
            if name not in ("sent", "tokens") and old != new:
                differ.append(f"{name} {new}, earlier {old}")
    if differ:
        raise BenchmarkError(
            f"{path} is of another workload ({'; '.join(differ)}); "
            "measure with the same --data, --candidates and --texts, or compare with another result"
        )


def has_figures(found: ModelResult) -> bool:
    """Whether a model's saturation was measured, with a ceiling for every round if it has one."""
    has_ceilings = found.ceiling is None or all(one.left_of_ceiling for one in found.rounds)
    return has_ceilings and found.saturated is not None and found.saturated.pairs_per_second > 0


def compare_results(earlier: SaturationResult, result: SaturationResult) -> list[ModelChange]:
    """Compares every model of an earlier result with the new one; both passed `check_comparable`.

    Neighbouring requests are not independent, because they wait in one queue, and a result keeps their latencies
    without their order. So the interval of a latency is narrower than it should be: steps above STEADY, and percentiles
    with fewer than BEYOND requests beyond them, are shown and do not decide.
    """
    changes = []
    for model, old in earlier.models.items():
        new = result.models.get(model)
        if old.failure:
            changes.append(ModelChange(model, notes=(f"left out, without earlier figures: {old.failure}",)))
        elif new is None or new.saturated is None:
            reason = "the new result lacks it" if new is None else new.failure or "client-bound"
            changes.append(ModelChange(model, missing=reason))
        else:
            changes.append(compare_model(model, old, new))
    return changes


def compare_model(model: str, old: ModelResult, new: ModelResult) -> ModelChange:
    """One model that has figures in both results."""
    chance = np.random.default_rng(0)
    normalised = old.ceiling is not None and new.ceiling is not None
    ceilings = [
        draw_ratio(found.ceiling.rounds, None, chance) if normalised and found.ceiling else np.ones(1 + DRAWS)
        for found in (old, new)
    ]
    rounds = [[one for one in found.rounds if one.step.server_bound] for found in (old, new)]
    throughput = [
        draw_ratio(
            [one.step.pairs_per_second for one in found],
            [one.left_of_ceiling or math.nan for one in found] if normalised else None,
            chance,
        )
        for found in rounds
    ]
    enough = min(map(len, rounds)) > 1
    changes = [divide("saturated pairs/s", *throughput, more_is_better=True, decides=enough)]
    before, now = ([one.step for one in found] for found in rounds)
    changes += compare_failures("at saturation", before, now, True, chance)
    notes = [
        f"left out, client-bound{when}: {step.load}{where}"
        for found, when in ((old, " in the earlier result"), (new, ""))
        for steps, where in ((found.rounds, " at saturation"), (found.open, ""))
        for step in (each.step for each in steps)
        if not step.server_bound
    ]
    shares = {each.share: each for each in new.open}
    for was in old.open:
        name, other = f"at {was.share:.0%} of saturation", shares.get(was.share)
        if other is None:
            notes.append(f"left out, not in the new result: {name}")
        elif not was.step.latencies_ms:
            notes.append(f"left out, nothing was answered in the earlier result: {name}")
        elif was.step.server_bound and other.step.server_bound:
            changes += compare_latencies(name, was, other, ceilings, chance)
            changes += compare_failures(name, [was.step], [other.step], was.share <= STEADY, chance)
    return ModelChange(model, normalised, tuple(changes), tuple(notes))


def compare_latencies(
    name: str, old: OpenStep, new: OpenStep, ceilings: Sequence[Draws], chance: np.random.Generator
) -> Iterator[Change]:
    """The latencies of two open loops at the same share of saturation."""
    latencies = [each.step.latencies_ms for each in (old, new)]
    if not latencies[1]:
        yield Change(name, math.inf, math.inf, math.inf)
        return
    for percentile, percent in zip(schema.percentile_names(), schema.PERCENTILES, strict=True):
        was, now = (
            draw_percentile(each, percent, chance) * ceiling for each, ceiling in zip(latencies, ceilings, strict=True)
        )
        beyond = (1 - percent / 100) * min(map(len, latencies))
        decides = old.share <= STEADY and beyond >= BEYOND
        yield divide(f"{percentile} ms {name}", was, now, more_is_better=False, decides=decides)


def compare_failures(
    name: str, old: Sequence[Step], new: Sequence[Step], decides: bool, chance: np.random.Generator
) -> Iterator[Change]:
    """The share of requests that failed, if any does in the new result."""
    (failed_before, all_before), (failed, all_now) = (
        (sum(step.errors for step in steps), sum(step.requests for step in steps)) for steps in (old, new)
    )
    if failed:
        was, now = draw_share(failed_before, all_before, chance), draw_share(failed, all_now, chance)
        counts = f"{failed} of {all_now} requests, earlier {failed_before} of {all_before}"
        yield divide(f"failures {name} ({counts})", was, now, more_is_better=False, decides=decides)


def draw_ratio(values: Sequence[float], ceilings: Sequence[float] | None, chance: np.random.Generator) -> Draws:
    """The sum of rounds, divided by each round's ceiling (None: by the count), and the same of draws of these rounds.

    A draw has one round fewer than there are: so the draws vary as much as the estimate does, and not less.
    """
    above = np.array(values, np.float64)
    below = np.ones_like(above) if ceilings is None else np.array(ceilings, np.float64)
    places = chance.integers(len(above), size=(DRAWS, max(1, len(above) - 1)))
    return np.append(above.sum() / below.sum(), above[places].sum(axis=1) / below[places].sum(axis=1))


def draw_percentile(latencies: Sequence[float], percent: float, chance: np.random.Generator) -> Draws:
    """A percentile (nearest rank) of latencies, and of draws of as many of them.

    The k-th smallest of n draws from n values is the value at the k-th smallest of n places drawn from [0, 1], which is
    distributed as Beta(k, n + 1 - k). So one number is drawn instead of n, however long the run was.
    """
    count = len(latencies)
    rank = max(1, math.ceil(percent / 100 * count))
    places = np.append((rank - 0.5) / count, chance.beta(rank, count + 1 - rank, DRAWS))
    found = np.sort(np.array(latencies, np.float64))[np.minimum(places * count, count - 1).astype(np.int64)]
    return np.asarray(np.maximum(found, SHORTEST))


def draw_share(failed: int, requests: int, chance: np.random.Generator) -> Draws:
    """The share of requests that fail, if each fails or not by itself, and draws of it (from a uniform prior)."""
    likely = 1 + failed, 1 + requests - failed
    return np.append(likely[0] / sum(likely), chance.beta(*likely, DRAWS))


def divide(name: str, old: Draws, new: Draws, *, more_is_better: bool, decides: bool) -> Change:
    """New / earlier of a figure and of its draws."""
    drawn = new[1:][old[1:] > 0] / old[1:][old[1:] > 0]  # of a slow server a draw may be of rounds without an answer
    low, high = np.percentile(drawn, INTERVAL)
    return Change(name, float(new[0] / old[0]), float(low), float(high), more_is_better, decides)
