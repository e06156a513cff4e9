"""JSON lines: an object a line. A scored row is its own text with one more field, so numbers stay as written."""

import json
import re
from collections.abc import Iterator

from clickbert.bulk.formats.lines import Lines, line_break
from clickbert.bulk.rows import (
    BATCH_BYTES,
    BATCH_ROWS,
    MOST_BYTES,
    SCORE,
    BadRowError,
    Columns,
    JobError,
    Pair,
    Place,
    Row,
    check_text,
    decode,
    read_row,
)

_NAME, _SHOWN = re.compile(r"[A-Za-z_][\w.-]{0,39}", re.ASCII), 10
_SPACE = b" \t\r\n"  # JSON's; bytes.strip() alone takes more


class JsonLines:
    """A table of JSON lines; empty lines are no rows."""

    header = b""

    def __init__(self, name: str, columns: Columns, *, gzipped: bool) -> None:
        self.name, self._columns, self._gzipped = name, columns, gzipped
        self._lines: Lines | None = None
        self._unseen = set(columns)  # columns that no row had so far
        self._names: dict[str, None] = {}  # of the fields that rows had, in order

    def rows(self, start: Place) -> Iterator[Row]:
        """Read the rows after a place. Raises `JobError` if none of the first ones has a column."""
        if start.offset:
            self._unseen.clear()
        number = size = 0
        self._lines = lines = Lines(self.name, gzipped=self._gzipped, start=start)
        try:
            for line in lines:
                # Of a line that is too long the end is not known, even if the rest is spaces.
                if raw := line if len(line) > MOST_BYTES else line.strip(_SPACE):
                    row = read_row(self._pair, lines.place.line, raw, line_break(line))
                    number, size = number + 1, size + len(raw)
                    if self._unseen and (number == BATCH_ROWS or size >= BATCH_BYTES):  # no batch is full before
                        self._check_columns(number)
                    yield row
            self._check_columns(number)
        finally:
            lines.close()

    def place(self) -> Place:
        """Return where the row after the last one begins."""
        return self._lines.place if self._lines else Place()

    def share(self) -> float | None:
        """Return the share of the input that was read."""
        return self._lines.share if self._lines else None

    def encode(self, row: Row, score: float | None) -> bytes:
        """Return the row with its score; nothing for a bad one."""
        if score is None:
            return b""
        return b'%b, "%b": %b}%b' % (row.raw[:-1], SCORE.encode(), repr(score).encode(), row.end)

    def _pair(self, line: bytes) -> Pair:
        try:
            # Numbers are not looked at: as floats they may have any number of digits.
            row = json.loads(decode(line), parse_int=float)
        except json.JSONDecodeError as exc:
            raise BadRowError(f"not JSON: {exc.msg} at character {exc.pos}") from None
        except RecursionError:
            raise BadRowError("JSON that is nested too deep") from None
        if not isinstance(row, dict):
            raise BadRowError("not a JSON object")
        if self._unseen:
            self._unseen.difference_update(row)
            self._names |= dict.fromkeys(row)
        if SCORE in row:
            raise BadRowError(f"has a field {SCORE!r} already")
        if missing := [column for column in self._columns if column not in row]:
            raise BadRowError(f"has no field {missing[0]!r}")
        query, document = (check_text(row[column], column) for column in self._columns)
        return query, document

    def _check_columns(self, number: int) -> None:
        """Refuse a file that has not the columns, once so many rows are read. What is no object has no fields."""
        missing, found = [name for name in self._columns if name in self._unseen], list(self._names)
        self._unseen, self._names = set(), {}
        if missing and found:
            # A field may be named by a text of somebody's.
            shown = [
                repr(name) if _NAME.fullmatch(name) else f"one of {len(name)} characters" for name in found[:_SHOWN]
            ]
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise JobError(
                f"none of the first {number:,} rows of {self.name} has a field {missing[0]!r}; their fields are"
                f" {', '.join(shown)}{more}: name others with --query-column and --document-column"
            )
