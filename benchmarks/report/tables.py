"""Tables for the screen and for the page, each from one list of columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.measure.recording import CLASSES
from benchmarks.measure.schema import Latency, ModelResult, Slo, Step, percentile_names

Item = TypeVar("Item")
Columns = Mapping[str, Callable[[Item], str]]
NONE = "-"
CLIENT_BOUND = "client-bound"


@dataclass(frozen=True)
class Table:
    """Heads and rows of cells. `marked` are the rows that stand out."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: frozenset[int] = frozenset()

    def text(self) -> str:
        """Lines of columns: numbers to the right, a first or last column of words to the left."""
        cells = [self.heads, *self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        last = len(widths) - 1

        def align(place: int, cell: str) -> str:
            words = place in (0, last) and not any(row[place][:1].isdigit() for row in self.rows)
            return cell.ljust(widths[place]) if words else cell.rjust(widths[place])

        return "\n".join("  ".join(align(*each) for each in enumerate(row)).rstrip() for row in cells)


def make_table(columns: Columns[Item], items: Sequence[Item], marked: Callable[[Item], bool] | None = None) -> Table:
    """A row for each item, a cell for each column."""
    rows = tuple(tuple(cell(item) for cell in columns.values()) for item in items)
    stand_out = frozenset(place for place, item in enumerate(items) if marked and marked(item))
    return Table(tuple(columns), rows, stand_out)


def number(value: float | None, digits: int = 0) -> str:
    """A number, or none."""
    return NONE if value is None else f"{value:.{digits}f}"


def percentile_columns(latency: Callable[[Item], Latency | None], digits: int = 1) -> Columns[Item]:
    """A column for each percentile, in milliseconds."""

    def column(name: str) -> Callable[[Item], str]:
        def cell(item: Item) -> str:
            found = latency(item)
            return number(found[name] if found else None, digits)

        return cell

    return {f"{name} ms": column(name) for name in percentile_names()}


def joined_percentiles(latency: Latency | None) -> str:
    """p50 / p95 / p99 in one cell."""
    return NONE if latency is None else " / ".join(f"{latency[name]:.0f}" for name in percentile_names())


def step_table(steps: Sequence[Step], slo: Slo | None = None, notes: Sequence[str] = ()) -> Table:
    """Steps: load, throughput, latency, where the time went, and in the last column what else to know.

    Args:
        steps: the steps.
        slo: an objective; whether each step of an open loop meets it is noted.
        notes: a note for each of the first steps, before its others.
    """
    first = dict(zip(map(id, steps), notes, strict=False))

    def bound(cell: Callable[[Step], str]) -> Callable[[Step], str]:
        return lambda step: cell(step) if step.server_bound else NONE

    def split(step: Step) -> str:
        time = step.time_split
        return f"{time.queue:.0f} / {time.compute:.0f} / {time.rest:.0f}" if time else NONE

    def note(step: Step) -> str:
        found = [first.get(id(step), ""), *(f"{count} x {kind}" for kind, count in step.error_kinds.items())]
        found.append(f"{CLIENT_BOUND}: {step.client_bound}" if step.client_bound else "")
        if slo and step.rate:
            found.append(f"{slo} {'holds' if slo.holds(step) else 'does not hold'}")
        return "; ".join(filter(None, found))

    columns: dict[str, Callable[[Step], str]] = {
        "load": lambda step: step.load,
        "requests": lambda step: str(step.requests),
        "errors": lambda step: str(step.errors),
        "requests/s": bound(lambda step: number(step.requests_per_second, 1)),
        "pairs/s": bound(lambda step: number(step.pairs_per_second)),
        **percentile_columns(lambda step: step.shown_latency),
    }
    if any(step.time_split for step in steps):
        columns["queue / compute / rest ms"] = bound(split)
    if any(step.requests_per_execution for step in steps):
        columns["merged"] = bound(lambda step: number(step.requests_per_execution, 1))
    if any(step.tokens_per_chunk for step in steps):
        columns["tokens a chunk"] = bound(lambda step: number(step.tokens_per_chunk))
    return make_table(columns | {"": note}, steps, lambda step: not step.server_bound)


def all_steps(found: ModelResult) -> list[Step]:
    """A model's steps in the order of measurement."""
    rounds, opened = (each.step for each in found.rounds), (each.step for each in found.open)
    return [*found.closed, *rounds, *opened, *(found.slo.steps if found.slo else ())]


def every_step_table(found: ModelResult) -> Table:
    """All steps of a model."""
    saturated = [
        "at saturation" + (f"; left of the ceiling: {each.left_of_ceiling:.0f}" if each.left_of_ceiling else "")
        for each in found.rounds
    ]
    return step_table(all_steps(found), found.slo.slo if found.slo else None, [*[""] * len(found.closed), *saturated])


def size_table(found: ModelResult) -> Table:
    """A model's latencies by the size of a request, alone (one user) and in the open loop."""
    steps = found.alone_and_open

    def cells(name: str, of: Callable[[Step], Latency | None]) -> tuple[str, ...]:
        return name, *(joined_percentiles(of(step) if step.server_bound else None) for step in steps), ""

    rows = [cells(size, lambda step, size=size: step.latency_by_size[size]) for size in CLASSES]  # type: ignore[misc]
    heads = ["one user" if step.users else step.load for step in steps]
    return Table(("size", *heads, ""), (*rows, cells("all", lambda step: step.latency)))


def summary_table(models: Mapping[str, ModelResult]) -> Table:
    """Saturation and the ceiling, a row for each model; the last cell is words."""

    def ceiling(found: ModelResult) -> str:
        return number(found.ceiling.pairs_per_second if found.ceiling else None)

    def share(found: ModelResult) -> str:
        share = found.saturated.share_of_ceiling if found.saturated else None
        return NONE if share is None else f"{share:.0%}"

    def notes(name: str, found: ModelResult) -> str:
        fastest = f"fastest in process: {found.ceiling.layout}" if found.ceiling else ""
        return "; ".join(
            str(note) for note in (found.failure, fastest, found.slo, speedup_over_first(models, name)) if note
        )

    def saturated(attribute: str, digits: int = 0) -> Callable[[tuple[str, ModelResult]], str]:
        return lambda item: number(getattr(item[1].saturated, attribute, None), digits)

    columns: dict[str, Callable[[tuple[str, ModelResult]], str]] = {
        "model": lambda item: item[0],
        "version": lambda item: item[1].version,
        "users": saturated("users"),
        "requests/s": saturated("requests_per_second", 1),
        "pairs/s": saturated("pairs_per_second"),
        "ceiling, pairs/s": lambda item: ceiling(item[1]),
        "served": lambda item: share(item[1]),
        "": lambda item: notes(*item),
    }
    return make_table(columns, list(models.items()), lambda item: item[1].failure is not None)


def speedup_over_first(models: Mapping[str, ModelResult], name: str) -> str:
    """Speedup over the first model, from rounds with figures of both; empty for the first, and without such rounds."""
    first = next(iter(models))
    rounds = [
        (own.step.pairs_per_second, other.step.pairs_per_second)
        for own, other in zip(models[name].rounds, models[first].rounds, strict=False)
        if own.step.server_bound and other.step.server_bound and other.step.pairs_per_second
    ]
    if name == first or not rounds:
        return ""
    ratio = sum(own for own, _ in rounds) / sum(other for _, other in rounds)
    each = ", ".join(f"{own / other:.2f}" for own, other in rounds)
    return f"{ratio:.2f} times {first} (round by round: {each})"
