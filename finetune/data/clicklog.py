"""The click log: JSON lines, one shown candidate a line, `.jsonl` or `.jsonl.gz`.

    {"group": "impression id", "query": "user text", "document": "candidate text", "click": 0 or 1}
    {"group": "impression id", "query": "user text", "document": "candidate text", "impressions": 40, "clicks": 3}

A line holds either `click` or both counts. Other keys and blank lines are ignored. `python -m export plan` imports this
module where neither torch nor transformers is installed.
"""

import gzip
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

TEXT_KEYS = ("group", "query", "document")


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
    line: int = 0  # in its file, from 1; 0: it comes from no file


def find_split(data: Path, name: str) -> Path:
    """Return `data`/`name`.jsonl or, if there is none, `data`/`name`.jsonl.gz.

    Raises:
        ClickLogError: neither exists.
    """
    for path in (data / f"{name}.jsonl", data / f"{name}.jsonl.gz"):
        if path.is_file():
            return path
    raise ClickLogError(
        f"{data}: has no {name}.jsonl or {name}.jsonl.gz; make a sample with `python -m finetune sample`"
    )


def read_click_log(path: str | Path) -> list[ClickRow]:
    """Read and check a whole click log; rows keep the file's order.

    Raises:
        ClickLogError: the file cannot be read or holds no row, or a line breaks the format (the first is named).
    """
    path = Path(path)
    rows: list[ClickRow] = []
    number = 0
    try:
        with _open_text(path) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    rows.append(_parse_line(line, f"{path}, line {number}"))
    except UnicodeDecodeError as error:
        raise ClickLogError(f"{path}, after line {number}: not UTF-8 ({error}); save the click log as UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        # gzip reports a damaged file in three ways: OSError (bad magic, CRC), EOFError (cut off) and zlib.error.
        reason = getattr(error, "strerror", None) or error
        place = f" after line {number}" if number else ""
        raise ClickLogError(f"{path}: cannot read{place}: {reason}; check the path and the file") from error
    if not rows:
        raise ClickLogError(f"{path}: the click log is empty; it needs at least one row of JSON")
    return rows


def _open_text(path: Path) -> TextIO:
    # "utf-8-sig" also reads plain UTF-8; spreadsheets and PowerShell put a byte order mark in front.
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _parse_line(line: str, where: str) -> ClickRow:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ClickLogError(f"{where}: not JSON ({error}); write one JSON object a line") from error
    if not isinstance(fields, dict):
        raise ClickLogError(f"{where}: holds {type(fields).__name__}, not an object; write one JSON object a line")
    group, query, document = (_text(fields, key, where) for key in TEXT_KEYS)
    clicks, impressions = _counts(fields, where)
    return ClickRow(group, query, document, clicks, impressions)


def _text(fields: dict[str, object], key: str, where: str) -> str:
    if key not in fields:
        raise ClickLogError(f"{where}: {key!r} is missing; a row needs group, query, document and click (or counts)")
    value = fields[key]
    if not isinstance(value, str):
        raise ClickLogError(f"{where}: {key!r} is {_shown(value)}, not a string; write it in quotes")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON can spell half of a surrogate pair ("\ud83d"); no tokenizer accepts it.
        raise ClickLogError(
            f"{where}: {key!r} holds half a character ({error.reason}); cut texts by character"
        ) from error
    return value


def _counts(fields: dict[str, object], where: str) -> tuple[float, float]:
    counted = [key for key in ("impressions", "clicks") if key in fields]
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
    impressions, clicks = (_count(fields, key, where) for key in ("impressions", "clicks"))
    if impressions == 0:
        raise ClickLogError(f"{where}: 'impressions' is 0, so the row says nothing; leave it out")
    if clicks > impressions:
        raise ClickLogError(
            f"{where}: {clicks:g} clicks of {impressions:g} impressions; clicks cannot exceed impressions"
        )
    return clicks, impressions


def _count(fields: dict[str, object], key: str, where: str) -> float:
    value = fields[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ClickLogError(f"{where}: {key!r} is {_shown(value)}, not a number; write a count, without quotes")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < 0:
        raise ClickLogError(f"{where}: {key!r} is {_shown(value)}; a count must be finite and not negative")
    return number


def _shown(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a huge integer"
    return text if len(text) <= 60 else text[:57] + "..."
