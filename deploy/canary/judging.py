"""Whether the canary is as good as the stable release, from what both did in the same time.

Each figure is good, bad or open. Bad is what chance does not explain: not the figure itself is beyond its limit, but
its confidence bound (`SURE` standard errors, one in a thousand: it is looked at every second, so it must be strict).
Good is a figure within its limit: an estimate, which is no proof. What lies between is open, and more calls decide it.

What is not known here: which texts the calls had, and whether a drift is an improvement.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from release.expected import LEAST, population_stability_index

SURE = 3.0  # standard errors
SURE_CHI_SQUARE = 43.82  # the 99.9 % point of chi-square with 19 degrees of freedom: 20 bins of scores
GOOD, BAD, OPEN = "good", "bad", "open"


@dataclass(frozen=True)
class Side:
    """What a release did.

    Attributes:
        good: calls that were answered, or refused for the caller's mistake.
        errors: calls that failed by the server's, or ended without an answer.
        times: how many calls took so long: milliseconds, from and up to.
        scores: how many pairs had a score of so much, by model and `up_to`.
        refused: requests that a model did not answer, by the servers' own count. A broken model can look like a
            caller's mistake, which is no error above.
        answered: requests that it answered, by model, by the servers' own count.
    """

    good: int = 0
    errors: int = 0
    times: Mapping[tuple[float, float], int] = field(default_factory=dict)
    scores: Mapping[tuple[str, str], int] = field(default_factory=dict)
    refused: int = 0
    answered: Mapping[str, int] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        """All of them, those for a model's metadata, too."""
        return self.good + self.errors

    @property
    def asked(self) -> int:
        """Requests to rank."""
        return sum(self.answered.values()) + self.refused


@dataclass(frozen=True)
class Limits:
    """How much worse the canary may be, and how many calls are needed to see it."""

    errors: float
    p99: float
    drift: float
    least_calls: int


@dataclass(frozen=True)
class Finding:
    """One figure: `told` is how a line of the output says it."""

    verdict: str
    told: str


def judge(stable: Side, canary: Side, limits: Limits, *, same_calls: bool, passed: float) -> list[Finding]:
    """What is found of errors, refusals, times and scores.

    Args:
        same_calls: both had the very same calls, so that chance makes hardly a difference between their scores.
        passed: the share of the step's patience that has passed, above 0.
    """
    return [
        judge_errors("errors", (stable.errors, stable.calls), (canary.errors, canary.calls), limits),
        judge_errors("refused", (stable.refused, stable.asked), (canary.refused, canary.asked), limits),
        judge_times(stable, canary, limits),
        judge_scores(stable, canary, limits, same_calls=same_calls, passed=passed),
    ]


def judge_errors(name: str, stable: tuple[int, int], canary: tuple[int, int], limits: Limits) -> Finding:
    """By the difference of two ratios. Many errors are told after few calls.

    Args:
        stable: errors, and of how many calls; `canary` likewise.
    """
    before, ratio = (errors / of if of else 0.0 for errors, of in (stable, canary))
    told = f"{name} {before:.2%} and {ratio:.2%}"
    if not stable[1] or not canary[1]:
        return Finding(OPEN, told)
    if least_difference(stable, canary) > limits.errors:
        return Finding(BAD, told)
    if min(stable[1], canary[1]) < limits.least_calls or ratio - before > limits.errors:
        return Finding(OPEN, told)
    return Finding(GOOD, told)


def least_difference(stable: tuple[int, int], canary: tuple[int, int]) -> float:
    """The lower confidence bound of the difference of two ratios (Newcombe 1998, method 10)."""
    low, _ = wilson(*canary)
    _, high = wilson(*stable)
    before, ratio = stable[0] / stable[1], canary[0] / canary[1]
    return ratio - before - math.hypot(ratio - low, high - before)


def wilson(count: int, of: int) -> tuple[float, float]:
    """Wilson's confidence interval of a ratio."""
    ratio, square = count / of, SURE**2
    middle = (ratio + square / (2 * of)) / (1 + square / of)
    half = SURE * math.sqrt(ratio * (1 - ratio) / of + square / (4 * of**2)) / (1 + square / of)
    return max(0.0, min(ratio, middle - half)), min(1.0, max(ratio, middle + half))


