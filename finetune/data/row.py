"""One row of the click log: its fields, each checked as it is read, and the line that they are written as.

The fields are described in `finetune.data.clicklog`, whose readers add file and line to every error.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

T = TypeVar("T")
TEXT_KEYS = ("group", "query", "document")
COUNT_KEYS = ("impressions", "clicks")
KEYS = (*TEXT_KEYS, "click", *COUNT_KEYS, "topic", "position", "user", "time", "features")
LAST_POSITION = 10**9  # no list is that long, so a higher number is no position
EARLIEST, LATEST = -62_135_596_800, 253_402_300_799  # the years 1 to 9999, which dates can be written for


class ClickLogError(ValueError):
    """Raised for a click log that cannot be used; the message names file and line, what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class ClickRow:
    """One candidate shown to one user: of `impressions` (1 where the log has `click`), `clicks` were clicks."""

    group: str
    query: str
    document: str
    clicks: float
    impressions: float
    topics: tuple[str, ...] = ()  # of the document
    position: int | None = None  # where it was shown, from 1
    user: str | None = None
    time: float | None = None  # when it was shown, in seconds since 1970 UTC
    features: Mapping[str, float] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)  # every other key that holds a text, number or truth value
    line: int = field(default=0, compare=False)  # in its file, from 1; 0: it comes from no file


def parse_row(fields: Mapping[str, object], where: str, line: int = 0) -> ClickRow:
    """Check a row's fields, as JSON gives them. `where` begins each message: the file, and the line in it.

    A further field (all but the texts and the click or counts) that is null is as good as missing.

    Raises:
        ClickLogError: a field is missing or broken.
    """
    group, query, document = (_required_text(fields, key, where) for key in TEXT_KEYS)
    clicks, impressions = _counts(fields, where)
    return ClickRow(
        group,
        query,
        document,
        clicks,
        impressions,
        topics=_optional(fields, "topic", where, _topics) or (),
        position=_optional(fields, "position", where, _position),
        user=_optional(fields, "user", where, _name),
        time=_optional(fields, "time", where, _time),
        features=_optional(fields, "features", where, _features) or {},
        others=_others(fields, where),
        line=line,
    )


def format_row(row: ClickRow) -> str:
    """Write a row as its line of JSON, which reads as an equal row; fields that the row doesn't have are left out."""
    counted = row.impressions != 1 or row.clicks not in (0, 1)
    fields = {
        **row.others,
        "group": row.group,
        "query": row.query,
        "document": row.document,
        **({"impressions": _plain(row.impressions), "clicks": _plain(row.clicks)} if counted else {}),
        **({} if counted else {"click": int(row.clicks)}),
        "topic": row.topics[0] if len(row.topics) == 1 else row.topics or None,
        "position": row.position,
        "user": row.user,
        "time": None if row.time is None else _plain(row.time),
        "features": {name: _plain(value) for name, value in row.features.items()} or None,
    }
    # The texts first: a reader of the file looks for them.
    kept = {key: fields[key] for key in (*KEYS, *row.others) if fields.get(key) is not None}
    return json.dumps(kept, ensure_ascii=False) + "\n"


def _required_text(fields: Mapping[str, object], key: str, where: str) -> str:
    if key not in fields:
        raise ClickLogError(f"{where}: {key!r} is missing; a row needs group, query, document and click (or counts)")
    text = _text(fields[key], key, where)
    if key == "group" and not text:
        raise ClickLogError(f"{where}: 'group' is empty; name the impression: rows without a name would all be one")
    return text


def _optional(fields: Mapping[str, object], key: str, where: str, parse: Callable[[object, str, str], T]) -> T | None:
    value = fields.get(key)
    return None if value is None else parse(value, key, where)


