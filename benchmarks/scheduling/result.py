"""What was found of a scheduler, and whether it does what it is for: a table of figures, limits and verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.measure.recording import LARGEST, SMALL, Sample
from benchmarks.measure.schema import Environment, Latency, ServerInfo, Step
from benchmarks.measure.stats import throughput
from benchmarks.report.tables import CLIENT_BOUND, NONE, make_table, step_table

SHARE, EXCESS = 0.7, 5.0  # of saturation
DEADLINE = 1.0  # seconds, of a caller in overload
TYPICAL, TAIL = "p50", "p99"


@dataclass(frozen=True)
class Overload:
    """EXCESS times saturation."""

    step: Step
    requests_in_time: float  # answered within the deadline, a second
    pairs_in_time: float  # of these
    refusals: Latency | None  # milliseconds until an error said that the server is overloaded; None: there was none
    memory_before: float | None  # MB of the server's processes; None: a server elsewhere
    memory: tuple[float, ...]  # the same once a second

    @property
    def memory_growth(self) -> float | None:
        """The last quarter of the seconds by the first one; None where it is not known."""
        if not self.memory:
            return None
        quarter = max(1, len(self.memory) // 4)
        return median(self.memory[-quarter:]) / median(self.memory[:quarter])


@dataclass(frozen=True)
class SavedWork:
    """The work of calls that were given up, in tokens."""

    calls: int
    tokens: int  # of all of them
    left: float  # that were not computed yet when they were given up, by an estimate (`phases.left_of`)
    dropped: float  # that were never computed


@dataclass(frozen=True)
class SchedulingResult:
    """The JSON document."""

    model: str
    server: ServerInfo
    environment: Environment
    alone: Step  # each request by itself
    saturated: Step
    shared: Step  # SHARE of saturation, at random moments
    given_up: Step  # saturation, some of the calls given up
    saved: SavedWork | None  # None: a server elsewhere, or one without such figures
    overload: Overload


@dataclass(frozen=True)
class Figure:
    """A row of the table.

    Attributes:
        name: what it is.
        value: None where it is not known.
        unit: `times`, `%` or `ms`.
        limit: what it is held against; None: it is only shown.
        most: whether the limit is the most that it may be; otherwise the least.
        note: what else to know.
        steps: those that it is taken from.
    """

    name: str
    value: float | None
    unit: str
    limit: float | None
    most: bool
    note: str
    steps: Sequence[Step]

    def show(self, value: float | None) -> str:
        """A value in words."""
        if value is None:
            return NONE
        return f"{value:.0%}" if self.unit == "%" else f"{value:.{0 if self.unit == 'ms' else 2}f} {self.unit}"

    @property
    def verdict(self) -> str:
        """Whether it holds, if that can be said."""
        if self.limit is None:
            return NONE
        if self.value is None:
            return "not known"
        if any(not step.server_bound for step in self.steps):
            return CLIENT_BOUND
        return "holds" if (self.value <= self.limit if self.most else self.value >= self.limit) else "does not hold"

    @property
    def shown_limit(self) -> str:
        """The limit in words."""
        return NONE if self.limit is None else f"{'at most' if self.most else 'at least'} {self.show(self.limit)}"


def in_time(samples: Sequence[Sample], seconds: int) -> tuple[float, float]:
    """Requests and pairs a second that were answered within the deadline, and before the phase ended."""
    answered = [
        (sample.intended_start + sample.latency, sample.pairs)
        for sample in samples
        if sample.error is None and sample.latency <= DEADLINE
    ]
    return throughput(sorted(each for each in answered if each[0] < seconds), seconds, None)


def judge(result: SchedulingResult) -> list[Figure]:
    """All figures, with what they must be."""
    saturated, shared, over = result.saturated, result.shared, result.overload
    at_share, in_excess = f"at {SHARE:.0%} of saturation", f"at {EXCESS:g} times saturation"

    def tail(size: str, by: str, limit: float) -> Figure:
        usual, found = result.alone.latency_by_size[size], shared.latency_by_size[size]
        ratio, note = None, ""
        if usual and found:
            ratio, note = found[TAIL] / usual[by], f"({found[TAIL]:.0f} ms by {usual[by]:.0f} ms)"
        return Figure(f"{size}: {TAIL} {at_share} by {by} alone", ratio, "times", limit, True, note, [shared])

    def goodput(name: str, value: float, best: float) -> Figure:
        note = f"({value:.1f} by {best:.1f} a second)"
        return Figure(f"{name} in time {in_excess}, of it", value / best, "%", 0.9, False, note, [saturated, over.step])

    everyone = shared.latency[TAIL] if shared.latency else None
    refusals = over.refusals[TAIL] if over.refusals else None
    kinds = ", ".join(f"{count} x {kind}" for kind, count in over.step.error_kinds.items())
    return [
        tail(SMALL, TYPICAL, 5.0),
        # The largest of these take several times as long as their median, also alone.
        tail(LARGEST, TAIL, 3.0),
        Figure(f"all: {TAIL} {at_share}", everyone, "ms", None, True, "", [shared]),
        goodput("requests", over.requests_in_time, saturated.requests_per_second),
        goodput("pairs", over.pairs_in_time, saturated.pairs_per_second),
        Figure(f"refusals: {TAIL} {in_excess}", refusals, "ms", 20.0, True, f"({kinds or 'none'})", [over.step]),
        judge_memory(over, f"memory {in_excess}: last quarter by first"),
        judge_work(result.saved, "work saved of calls given up, of what was left", result.given_up),
    ]


def judge_memory(over: Overload, name: str) -> Figure:
    """Whether the memory is flat."""
    note = ""
    if over.memory_before is not None and over.memory:
        note = f"({over.memory_before:.0f} MB before, {over.memory[0]:.0f} to {over.memory[-1]:.0f} MB)"
    return Figure(name, over.memory_growth, "times", 1.05, True, note, [over.step])


def judge_work(saved: SavedWork | None, name: str, step: Step) -> Figure:
    """Whether what was left to compute of calls that were given up is left uncomputed."""
    if not saved or not saved.left:
        return Figure(name, None, "%", 0.8, False, "", [step])
    note = f"({saved.dropped:.0f} of {saved.left:.0f} tokens, of {saved.calls} calls)"
    return Figure(name, saved.dropped / saved.left, "%", 0.8, False, note, [step])


def show(result: SchedulingResult) -> str:
    """The steps and the figures, for the screen."""
    steps = {
        "each request alone": result.alone,
        "saturation": result.saturated,
        f"open loop at {SHARE:.0%} of it": result.shared,
        "saturation, some given up": result.given_up,
        f"open loop at {EXCESS:g} times it": result.overload.step,
    }
    columns: dict[str, Callable[[Figure], str]] = {
        "figure": lambda figure: figure.name,
        "measured": lambda figure: figure.show(figure.value),
        "limit": lambda figure: figure.shown_limit,
        "verdict": lambda figure: figure.verdict,
        "": lambda figure: figure.note,
    }
    figures = make_table(columns, judge(result))
    return f"{step_table(list(steps.values()), notes=list(steps)).text()}\n\n{figures.text()}"
