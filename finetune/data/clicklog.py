"""The click log: JSON lines, one shown candidate a line, `.jsonl` or `.jsonl.gz`.

    {"group": "impression id", "query": "user text", "document": "candidate text", "click": 0 or 1}
    {"group": "impression id", "query": "user text", "document": "candidate text", "impressions": 40, "clicks": 3}

A line holds either `click` or both counts. It may also hold

    "topic": "sport" or ["sport", "tennis"]     of the document
    "position": 3                               where it was shown, from 1
    "user": "u7"
    "time": 1767225600 or "2026-01-01T00:00Z"   seconds since 1970, or ISO 8601; without an offset it is UTC
    "features": {"price": 9.5}                  finite numbers

Every other key with a text, number or truth value is kept as text (`ClickRow.others`); blank lines and other values are
ignored. `python -m export plan` imports this module where neither torch nor transformers is installed.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, cast

from finetune.data.row import ClickLogError, ClickRow, parse_row

__all__ = [
    "ClickLogError",
    "ClickRow",
    "find_split",
    "iterate_click_log",
    "iterate_with_lines",
    "read_click_log",
    "read_lines",
]


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
    return list(iterate_click_log(path))


def iterate_click_log(path: str | Path, watch: Callable[[int], None] | None = None) -> Iterator[ClickRow]:
    """Read and check a click log row by row, so that it may be larger than memory. For `watch`, see `read_lines`.

    Raises:
        ClickLogError: as `read_click_log`, as soon as the fault is reached.
    """
    return (row for row, _ in iterate_with_lines(Path(path), watch))


def iterate_with_lines(path: Path, watch: Callable[[int], None] | None = None) -> Iterator[tuple[ClickRow, str]]:
    """As `iterate_click_log`, each row with the line that it was read from, without the line's end.

    Raises:
        ClickLogError: as `iterate_click_log`.
    """
    empty = True
    for number, line in enumerate(read_lines(path, watch), start=1):
        if line.strip():
            empty = False
            yield _parse_line(line, f"{path}, line {number}", number), line.rstrip("\r\n")
    if empty:
        raise ClickLogError(f"{path}: the click log is empty; it needs at least one row of JSON")


def read_lines(path: Path, watch: Callable[[int], None] | None = None) -> Iterator[str]:
    """Read the lines of a UTF-8 text file, gzipped if its name ends in `.gz`, with their line ends.

    `watch` is told, with each line, how many bytes of the file were read so far.

    Raises:
        ClickLogError: the file cannot be read, or a line is not UTF-8.
    """
    number = 0
    try:
        with path.open("rb") as raw:
            for data in cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if path.suffix == ".gz" else raw:
                number += 1
                if watch:
                    watch(raw.tell())
                # "utf-8-sig" also reads plain UTF-8; spreadsheets and PowerShell put a byte order mark in front.
                yield data.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ClickLogError(f"{path}, line {number}: not UTF-8 ({error}); save the file as UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        # gzip reports a damaged file in three ways: OSError (bad magic, CRC), EOFError (cut off) and zlib.error.
        reason = getattr(error, "strerror", None) or error
        place = f" after line {number}" if number else ""
        raise ClickLogError(f"{path}: cannot read{place}: {reason}; check the path and the file") from error


def _parse_line(line: str, where: str, number: int) -> ClickRow:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ClickLogError(f"{where}: not JSON ({error}); write one JSON object a line") from error
    if not isinstance(fields, dict):
        raise ClickLogError(f"{where}: holds {type(fields).__name__}, not an object; write one JSON object a line")
    return parse_row(fields, where, number)
