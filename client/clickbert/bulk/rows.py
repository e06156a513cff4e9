"""What every format is read as: rows, in batches, each with the place in the input where the next one begins."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from clickbert.errors import ClickBertError

SCORE = "score"  # the column that is added
MOST_BYTES = 4 * 2**20  # of a row; a longer one is bad
BATCH_PAIRS = 256  # some requests of the size that servers take, whose pairs the client sorts by length
TOO_LONG = f"longer than {MOST_BYTES:,} bytes"
BATCH_BYTES = 2**20  # a batch with so many is full
BATCH_ROWS = 1024  # good and bad

Pair = tuple[str, str]


class JobError(ClickBertError):
    """The job cannot start, or not go on. The message says which file, and what to do.

    `is_final`: the same command would only fail again.
    """

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final


class DamagedError(JobError):
    """The input cannot be read on; what precedes that can be scored."""

    def __init__(self, message: str) -> None:
        super().__init__(message, is_final=True)


class BadRowError(Exception):
    """A row cannot be scored: the reason, without a text of it."""


class Columns(NamedTuple):
    """The names of the columns that are read."""

    query: str
    document: str


class Place(NamedTuple):
    """Between two rows of an input: the bytes (uncompressed) and the lines before it; of Parquet, twice the rows."""

    offset: int = 0
    line: int = 0


class Row(NamedTuple):
    """One row; a bad one has no pair, but a reason."""

    line: int  # its first one, from 1 up; of Parquet the row
    raw: bytes  # as it stands in the file, without its line break; empty for Parquet
    pair: Pair | None
    reason: str = ""
    end: bytes = b"\n"  # its line break


class Batch(NamedTuple):
    """Rows in the input's order, and what is known when they are read."""

    rows: list[Row]
    end: Place
    share: float | None  # of the input that is read, in [0, 1]; None: a pipe's, which nobody knows


class Table(Protocol):
    """An input in one of the formats, and what its rows become in the unfinished output."""

    name: str
    header: bytes  # what the unfinished output begins with

    def rows(self, start: Place) -> Iterator[Row]:
        """Read the rows after a place. Raises `DamagedError`, and `JobError` if they are not what was asked for."""

    def place(self) -> Place:
        """Return where the row after the last one begins."""

    def share(self) -> float | None:
        """Return the share of the input that was read."""

    def encode(self, row: Row, score: float | None) -> bytes:
        """Return what is appended to the unfinished output for a row; None is a bad row's score."""


def batches(table: Table, start: Place) -> Iterator[Batch]:
    """Read a table in batches of limited size. The same rows from the same place are always the same batches.

    Raises `DamagedError` after what precedes the damage, and `JobError`.
    """
    rows: list[Row] = []
    pairs = size = 0
    end, damage = start, None
    try:
        for row in table.rows(start):
            rows.append(row)
            end = table.place()  # now: of a row that is damaged some lines may be read
            size += len(row.raw)
            if row.pair:
                pairs += 1
                size += len(row.pair[0]) + len(row.pair[1])
            if pairs == BATCH_PAIRS or size >= BATCH_BYTES or len(rows) == BATCH_ROWS:
                yield Batch(rows, end, table.share())
                rows, pairs, size = [], 0, 0
    except DamagedError as exc:
        damage = exc
    if rows:
        yield Batch(rows, end, table.share())
    if damage:
        raise damage


def read_row(read: Callable[[bytes], Pair], line: int, raw: bytes, end: bytes = b"\n") -> Row:
    """Return the row that a format makes of its own text; `read` raises `BadRowError` if there is no pair in it."""
    try:
        return Row(line, raw, read(raw), end=end)
    except BadRowError as exc:
        return Row(line, raw, None, str(exc), end)


def decode(raw: bytes) -> str:
    """Return a row's text. Raises `BadRowError`."""
    if len(raw) > MOST_BYTES:
        raise BadRowError(TOO_LONG)
    try:
        return raw.decode()
    except UnicodeDecodeError as exc:
        raise BadRowError(f"not UTF-8 at byte {exc.start}") from None


def check_text(value: object, column: str) -> str:
    """Return a value that can be scored. Raises `BadRowError` for another."""
    if not isinstance(value, str):
        raise BadRowError(f"{column!r} is no text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise BadRowError(f"{column!r} holds a lone surrogate at character {exc.start}") from None
    return value
