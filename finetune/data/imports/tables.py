"""CSV and Parquet tables, read record by record."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from finetune.data.clicklog import read_lines
from finetune.data.row import ClickLogError

BATCH = 4096  # records of a Parquet file in memory
LONGEST_VALUE = 2**24  # characters of a value in CSV: behind a quote that nobody closes, the whole file is one
Watch = Callable[[int], None] | None


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a table: its values by column, where it is in words, and its line or number, from 1."""

    values: dict[str, object]
    where: str
    number: int


def is_parquet(path: Path) -> bool:
    """Tell whether a table's name says that it is Parquet; if not, it is read as CSV."""
    return path.suffix.lower() in (".parquet", ".pq")


def read_table(
    path: Path, columns: Sequence[str], optional: Sequence[str] = (), watch: Watch = None
) -> Iterator[Record]:
    """Read some columns of a CSV or Parquet table, by the name's suffix: see `read_csv` and `read_parquet`."""
    read = read_parquet if is_parquet(path) else read_csv
    return read(path, columns, optional, watch)


def read_csv(
    path: Path, columns: Sequence[str], optional: Sequence[str] = (), watch: Watch = None, delimiter: str | None = None
) -> Iterator[Record]:
    """Read some columns of a CSV file (UTF-8, first line the names, gzipped if it ends in `.gz`). All values are texts.

    Of `optional`, only the columns that the file has are read. The delimiter is a tab for `.tsv`, else a comma, unless
    it is given. `watch` is told how many bytes were read.

    Raises:
        ClickLogError: the file cannot be read, lacks a column, or a record is broken: other quotes than CSV's, another
            number of values than names.
    """
    if delimiter is None:
        delimiter = "\t" if ".tsv" in path.suffixes else ","
    csv.field_size_limit(LONGEST_VALUE)  # of Python's whole process; by default shorter than a long article
    reader = csv.reader(read_lines(path, watch), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    wanted: list[tuple[str, int]] = []
    while True:
        try:
            values = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            why = f"not CSV ({error}); check the quotes and the delimiter"
            if "field larger" in str(error):
                why = f"a value has over {LONGEST_VALUE:,} characters; is a quote not closed?"
            raise ClickLogError(f"{path}, line {reader.line_num}: {why}") from error
        where = f"{path}, line {reader.line_num}"
        if names is None:
            names = values
            wanted = [(name, names.index(name)) for name in _present(path, names, columns, optional)]
        elif len(values) == len(names):
            yield Record({name: values[index] for name, index in wanted}, where, reader.line_num)
        elif values:  # (a blank line has none)
            raise ClickLogError(
                f"{where}: has {len(values)} values for {len(names)} columns; check the quotes and the delimiter"
            )
    if names is None:
        raise ClickLogError(f"{path}: is empty; its first line must have the names of the columns")


def read_parquet(
    path: Path, columns: Sequence[str], optional: Sequence[str] = (), watch: Watch = None
) -> Iterator[Record]:
    """Read some columns of a Parquet file, a batch at a time. Values are Python's; a null is None.

    Times become ISO 8601 texts. `watch` is told how many rows were read.

    Raises:
        ClickLogError: the file cannot be read, is damaged, or lacks a column.
    """
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = _present(path, file.schema_arrow.names, columns, optional)
            for batch in file.iter_batches(BATCH, columns=names):
                values = [_values(batch.column(name)) for name in names]
                for record in zip(*values, strict=True):
                    number += 1
                    yield Record(dict(zip(names, record, strict=True)), f"{path}, row {number}", number)
                if watch:
                    watch(number)
    except ClickLogError:
        raise
    except (OSError, pa.ArrowException, ValueError, OverflowError) as error:  # (the last two: a date beyond Python's)
        place = f" after row {number}" if number else ""
        raise ClickLogError(f"{path}: cannot read{place} ({error}); check the path and the file") from error


def count_rows(path: Path) -> int:
    """Return how many rows a Parquet file says that it has; 0 if it cannot be read, which reading it will report."""
    try:
        return int(parquet.read_metadata(path).num_rows)
    except (OSError, pa.ArrowException):
        return 0


def _present(path: Path, names: list[str], columns: Sequence[str], optional: Sequence[str]) -> list[str]:
    for name in columns:
        if name not in names:
            raise ClickLogError(f"{path}: has no column {name!r}; name the right one of {', '.join(names)}")
    present = list(dict.fromkeys([*columns, *(name for name in optional if name in names)]))
    for name in present:
        if names.count(name) > 1:
            raise ClickLogError(f"{path}: has two columns {name!r}; rename one of them")
    return present


def _values(column: pa.Array) -> list[object]:
    if pa.types.is_timestamp(column.type):  # Python's times have no nanoseconds
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    elif pa.types.is_time64(column.type):
        column = column.cast(pa.time64("us"), safe=False)
    return [value.isoformat() if isinstance(value, date | datetime) else value for value in column.to_pylist()]
