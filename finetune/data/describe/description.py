"""What a click log holds: lengths, click rates, groups, duplicates, users, times and features.

The log is read row by row and may be larger than memory: 24 bytes a row are kept, and a few numbers for each position,
topic and day.
"""

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np

from finetune.data.hashing import hash_text
from finetune.data.row import ClickRow

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
DAY = 24 * 3600
SHOWN = 20  # positions and topics in a table
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Rate:
    """Clicks of impressions."""

    clicks: float = 0.0
    impressions: float = 0.0

    def add(self, row: ClickRow) -> None:
        """Count a row."""
        self.clicks += row.clicks
        self.impressions += row.impressions

    @property
    def value(self) -> float:
        """The click rate, in 0..1."""
        return self.clicks / self.impressions


@dataclass(slots=True)
class Feature:
    """A feature's values, as they came."""

    rows: int = 0
    least: float = float("inf")
    most: float = float("-inf")
    mean: float = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.rows += 1
        self.least, self.most = min(self.least, value), max(self.most, value)
        self.mean += value / self.rows - self.mean / self.rows  # (two quotients: a difference could overflow)


@dataclass(slots=True)
class Description:
    """What was counted. Lengths are in words; `words` and `group_sizes` say how many rows or groups have a length."""

    rows: int = 0
    overall: Rate = field(default_factory=Rate)
    words: dict[str, Counter[int]] = field(default_factory=lambda: {"query": Counter(), "document": Counter()})
    group_sizes: Counter[int] = field(default_factory=Counter)
    duplicates: int = 0  # rows that repeat the group, query and document of another
    empty: Counter[str] = field(default_factory=Counter)  # rows with an empty "query" or "document"
    lacking: Counter[str] = field(default_factory=Counter)  # rows without "topic", "position", "user" or "time"
    users: int = 0
    positions: dict[int, Rate] = field(default_factory=lambda: defaultdict(Rate))
    topics: dict[str, Rate] = field(default_factory=lambda: defaultdict(Rate))
    days: dict[int, Rate] = field(default_factory=lambda: defaultdict(Rate))  # days since 1970, in UTC
    start: float | None = None  # seconds since 1970
    end: float | None = None
    features: dict[str, Feature] = field(default_factory=lambda: defaultdict(Feature))
    others: Counter[str] = field(default_factory=Counter)  # rows that have the key