def _text(value: object, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise ClickLogError(f"{where}: {key!r} is {_shown(value)}, not a string; write it in quotes")
    return _whole(value, key, where)


def _whole(text: str, key: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # JSON can spell half of a surrogate pair ("\ud83d"); no tokenizer accepts it.
        raise ClickLogError(
            f"{where}: {key!r} holds half a character ({error.reason}); cut texts by character"
        ) from error
    return text


def _name(value: object, key: str, where: str) -> str:
    name = _text(value, key, where)
    if not name:
        raise ClickLogError(f"{where}: {key!r} is empty; give a name, or leave {key!r} out")
    return name


def _topics(value: object, key: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, str | list):
        raise ClickLogError(f"{where}: {key!r} is {_shown(value)}; write a string, or a list of strings")
    # (once each, in their order)
    return tuple(dict.fromkeys(_name(topic, key, where) for topic in ([value] if isinstance(value, str) else value)))


def _position(value: object, key: str, where: str) -> int:
    number = _finite(value)
    if number is None or number != int(number) or not 1 <= number <= LAST_POSITION:
        raise ClickLogError(f"{where}: {key!r} is {_shown(value)}; it must be a whole number, 1 for the first place")
    return int(number)


def _time(value: object, key: str, where: str) -> float:
    seconds = _finite(value)
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = None
        if moment:
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if seconds is None:
        raise ClickLogError(
            f"{where}: {key!r} is {_shown(value)}, not a time; "
            "write seconds since 1970, or ISO 8601 like '2026-01-31T09:30:00+01:00'"
        )
    if not EARLIEST <= seconds <= LATEST:
        raise ClickLogError(
            f"{where}: {key!r} is {_shown(value)}, which is not in the years 1 to 9999; write seconds, not milliseconds"
        )
    return seconds


def _features(value: object, key: str, where: str) -> dict[str, float]:
    if not isinstance(value, dict):
        raise ClickLogError(f"{where}: {key!r} is {_shown(value)}, not an object; write names and numbers")
    features = {}
    for name, each in value.items():
        number = _finite(each)
        if number is None:
            raise ClickLogError(
                f"{where}: the feature {_shown(name)} is {_shown(each)}; it must be a finite number, or be left out"
            )
        features[_whole(name, key, where)] = number
    return features


def _others(fields: Mapping[str, object], where: str) -> dict[str, str]:
    others = {}
    for key, value in fields.items():
        if key not in KEYS and isinstance(value, str | int | float):  # (bool is an int)
            text = value if isinstance(value, str) else json.dumps(value)
            others[_whole(key, key, where)] = _whole(text, key, where)
    return others


def _counts(fields: Mapping[str, object], where: str) -> tuple[float, float]:
    counted = [key for key in COUNT_KEYS if key in fields]
    if "click" in fields:
        if counted:
            raise ClickLogError(
                f"{where}: holds both 'click' and {counted[0]!r}; keep either 'click' or the two counts"
            )
        click = fields["click"]
        if isinstance(click, bool) or click not in (0, 1):
            raise ClickLogError(f"{where}: 'click' is {_shown(click)}; it must be 0 or 1 (for counts, use 'clicks')")
        return float(click == 1), 1.0
    if len(counted) < 2:
        what = f"{counted[0]!r} stands alone" if counted else "'click' is missing"
        raise ClickLogError(f"{where}: {what}; write 'click', or both 'impressions' and 'clicks'")
    impressions, clicks = (_count(fields[key], key, where) for key in COUNT_KEYS)
    if impressions == 0:
        raise ClickLogError(f"{where}: 'impressions' is 0, so the row says nothing; leave it out")
    if clicks > impressions:
        raise ClickLogError(
            f"{where}: {clicks:g} clicks of {impressions:g} impressions; clicks cannot exceed impressions"
        )
    return clicks, impressions


def _count(value: object, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ClickLogError(f"{where}: {key!r} is {_shown(value)}, not a number; write a count, without quotes")
    number = _finite(value)
    if number is None or number < 0:
        raise ClickLogError(f"{where}: {key!r} is {_shown(value)}; a count must be finite and not negative")
    return number


def _finite(value: object) -> float | None:
    """Return a JSON number as a float; None for all else: NaN, the infinities and integers too large included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _plain(number: float) -> int | float:
    return int(number) if number == int(number) and abs(number) < 2**53 else number


def _shown(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a huge integer"
    return text if len(text) <= 60 else text[:57] + "..."
