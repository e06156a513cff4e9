"""A climb's result beside a former one: what became slower beyond what chance explains.

Machines are shared and noisy. So a figure is taken relative to the ceiling that its own run measured, where both runs
have one: throughput / the ceiling beside it, latency x the mean ceiling. A machine that is slower then changes nothing.

Not known here: how a result is measured, and how it is shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from benchmarks.load_gen.target import LoadError
from benchmarks.measure.stats import is_sound, load_name, processors

SCHEMA = 3
# What a result that climb did not write, or not wholly, makes of a comparison with itself.
BROKEN = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, StopIteration)
# A figure may be worse by so much beside its interval, which is of what varied within the runs: two runs alike were
# seen to differ by more (docs/benchmarks.md).
MARGIN = 0.1
SATURATED = "saturated pairs/s"
DRAWS = 2000
INTERVAL = (2.5, 97.5)  # percentiles of the draws: 95 %
FAILED = ("errors", "requests")
SENT = ("requests", "pairs", "in_closed_loops")  # known of a server that was started here
PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
# Open loops up to this share of saturation decide. Above it ten seconds hold a few long queues, not hundreds of
# independent requests: of a simulated server (two workers, 15 to 100 requests a second, its speed 10 or 20 % off from
# second to second) two runs alike differed by more than 5 % in 13 to 47 % of the p50s at 0.9 and 2 to 12 % at 0.7.
STEADY = 0.5
# Requests that must be slower than a percentile for it to decide. With fewer, all of a run's requests may by chance be
# faster than the server's true percentile (more often than in 2.5 % of runs), and an interval has no upper end.
BEYOND = 4
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """A figure, new / former, and its 95 % interval: of throughput Student's, of latencies the bootstrap's.

    Infinite where nothing was answered any more.

    Attributes:
        name: of the figure.
        ratio, low, high: 1 is no change.
        more_is_better: true of throughput, false of latency.
        decides: whether it can be a regression. Else it is only shown.
    """

    name: str
    ratio: float
    low: float
    high: float
    more_is_better: bool = False
    decides: bool = True

    @property
    def worse(self) -> bool:
        """Whether the whole interval is worse by more than MARGIN."""
        return self.high < 1 - MARGIN if self.more_is_better else self.low > 1 + MARGIN

    def __str__(self) -> str:
        if math.isinf(self.ratio):
            return f"{self.name}: nothing was answered  WORSE"
        verdict = "" if not self.worse else "  WORSE" if self.decides else "  worse, but too uncertain to decide"
        return f"{self.name}: x {self.ratio:.2f} ({self.low:.2f} to {self.high:.2f}){verdict}"


@dataclass(frozen=True)
class Comparison:
    """One model in two results.

    Attributes:
        model: its name.
        runs: what the two results are, the same for every model.
        missing: whether the new result lacks it.
        normalised: whether its figures are relative to ceilings.
        ratios: its figures.
        failing: whether more requests fail than formerly, beyond what chance explains.
        notes: what was left out, and what else to know.
    """

    model: str
    runs: tuple[str, ...]
    missing: bool = False
    normalised: bool = False
    ratios: list[Ratio] = field(default_factory=list)
    failing: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def regressed(self) -> bool:
        """Whether it is missing or failing, or one of its figures is worse and decides."""
        return self.missing or self.failing or any(ratio.worse and ratio.decides for ratio in self.ratios)


def read_result(path: Path) -> dict[str, Any]:
    """A result that climb wrote.

    Raises:
        LoadError: it is missing, broken, of something else, or of another schema.
    """
    hint = "give a JSON file that `python -m benchmarks saturate` wrote"
    try:
        result = json.loads(path.read_bytes())
    except OSError as exc:
        raise LoadError(f"{path} cannot be read ({exc.strerror}); {hint}") from exc
    except (ValueError, RecursionError) as exc:
        raise LoadError(f"{path} is not JSON ({exc}); {hint}") from exc
    if not isinstance(result, dict) or "schema" not in result:
        raise LoadError(f"{path} is no result of a climb: it has no schema; {hint}")
    if result["schema"] != SCHEMA:
        raise LoadError(
            f"{path} has schema {result['schema']!r}, and only {SCHEMA} can be compared; measure that commit again"
        )
    try:
        if not result["complete"]:
            raise LoadError(f"{path} is no whole result of a climb: it was ended early; measure again")
        if not compare(result, result):
            raise LoadError(f"{path} is no whole result of a climb: no model is in it; {hint}")
    except BROKEN as exc:  # now, and not when minutes of measuring are behind
        raise LoadError(f"{path} is no whole result of a climb ({type(exc).__name__}: {exc}); {hint}") from exc
    return result


def check_workload(former: dict[str, Any], result: dict[str, Any]) -> None:
    """Raises LoadError, with the difference, unless both results are of the same requests."""
    old, new = ({**each["workload"], "data": Path(each["workload"]["data"]).name} for each in (former, result))
    names = ["data", "candidates", "texts", *(name for name in SENT if name in old and name in new)]
    if differ := [f"{name} {new[name]}, formerly {old[name]}" for name in names if new[name] != old[name]]:
        raise LoadError(
            f"the result of {former['time']} is of another workload ({'; '.join(differ)}); "
            "measure with the same --data, --candidates and --texts, or compare with another result"
        )


def compare(former: dict[str, Any], result: dict[str, Any]) -> list[Comparison]:
    """Every model of a former result beside the same in a new one.

    The interval of the throughput is `compare_rounds`'s; those of latencies are of DRAWS bootstrap draws (seeded) of
    latencies_ms and of the ceiling's rounds. Neighbouring requests are not independent (they wait in one queue), and a
    result keeps their latencies without their order, so that no blocks of neighbours can be drawn: an interval of a
    latency is narrower than it should be. So steps above STEADY, and percentiles with fewer than BEYOND requests beyond
    them, are shown and do not decide.

    Args:
        former, result: as `read_result` returns them.

    Raises:
        LoadError: they are of different workloads.
    """
    check_workload(former, result)
    runs = [f"compared with {former['time']} (commit {former.get('commit')}): new / former, 95 % intervals"]
    machines = [processors(each["machine"]) for each in (result, former)]
    if machines[0] != machines[1]:
        runs.append(f"another machine: {machines[0]}; formerly {machines[1]}")
    if new := sorted(set(result["models"]) - set(former["models"])):
        runs.append(f"not in the former result: {', '.join(new)}")
    return [
        compare_model(model, tuple(runs), found, result["models"][model])
        if model in result["models"]
        else Comparison(model, tuple(runs), missing=True)
        for model, found in former["models"].items()
    ]


def compare_model(model: str, runs: tuple[str, ...], old: dict[str, Any], new: dict[str, Any]) -> Comparison:
    """One model that both results have."""
    chance = np.random.default_rng(0)
    normalised = bool(old.get("ceiling") and new.get("ceiling"))
    ceilings = [means(each["ceiling"]["rounds"], chance) if normalised else np.ones(DRAWS + 1) for each in (old, new)]
    ratios = [compare_rounds(old, new, normalised)]
    limited = [
        f"left out, since the generator was the limit{when}: {load_name(step)}{which}"
        for each, when in ((old, " formerly"), (new, ""))
        for steps, which in ((each["rounds"], " at saturation"), (each["open"], ""))
        for step in steps
        if not is_sound(step)
    ]
    totals = [{name: sum(step[name] for step in each["rounds"]) for name in FAILED} for each in (old, new)]
    notes, failing = compare_errors("at saturation", totals[0], totals[1], True, chance)
    shares = {step["share"]: step for step in new["open"]}
    for step in old["open"]:
        name, other = f"at {step['share']:.0%} of saturation", shares.get(step["share"])
        if other is None:
            notes.append(f"left out, since the new result lacks it: {name}")
        elif not step["latencies_ms"]:
            notes.append(f"left out, since nothing was answered formerly: {name}")
        elif is_sound(step) and is_sound(other):
            ratios += compare_latencies(name, (step, other), ceilings, chance)
            more, worse = compare_errors(name, step, other, step["share"] <= STEADY, chance)
            notes += more
            failing |= worse
    return Comparison(model, runs, False, normalised, ratios, failing, limited + notes)


def compare_latencies(
    name: str, steps: tuple[dict[str, Any], dict[str, Any]], ceilings: list[FloatArray], chance: np.random.Generator
) -> list[Ratio]:
    """The latencies of a former and a new open loop at the same share of saturation."""
    if not steps[1]["latencies_ms"]:
        return [Ratio(name, math.inf, math.inf, math.inf)]
    ratios = []
    for percentile, share in PERCENTILES.items():
        old, new = (percentiles(step["latencies_ms"], share, chance) for step in steps)
        beyond = (1 - share) * min(len(step["latencies_ms"]) for step in steps)
        decides = steps[0]["share"] <= STEADY and beyond >= BEYOND
        ratios.append(divide(f"{percentile} ms {name}", old * ceilings[0], new * ceilings[1], decides=decides))
    return ratios


def compare_errors(
    name: str, old: dict[str, Any], new: dict[str, Any], decides: bool, chance: np.random.Generator
) -> tuple[list[str], bool]:
    """What to say of the requests that failed, if any, and whether that is worse."""
    worse = decides and more_errors(old, new, chance)
    failed = [f"{each['errors']} of {each['requests']} requests" for each in (new, old)]
    told = f"{name} {failed[0]} failed, formerly {failed[1]}{'  WORSE' * worse}"
    return [told] if new["errors"] else [], worse


def more_errors(old: dict[str, Any], new: dict[str, Any], chance: np.random.Generator) -> bool:
    """Whether a larger share of requests failed than formerly, 97.5 % sure, as if each failed or not by itself."""
    shares = [chance.beta(1 + each["errors"], 1 + each["requests"] - each["errors"], DRAWS) for each in (old, new)]
    return bool(np.percentile(shares[1] - shares[0], INTERVAL[0]) > 0)


def compare_rounds(old: dict[str, Any], new: dict[str, Any], normalised: bool) -> Ratio:
    """The throughput at saturation: of all rounds together, relative to what was left of the ceiling beside them.

    The interval is Student's, of how much the rounds of a run differ among themselves, in both runs; so it knows what a
    machine does within minutes. Of one round each there is none, and nothing is decided. Raises ValueError without any.
    """
    total, counts, errors = [], [], 0.0
    for found in (old, new):
        rounds = [step for step in found["rounds"] if is_sound(step)]
        if not rounds:
            raise ValueError("no round has figures of the server")
        left = np.array([step["left_of_ceiling"] if normalised else 1.0 for step in rounds])
        served = np.array([step["pairs_per_s"] for step in rounds])
        total.append(served.sum() / left.sum())
        errors += float((((served / left) / (served / left).mean() - 1) ** 2).sum())
        counts.append(len(rounds))
    ratio, freedom = float(total[1] / total[0]), sum(counts) - 2
    if not freedom:
        return Ratio(SATURATED, ratio, 0.0, math.inf, more_is_better=True, decides=False)
    spread = math.sqrt(errors / freedom * sum(1 / count for count in counts))
    factor = math.exp(t.ppf(INTERVAL[1] / 100, freedom) * spread)
    return Ratio(SATURATED, ratio, ratio / factor, ratio * factor, more_is_better=True)


def means(values: Sequence[float], chance: np.random.Generator) -> FloatArray:
    """The mean of values, and of each draw of as many of them: float64 [1 + DRAWS]."""
    if not values:
        raise ValueError("no value of which to take the mean")
    drawn = chance.choice(np.array(values, np.float64), (DRAWS, len(values)))
    return np.append(np.mean(values), drawn.mean(axis=1))


def percentiles(latencies: Sequence[float], share: float, chance: np.random.Generator) -> FloatArray:
    """A percentile (nearest rank) of latencies, and of each draw of as many of them: float64 [1 + DRAWS].

    The k-th smallest of n draws from n values is the value at the k-th smallest of n places drawn from [0, 1], which is
    distributed as Beta(k, n + 1 - k). So one number is drawn instead of n, however long the run was.
    """
    count = len(latencies)
    rank = max(1, math.ceil(share * count))
    places = np.append((rank - 0.5) / count, chance.beta(rank, count + 1 - rank, DRAWS))
    found = np.sort(np.array(latencies, np.float64))[np.minimum(places * count, count - 1).astype(np.int64)]
    return np.asarray(np.maximum(found, 0.05))  # what is shorter was rounded to 0.0 ms


def divide(name: str, old: FloatArray, new: FloatArray, decides: bool) -> Ratio:
    """New / former of a figure and of its draws, [1 + DRAWS] each."""
    drawn = new[1:][old[1:] > 0] / old[1:][old[1:] > 0]  # of a slow server a draw may be of seconds without an answer
    low, high = np.percentile(drawn, INTERVAL)
    return Ratio(name, float(new[0] / old[0]), float(low), float(high), decides=decides)


def verdicts(comparisons: Sequence[Comparison]) -> tuple[list[str], bool]:
    """Lines for the screen, and whether anything regressed."""
    lines = list(dict.fromkeys(line for comparison in comparisons for line in comparison.runs))
    for comparison in comparisons:
        basis = "relative to the ceiling of the same run" if comparison.normalised else "not relative to a ceiling"
        lines.append(f"{comparison.model}: {'MISSING in the new result' if comparison.missing else basis}")
        lines += [f"    {line}" for line in (*comparison.ratios, *comparison.notes)]
    worse = [comparison.model for comparison in comparisons if comparison.regressed]
    lines.append(f"regressed (worse by more than {MARGIN:.0%}, failing or missing): {', '.join(worse) or 'nothing'}")
    return lines, bool(worse)