@dataclass(frozen=True, slots=True)
class Table:
    """Figures under a title. The first cell of a row names it; `header` is empty where rows are names and values."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def __str__(self) -> str:
        """Lay it out for a screen."""
        cells = [self.header, *self.rows] if self.header else self.rows
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [self.title]
        for first, *others in cells:
            aligned = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
            lines.append("  ".join([f"  {first:<{widths[0]}}", *aligned]))
        return "\n".join(lines)


def describe(rows: Iterable[ClickRow]) -> Description:
    """Count everything, in one reading. Raises what reading the rows raises."""
    found = Description()
    groups, candidates, users = array("Q"), array("Q"), array("Q")
    for row in rows:
        found.rows += 1
        found.overall.add(row)
        groups.append(hash_text(row.group))
        candidates.append(hash_text(f"{len(row.group)} {len(row.query)} {row.group}{row.query}{row.document}"))
        for side, text in (("query", row.query), ("document", row.document)):
            found.words[side][len(text.split())] += 1
            found.empty[side] += not text.strip()
        for topic in row.topics:
            found.topics[topic].add(row)
        if row.position is not None:
            found.positions[row.position].add(row)
        if row.user is not None:
            users.append(hash_text(row.user))
        if row.time is not None:
            found.start = row.time if found.start is None else min(found.start, row.time)
            found.end = row.time if found.end is None else max(found.end, row.time)
            found.days[int(row.time // DAY)].add(row)
        fields = {"topic": row.topics or None, "position": row.position, "user": row.user, "time": row.time}
        found.lacking.update(key for key, value in fields.items() if value is None)
        for name, value in row.features.items():
            found.features[name].add(value)
        found.others.update(row.others.keys())
    sizes, counts = np.unique(np.unique(np.asarray(groups), return_counts=True)[1], return_counts=True)
    found.group_sizes.update(dict(zip(sizes.tolist(), counts.tolist(), strict=True)))
    found.duplicates = found.rows - len(np.unique(np.asarray(candidates)))
    found.users = len(np.unique(np.asarray(users)))
    return found


def tables(found: Description) -> list[Table]:
    """Lay out the figures; what the log does not have gives no table."""
    groups = found.group_sizes.total()
    counts = [
        ("rows", f"{found.rows:,}"),
        ("impressions", f"{found.overall.impressions:,.10g}"),
        ("clicks", f"{found.overall.clicks:,.10g}"),
        ("click rate", f"{found.overall.value:.4f}"),
        ("groups", f"{groups:,}"),
        ("groups of one candidate", f"{found.group_sizes[1]:,}"),
        ("rows that repeat a candidate of their group", f"{found.duplicates:,}"),
        *((f"rows with an empty {side}", f"{found.empty[side]:,}") for side in found.words),
        *((f"rows without {key}", f"{found.lacking[key]:,}") for key in ("topic", "position", "user", "time")),
        ("users", f"{found.users:,}"),
    ]
    if found.start is not None:
        counts += [("first impression", moment(found.start)), ("last impression", moment(found.end))]
    lengths = [*found.words.items(), ("candidates a group", found.group_sizes)]
    header = ("", "mean", "least", *(f"{100 * share:g} %" for share in QUANTILES), "most")
    result = [
        Table("The log", (), counts),
        Table("Lengths, in words", header, [(name, *_spread(counter)) for name, counter in lengths]),
    ]
    if found.positions:
        places = {str(position): found.positions[position] for position in sorted(found.positions)}
        result.append(_rates("Click rate by position", "position", places))
    if found.topics:
        topics = dict(sorted(found.topics.items(), key=lambda each: (-each[1].impressions, each[0])))
        result.append(_rates("Click rate by topic", "topic", topics))
    if found.features:
        rows = [
            (name, f"{feature.rows:,}", *(f"{value:.4g}" for value in (feature.least, feature.mean, feature.most)))
            for name, feature in sorted(found.features.items())
        ]
        result.append(Table("Features", ("", "rows", "least", "mean", "most"), rows))
    if found.others:
        result.append(Table("Other keys", ("", "rows"), [(key, f"{n:,}") for key, n in sorted(found.others.items())]))
    return result


def quantile(counter: Mapping[int, int], share: float) -> int:
    """Return the least value which at least that share of the counted ones does not exceed."""
    wanted, reached = share * sum(counter.values()), 0
    for value in sorted(counter):
        reached += counter[value]
        if reached >= wanted:
            return value
    raise ValueError("nothing was counted, so there is no quantile")


def moment(seconds: float | None) -> str:
    """Write seconds since 1970 as a UTC time, to the minute; "-" for none."""
    return "-" if seconds is None else f"{EPOCH + timedelta(seconds=seconds):%Y-%m-%d %H:%M}"


def _spread(counter: Counter[int]) -> tuple[str, ...]:
    mean = sum(value * count for value, count in counter.items()) / counter.total()
    values = [quantile(counter, share) for share in (0.0, *QUANTILES, 1.0)]
    return (f"{mean:.1f}", *(f"{value:,}" for value in values))


def _rates(title: str, name: str, rates: Mapping[str, Rate]) -> Table:
    rows = [
        (key, f"{rate.impressions:,.10g}", f"{rate.clicks:,.10g}", f"{rate.value:.4f}")
        for key, rate in list(rates.items())[:SHOWN]
    ]
    more = f" (the first {SHOWN} of {len(rates):,})" if len(rates) > SHOWN else ""
    return Table(title + more, (name, "impressions", "clicks", "click rate"), rows)
