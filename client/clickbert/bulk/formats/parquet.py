"""Parquet. The unfinished output has only the scores, 8 bytes a row; the last pass joins them with the input's rows.

The distribution's extra `bulk` brings what is imported here.
"""

import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as exc:
    raise ImportError("Parquet needs pyarrow: pip install 'clickbert[bulk]'") from exc

from clickbert.bulk.rows import (
    MOST_BYTES,
    SCORE,
    TOO_LONG,
    BadRowError,
    Columns,
    DamagedError,
    JobError,
    Pair,
    Place,
    Row,
    check_text,
    read_row,
)

_SCORE = struct.Struct("<d")  # NaN for a bad row: a score is always finite
_READ = 2**20, 1024  # bytes and rows at a time, about
_BUFFER = 2**20  # bytes of each column; without it a whole row group's are read
_WRITTEN = 2**24, 2**16  # bytes and rows of a row group, about
_PAGE_ROWS = 64  # after so many a page that is large enough is ended; 1,024 long texts would be held several times


class Parquet:
    """A table in Parquet. Raises `JobError` if it has not the columns, as texts."""

    header = b""

    def __init__(self, name: str, columns: Columns) -> None:
        self.name, self._columns = name, columns
        self._place = Place()
        with self._open() as file:
            schema = file.schema_arrow
            self._total = int(file.metadata.num_rows)
        for column in columns:
            if schema.names.count(column) != 1 or not _is_text(schema.field(column).type):
                found = schema.field(column).type if column in schema.names else "none"
                raise JobError(
                    f"{name} must have one column {column!r} of strings, but has {found}: name another with"
                    " --query-column or --document-column"
                )
        if SCORE in schema.names:
            raise JobError(f"{name} has a column {SCORE!r} already: rename or drop it")

    def rows(self, start: Place) -> Iterator[Row]:
        """Read the rows after a place."""
        self._place = start
        skipped = 0
        with self._open() as file:
            for group in range(file.metadata.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if skipped + size <= start.offset:
                    skipped += size
                    continue
                for batch in self._read(file, group, list(self._columns)):
                    pairs = list(zip(*(_texts(batch.column(name)) for name in self._columns), strict=True))
                    unread = pairs[max(start.offset - skipped, 0) :]
                    skipped += len(pairs)
                    for query, document in unread:
                        number = self._place.offset + 1
                        self._place = Place(number, number)
                        yield read_row(partial(self._pair, query, document), number, b"")

    def place(self) -> Place:
        """Return where the row after the last one begins."""
        return self._place

    def share(self) -> float | None:
        """Return the share of the rows that were read."""
        return self._place.offset / max(self._total, 1)

    def encode(self, row: Row, score: float | None) -> bytes:
        """Return the score's bytes."""
        return _SCORE.pack(float("nan") if score is None else score)

    def join(self, scores: Path, target: Path) -> None:
        """Write the rows that have a score, with it, to `target`: the same schema and one column more."""
        with self._open() as file:
            schema = file.schema_arrow.append(pa.field(SCORE, pa.float64()))
            try:
                with pq.ParquetWriter(target, schema, write_batch_size=_PAGE_ROWS) as writer:
                    for table in _row_groups(self._scored(file, scores, schema)):
                        writer.write_table(table)
            except pa.ArrowException as exc:
                raise JobError(
                    f"{self.name} has columns that cannot be written: {exc}; the scores are in {scores}, 8 bytes a row"
                ) from exc

    def _scored(self, file: Any, scores: Path, schema: Any) -> Iterator[Any]:
        with scores.open("rb") as numbers:
            for group in range(file.metadata.num_row_groups):
                for batch in self._read(file, group, None):
                    found = np.frombuffer(numbers.read(_SCORE.size * batch.num_rows), "<f8")
                    if len(found) != batch.num_rows:
                        raise JobError(f"{scores} has too few scores: remove the journal to begin anew", is_final=True)
                    columns, is_good = [*batch.columns, pa.array(found)], ~np.isnan(found)
                    if not is_good.all():
                        columns = [_filtered(column, is_good) for column in columns]
                    yield pa.RecordBatch.from_arrays(columns, schema=schema)

    def _open(self) -> Any:
        with Path(self.name).open("rb"):
            pass  # its own error is clearer
        try:
            return pq.ParquetFile(self.name, pre_buffer=False, buffer_size=_BUFFER)
        except (pa.ArrowException, OSError) as exc:
            raise JobError(f"{self.name} is no Parquet file, or a damaged one: {exc}") from exc

    def _read(self, file: Any, group: int, columns: list[str] | None) -> Iterator[Any]:
        """Read a row group in small parts."""
        about = file.metadata.row_group(group)
        rows = min(_READ[0] * about.num_rows // max(about.total_byte_size, 1), _READ[1])
        try:
            yield from file.iter_batches(max(rows, 1), row_groups=[group], columns=columns, use_threads=False)
        except (pa.ArrowException, OSError) as exc:
            raise DamagedError(f"{self.name} cannot be read in row group {group}: {exc}") from exc

    def _pair(self, query: object, document: object, _: bytes) -> Pair:
        pair = check_text(query, self._columns.query), check_text(document, self._columns.document)
        if len(pair[0]) + len(pair[1]) > MOST_BYTES:
            raise BadRowError(TOO_LONG)
        return pair


def _row_groups(batches: Iterator[Any]) -> Iterator[Any]:
    """Make tables of batches, each as large as a row group is to be."""
    waiting: list[Any] = []
    size = rows = 0
    for batch in batches:
        if batch.num_rows:
            waiting.append(batch)
            size, rows = size + batch.nbytes, rows + batch.num_rows
        if size >= _WRITTEN[0] or rows >= _WRITTEN[1]:
            yield pa.Table.from_batches(waiting)
            waiting.clear()
            size = rows = 0
    if waiting:
        yield pa.Table.from_batches(waiting)


def _filtered(column: Any, wanted: npt.NDArray[np.bool_]) -> Any:
    """Return the wanted values of a column."""
    try:
        return column.filter(pa.array(wanted))
    except pa.ArrowNotImplementedError:  # there are types that Arrow cannot filter, such as views of strings
        edges = np.flatnonzero(np.diff(wanted, prepend=False, append=False)).tolist()
        runs = [column.slice(first, end - first) for first, end in zip(edges[::2], edges[1::2], strict=True)]
        return pa.concat_arrays(runs) if runs else column.slice(0, 0)


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _texts(column: Any) -> list[object]:
    """Return a column's values; one that is not UTF-8 as bytes, which are no text."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        values: list[object] = column.to_pylist()
    except UnicodeDecodeError:
        values = [_decoded(value) for value in column.cast(pa.large_binary()).to_pylist()]
    return values


def _decoded(value: bytes | None) -> object:
    try:
        return value.decode() if value is not None else None
    except UnicodeDecodeError:
        return value
