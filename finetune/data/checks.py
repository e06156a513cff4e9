"""What is odd in a click log that was read without an error: warnings for whoever trains on it."""

from collections import Counter
from collections.abc import Callable, Sequence

from finetune.data.row import ClickRow

MOST_NAMED = 5  # topics; the rest is counted


def check_log(rows: Sequence[ClickRow]) -> list[str]:
    """Warn of what is odd within one split; each warning is one short clause with a count."""
    seen: set[tuple[str, str, str]] = set()
    repeated = []
    for row in rows:
        candidate = (row.group, row.query, row.document)
        if candidate in seen:
            repeated.append(row)
        seen.add(candidate)
    sizes = Counter(row.group for row in rows)
    single = [row for row in rows if sizes[row.group] == 1]
    found = [
        _count([row for row in rows if not row.document.strip()], "row has", "rows have", "an empty document"),
        _count([row for row in rows if not row.query.strip()], "row has", "rows have", "an empty query"),
        _count(single, "group has", "groups have", "one candidate"),
        _count(repeated, "row repeats", "rows repeat", "a candidate of the same group"),
    ]
    if rows and not any(row.clicks for row in rows):
        found.append("no row has a click")
    if rows and all(row.clicks == row.impressions for row in rows):
        found.append("every impression has a click")
    return [warning for warning in found if warning]


def check_splits(train: Sequence[ClickRow], dev: Sequence[ClickRow]) -> list[str]:
    """Warn of topics that only `dev` has, and of groups and users that are in both: then dev flatters the model."""
    topics = {topic for row in train for topic in row.topics}
    first = {topic: row for row in reversed(dev) for topic in row.topics if topic not in topics}
    unknown = sorted(first, key=lambda topic: first[topic].line)
    found = [f"topic {topic!r} is only in dev, first on line {first[topic].line}" for topic in unknown[:MOST_NAMED]]
    if len(unknown) > MOST_NAMED:
        found.append(f"{len(unknown) - MOST_NAMED} more topics are only in dev")
    groups = _shared(train, dev, "group", lambda row: row.group)
    return found + groups + _shared(train, dev, "user", lambda row: row.user)


def _shared(
    train: Sequence[ClickRow], dev: Sequence[ClickRow], what: str, key: Callable[[ClickRow], str | None]
) -> list[str]:
    known = {key(row) for row in train} - {None}
    # (once each: the first row of every one that both have)
    first = {key(row): row for row in reversed(dev) if key(row) in known}
    rows = sorted(first.values(), key=lambda row: row.line)
    warning = _count(rows, f"{what} is", f"{what}s are", "in both train and dev", "dev")
    return [warning] if warning else []


def _count(rows: Sequence[ClickRow], one: str, many: str, what: str, file: str = "") -> str:
    if not rows:
        return ""
    where = f", the first on line {rows[0].line}{file and f' of {file}'}" if rows[0].line else ""
    return f"{len(rows)} {one if len(rows) == 1 else many} {what}{where}"
