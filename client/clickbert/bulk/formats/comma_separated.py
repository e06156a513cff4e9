"""CSV with a header: commas, and quotes where a field needs them. A scored row is its own text with one more field."""

import csv
from collections.abc import Iterator
from functools import partial

from clickbert.bulk.formats.lines import Lines, line_break
from clickbert.bulk.rows import (
    MOST_BYTES,
    SCORE,
    TOO_LONG,
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


class CommaSeparated:
    """A table in CSV; empty lines are no rows. Raises `JobError` if the header has not the columns."""

    def __init__(self, name: str, columns: Columns, *, gzipped: bool) -> None:
        self.name, self._columns, self._gzipped = name, columns, gzipped
        csv.field_size_limit(MOST_BYTES)  # of Python's whole process; by default shorter than a long document
        self._records = _Records(Lines(name, gzipped=gzipped))
        found = self._records.next()
        if found is None or isinstance(found[1], str):
            raise JobError(f"{name} has no header: its first line must name the columns, with commas between them")
        self._first = self._records.lines.place
        raw, self._names, end = found
        for column in columns:
            if self._names.count(column) != 1:
                raise JobError(
                    f"{name} has {self._names.count(column)} columns {column!r} among its {len(self._names)}, expected"
                    " one: is the first line the header, with commas? Name others with --query-column and"
                    " --document-column"
                )
        if SCORE in self._names:
            raise JobError(f"{name} has a column {SCORE!r} already: rename or drop it")
        self._at = tuple(self._names.index(column) for column in columns)
        self.header = b"%b,%b%b" % (raw, SCORE.encode(), end)

    def rows(self, start: Place) -> Iterator[Row]:
        """Read the rows after a place."""
        if start.offset > self._first.offset:
            self._records.lines.close()
            self._records = _Records(Lines(self.name, gzipped=self._gzipped, start=start))
        records = self._records
        try:
            while True:
                line = records.lines.place.line + 1
                if (record := records.next()) is None:
                    return
                raw, fields, end = record
                if fields:
                    yield read_row(partial(self._pair, fields), line, raw, end)
        finally:
            records.lines.close()

    def place(self) -> Place:
        """Return where the row after the last one begins."""
        return self._records.lines.place

    def share(self) -> float | None:
        """Return the share of the input that was read."""
        return self._records.lines.share

    def encode(self, row: Row, score: float | None) -> bytes:
        """Return the row with its score; nothing for a bad one."""
        return b"" if score is None else b"%b,%b%b" % (row.raw, repr(score).encode(), row.end)

    def _pair(self, fields: list[str] | str, raw: bytes) -> Pair:
        decode(raw)
        if isinstance(fields, str):
            raise BadRowError(fields)
        if len(fields) != len(self._names):
            raise BadRowError(f"has {len(fields)} fields, expected {len(self._names)}")
        query, document = (check_text(fields[at], column) for at, column in zip(self._at, self._columns, strict=True))
        return query, document


class _Records:
    """Records, each with its own text: a field in quotes may hold line breaks."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        self._raw: list[bytes] = []
        self._size = 0
        self._reader = csv.reader(self._read_lines(), strict=True)

    def next(self) -> tuple[bytes, list[str] | str, bytes] | None:
        """Return the next record's text, its fields, or why it has none, and its line break; None at the end."""
        self._raw, self._size = [], 0
        fields: list[str] | str | None
        try:
            fields = next(self._reader, None)
        except csv.Error as exc:
            fields = f"not CSV: {exc}"
        except _TooLongError:
            fields = TOO_LONG
            self._reader = csv.reader(self._read_lines(), strict=True)
        raw = b"".join(self._raw)
        return None if fields is None else (raw.rstrip(b"\r\n"), fields, line_break(raw))

    def _read_lines(self) -> Iterator[str]:
        for line in self.lines:
            self._raw.append(line)
            self._size += len(line)
            if self._size > MOST_BYTES:
                raise _TooLongError
            # Bytes that are not UTF-8 must not stop the reader in the middle of a record; `raw` shows them.
            yield line.decode(errors="surrogateescape")


class _TooLongError(Exception):
    """A record has more bytes than a row may have."""
