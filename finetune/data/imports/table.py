"""Any CSV or Parquet table with a row a shown candidate, read as the click log; which column is which is given."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import time
from decimal import Decimal
from pathlib import Path

from finetune.data.imports.tables import Record, Watch, read_csv, read_parquet
from finetune.data.row import COUNT_KEYS, KEYS, TEXT_KEYS, ClickLogError, ClickRow, parse_row

COLUMNS = tuple(key for key in KEYS if key != "features")  # fields that are one column each
CLICKS = {"0": 0, "1": 1, "false": 0, "true": 1, "0.0": 0, "1.0": 1}
MISSING = ("", "nan", "null", "none")  # how tables spell a number that they do not know, in any case


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column is which. A field that is not in `named` has the column of its own name, if there is one."""

    named: Mapping[str, str] = field(default_factory=dict)  # a field of `COLUMNS`: its column
    features: Sequence[str] = ()  # columns of numbers, each a feature of that name
    others: Sequence[str] = ()  # columns that are kept as they are, as text


def read_rows(
    path: Path, columns: Columns, parquet: bool, delimiter: str | None = None, watch: Watch = None
) -> Iterator[ClickRow]:
    """Read a table, Parquet or CSV (`delimiter`: see `read_csv`), row by row.

    An empty topic, user, position, time or feature is none, and so is a number that is NaN, "null" or "none". Groups
    and users may be whole numbers. A click may be a truth value. In Parquet, a topic may be a list.

    Raises:
        ClickLogError: the table cannot be read, lacks a column, or has a value that the click log does not take.
    """
    if taken := [name for name in columns.others if name in KEYS]:
        raise ClickLogError(f"{path}: {taken[0]!r} is a field of the click log; leave it out of --other-columns")
    places = {key: columns.named.get(key, key) for key in COLUMNS}
    needed = [places[key] for key in (*TEXT_KEYS, *columns.named)] + [*columns.features, *columns.others]
    if parquet:
        records = read_parquet(path, needed, list(places.values()), watch)
    else:
        records = read_csv(path, needed, list(places.values()), watch, delimiter)
    for record in records:
        yield parse_row(_fields(record, places, columns), record.where, record.number)


def _fields(record: Record, places: Mapping[str, str], columns: Columns) -> dict[str, object]:
    """Turn a record's values into those that JSON would give. What cannot be turned stays, for the check to refuse."""
    values = record.values
    found = {key: values[name] for key, name in places.items() if name in values}
    if "click" in found and any(key in found for key in COUNT_KEYS):
        named = [key for key in ("click", *COUNT_KEYS) if key in columns.named]
        if not named:
            raise ClickLogError(
                f"{record.where}: there is a column 'click', and one of counts; take it with --click-column, "
                "or the counts with --clicks-column and --impressions-column"
            )
        found = {key: value for key, value in found.items() if key in named or key not in ("click", *COUNT_KEYS)}
    for key in ("group", "user"):
        found[key] = _number_as_name(found.get(key))
    for key in ("topic", "user"):
        found[key] = found.get(key) or None
    for key in (*COUNT_KEYS, "position", "time"):
        if key in found:
            found[key] = _number(found[key])
    if "click" in found:
        found["click"] = _click(found["click"])
    features = {name: _number(values[name]) for name in columns.features}
    others = {name: _as_text(values[name], name, record.where) for name in columns.others}
    return {**others, **found, "features": {name: value for name, value in features.items() if value is not None}}


def _number_as_name(value: object) -> object:
    """Write a whole number as text: databases have no integer of so many digits, but a decimal."""
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
        return str(int(value))
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _as_text(value: object, name: str, where: str) -> object:
    """Write what JSON has no word for as text: what is asked for must not be left out."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Decimal | time):
        return str(value)
    raise ClickLogError(f"{where}: the column {name!r} is {type(value).__name__}, not a text or a number; leave it out")


def _click(value: object) -> object:
    """Read 0 and 1 from what tables have for them."""
    if isinstance(value, str):
        return CLICKS.get(value.strip().lower(), value)
    return int(value) if isinstance(value, bool) else value


def _number(value: object) -> object:
    """Read a number, written as text or not; None if there is none, and the value itself if it is something else."""
    if isinstance(value, str) and value.strip().lower() in MISSING:
        return None
    if isinstance(value, str | Decimal | float):
        try:
            number = float(value)
        except ValueError:
            return value
        return None if math.isnan(number) else number
    return value
