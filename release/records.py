"""Reads and writes a frozen dataclass as a JSON file, and checks every field's type on the way in."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Record = TypeVar("Record")
LATER = {"later": True}  # metadata of a field with a default that files of an earlier release lack


class RecordError(ValueError):
    """A JSON file is not the record that it must be; the message says where it deviates."""


def to_json(record: Any) -> bytes:
    """The content of a record's file."""
    return (json.dumps(asdict(record), indent=2, ensure_ascii=False) + "\n").encode()


def read_record(kind: type[Record], path: Path, schema: int) -> Record:
    """Reads a record back.

    Args:
        kind: the dataclass. Its field `schema` numbers the layout.
        path: the JSON file.
        schema: the number that this code reads.

    Raises:
        RecordError: the file is missing, is no JSON, has another schema, or lacks a field that is not `LATER`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise RecordError(f"{path} cannot be read ({type(exc).__name__}: {exc})") from exc
    found = content.get("schema") if isinstance(content, dict) else None
    if found != schema:
        raise RecordError(f"{path} has schema {found!r}, this release reads {schema}")
    try:
        return convert(kind, content, "")  # type: ignore[no-any-return]
    except ValueError as exc:
        raise RecordError(f"{path}: {exc}") from exc


def convert(kind: Any, value: Any, where: str) -> Any:
    """`value`, as JSON has it, as a `kind`: a dataclass, tuple, dict, plain type, or one of them or None.

    Raises:
        ValueError: it, or something in it, is of another type; says where.
    """
    if get_origin(kind) is UnionType:
        kind = NoneType if value is None else get_args(kind)[0]
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    found: Any = value
    if kind is Any:
        fits = True
    elif is_dataclass(kind):
        hints = get_type_hints(kind)
        if fits := isinstance(value, dict):
            lacking = {each.name for each in fields(kind) if each.metadata == LATER} - value.keys()
            if different := ", ".join(sorted((hints.keys() ^ value.keys()) - lacking)):
                raise ValueError(f"{where or 'it'} has missing or unexpected fields: {different}")
            given = {name: hint for name, hint in hints.items() if name not in lacking}
            found = kind(**{name: convert(hint, value[name], f"{where}.{name}") for name, hint in given.items()})  # type: ignore[operator]
    elif origin is tuple:
        fits = isinstance(value, list) and (arguments[-1] is Ellipsis or len(arguments) == len(value))
        if fits:
            found = tuple(convert(arguments[0], item, f"{where}[{place}]") for place, item in enumerate(value))
    elif origin is dict:
        if fits := isinstance(value, dict):
            found = {key: convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    elif kind is float and type(value) is int:
        found, fits = float(value), True
    else:
        fits = type(value) is kind
    if not fits:
        raise ValueError(f"{where} is {value!r}, it must be {getattr(kind, '__name__', kind)}")
    return found