def judge_times(stable: Side, canary: Side, limits: Limits) -> Finding:
    """By the ratio of the 99th percentiles; times below a millisecond count as one."""
    if not sum(stable.times.values()) or not sum(canary.times.values()):
        return Finding(OPEN, "p99 unknown")
    (_, usual, stable_high), (canary_low, seen, _) = p99(stable.times), p99(canary.times)
    told = f"p99 {usual:,.0f} and {seen:,.0f} ms"
    if min(stable.asked, canary.asked) < limits.least_calls:
        return Finding(OPEN, told)
    if canary_low > limits.p99 * stable_high:
        return Finding(BAD, told)
    return Finding(GOOD if seen <= limits.p99 * usual else OPEN, told)


def p99(times: Mapping[tuple[float, float], int]) -> tuple[float, float, float]:
    """The 99th percentile in milliseconds, between its confidence bounds.

    The bounds are order statistics (a rank is binomial). Too few calls have no upper one: it is the slowest then.
    """
    count = sum(times.values())
    error = SURE * math.sqrt(count * 0.99 * 0.01)
    low, middle, high = (at_rank(times, 0.99 * count + difference) for difference in (-error, 0.0, error))
    return max(1.0, low[0]), max(1.0, sum(middle) / 2), max(1.0, high[1])


def at_rank(times: Mapping[tuple[float, float], int], rank: float) -> tuple[float, float]:
    """The bucket of the call of this rank; the last one if there are fewer."""
    seen = 0
    for bucket, count in sorted(times.items()):
        seen += count
        if seen >= rank:
            return bucket
    return max(times)


def judge_scores(stable: Side, canary: Side, limits: Limits, *, same_calls: bool, passed: float) -> Finding:
    """By the population stability index of the model that drifted most beyond chance.

    With other calls, chance alone makes one: about chi-square times (1/n + 1/m). n and m are the model's requests, not
    pairs, since the pairs of a request resemble each other. With the same calls, only those count that one of them has
    yet to answer. A class counts as one request at least, on both sides: few leave some empty by chance, and that is
    much of an index, more than chi-square knows of. A model that is asked too rarely for this step is left out, and
    named.
    """
    models = sorted({model for model, _ in stable.scores} | {model for model, _ in canary.scores})
    rare = [model for model in models if is_rare(model, stable, canary, limits.least_calls, passed)]
    verdicts, tolds = [], []
    for model in models:
        if model not in rare:
            verdict, told = judge_model(model, stable, canary, limits, same_calls=same_calls)
            verdicts.append(verdict)
            tolds.append(told)
    if rare:
        tolds.append(f"without {', '.join(rare)}: asked too rarely")
    verdict = BAD if BAD in verdicts else OPEN if OPEN in verdicts or not verdicts else GOOD
    return Finding(verdict, "drift " + (", ".join(tolds) or "unknown: no scores"))


def is_rare(model: str, stable: Side, canary: Side, least_calls: int, passed: float) -> bool:
    """Whether a model has not so many requests yet, and is not sure to have them when patience ends.

    By the share that it has at the stable servers, and not by what the canary answered: it may have answered none.
    """
    asked, all_answered = stable.answered.get(model, 0), sum(stable.answered.values())
    if min(asked, canary.answered.get(model, 0)) >= least_calls:
        return False
    expected = asked * sum(canary.answered.values()) / all_answered if all_answered else 0.0
    return min(asked, expected) < (least_calls + SURE * math.sqrt(least_calls)) * passed


def judge_model(model: str, stable: Side, canary: Side, limits: Limits, *, same_calls: bool) -> tuple[str, str]:
    """One model's verdict, and how it is told."""
    calls = stable.answered.get(model, 0), canary.answered.get(model, 0)
    least = 1 / min(calls) if min(calls) else LEAST
    index = drift(by_bin(stable.scores, model), by_bin(canary.scores, model), least)
    if index is None:
        return OPEN, f"of {model} unknown: not both have scores"
    told = f"of {model} {index:.3f}"
    if min(calls) < limits.least_calls:
        return OPEN, told
    one, other = 1 / calls[0], 1 / calls[1]
    chance = SURE_CHI_SQUARE * (abs(one - other) if same_calls else one + other)
    if index - chance > limits.drift:
        return BAD, told
    if index <= limits.drift:
        return GOOD, told
    return OPEN, f"{told}, of which chance may make {chance:.3f}"


def by_bin(scores: Mapping[tuple[str, str], int], model: str) -> dict[str, int]:
    """One model's pairs by bin."""
    return {up_to: count for (name, up_to), count in scores.items() if name == model}


def drift(before: Mapping[str, int], after: Mapping[str, int], least: float = LEAST) -> float | None:
    """The population stability index of two histograms; None if one is empty.

    Args:
        least: what a share counts as at least.
    """
    if not sum(before.values()) or not sum(after.values()):
        return None
    return population_stability_index(before, after, max(LEAST, least))
