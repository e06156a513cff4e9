"""Tables with column names given: every field, and what a table may not hold."""

import gzip
import io
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from finetune.data.clicklog import ClickLogError, ClickRow
from finetune.data.imports import tables
from finetune.data.imports.table import COLUMNS, Columns, read_rows

HEADER = "group,query,document,click,topic,position,user,time,price,domain"


def write_csv(folder: Path, *lines: str, name: str = "log.csv") -> Path:
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def write_parquet(folder: Path, **columns: object) -> Path:
    path = folder / "log.parquet"
    parquet.write_table(pa.table(columns), path)
    return path


def read(path: Path, columns: Columns | None = None, **options: str) -> list[ClickRow]:
    return list(read_rows(path, columns or Columns(), path.suffix == ".parquet", **options))


def test_csv_fields_have_the_columns_of_their_names(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path,
        HEADER,
        '1,"tea, green","a ""pot""\nof clay",1,shop,3,u7,2026-01-01T00:00Z,9.5,x',
        "",
        "1,tea,,0,,,,,,",
        "2,tea,cup,0,shop,3.0,u8,1767225600,nan,y",
    )
    rows = read(path, Columns(features=["price"], others=["domain"]))
    full = {"topics": ("shop",), "position": 3, "time": 1767225600.0}
    price = {"features": {"price": 9.5}}
    assert rows == [
        ClickRow("1", "tea, green", 'a "pot"\nof clay', 1, 1, **full, user="u7", **price, others={"domain": "x"}),
        ClickRow("1", "tea", "", 0, 1, others={"domain": ""}),
        ClickRow("2", "tea", "cup", 0, 1, **full, user="u8", others={"domain": "y"}),
    ]  # fmt: skip
    assert [row.line for row in rows] == [3, 5, 6], "the last line of each"


def test_other_names_counts_delimiters_and_gzip(tmp_path: Path) -> None:
    named = {"group": "id", "query": "q", "document": "d", "impressions": "shown", "clicks": "clicked"}
    lines = ("id;q;d;shown;clicked;click", "1;tea;cup;40;3;9")
    path = write_csv(tmp_path, *lines)
    assert read(path, Columns(named), delimiter=";") == [ClickRow("1", "tea", "cup", 3, 40)]
    (tmp_path / "log.tsv.gz").write_bytes(gzip.compress("\n".join(lines).replace(";", "\t").encode("utf-8-sig")))
    assert read(tmp_path / "log.tsv.gz", Columns(named)) == [ClickRow("1", "tea", "cup", 3, 40)]


def test_parquet_values_become_those_of_the_log(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path,
        group=[1, 2],
        query=["tea", "tea"],
        document=["cup", "pot"],
        click=[True, False],
        topic=[["shop", "tea"], []],
        position=pa.array([1.0, float("nan")]),
        user=pa.array([7, None]),
        time=pa.array([datetime(2026, 1, 1, tzinfo=UTC), None], pa.timestamp("ns", "UTC")),
        price=[Decimal("9.50"), None],
        day=[date(2026, 1, 1), None],
    )
    assert read(path, Columns(features=["price"], others=["day"])) == [
        ClickRow("1", "tea", "cup", 1, 1, ("shop", "tea"), 1, "7", 1767225600.0, {"price": 9.5}, {"day": "2026-01-01"}),
        ClickRow("2", "tea", "pot", 0, 1),
    ]


def test_parquet_has_names_and_texts_that_are_decimals_or_times(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path,
        group=pa.array([Decimal(10**30)], pa.decimal128(38, 0)),
        user=pa.array([Decimal(7)], pa.decimal128(38, 2)),
        query=["tea"],
        document=["cup"],
        click=[1],
        price=[Decimal("9.50")],
        at=pa.array([34_200_000_000_001], pa.time64("ns")),
    )
    (row,) = read(path, Columns(others=["price", "at"]))
    assert (row.group, row.user, row.others) == (f"1{'0' * 30}", "7", {"price": "9.50", "at": "09:30:00"})


@pytest.mark.parametrize("value", [b"bytes", ["a", "list"]])
def test_a_column_that_cannot_be_kept_as_text_is_named(tmp_path: Path, value: object) -> None:
    """It was asked for, and must not be left out unsaid."""
    path = write_parquet(tmp_path, group=["1"], query=["tea"], document=["cup"], click=[1], tags=[value])
    with pytest.raises(ClickLogError, match=r"row 1: the column 'tags' is (bytes|list), not a text or a number"):
        read(path, Columns(others=["tags"]))


def test_csv_has_texts_as_long_as_articles_and_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    article = "word " * 100_000
    path = write_csv(tmp_path, "group,query,document,click", f"1,tea,{article},1")
    assert read(path)[0].document == article
    monkeypatch.setattr(tables, "LONGEST_VALUE", 100_000)
    with pytest.raises(ClickLogError, match=r"line 2: a value has over 100,000 characters; is a quote not closed"):
        read(path)


def test_parquet_is_read_in_batches(tmp_path: Path) -> None:
    rows = 10_000
    path = write_parquet(tmp_path, group=list(range(rows)), query=["q"] * rows, document=["d"] * rows, click=[0] * rows)
    watched: list[int] = []
    reader = read_rows(path, Columns(), parquet=True, watch=watched.append)
    assert next(reader).group == "0"
    assert watched == []
    assert sum(1 for _ in reader) == rows - 1
    assert watched == [4096, 8192, 10_000]


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ((HEADER, "1,tea,cup"), "line 2: has 3 values for 10 columns"),
        (("group,query,document,click", "1,tea,cup,1", "1,tea,cup,2"), "line 3: 'click' is '2'; it must be 0 or 1"),
        (("group,query,document,click", "1,tea,cup,"), "line 2: 'click' is ''; it must be 0 or 1"),
        (("group,query,document,click", '1,tea,"cup,1'), "line 2: not CSV"),
        (("group,query,document", "1,tea,cup"), "line 2: 'click' is missing"),
        (("group,query,click", "1,tea,1"), "has no column 'document'; name the right one of group, query, click"),
        (("group,query,document,click,click", "1,tea,cup,1,0"), "has two columns 'click'"),
        (("group,query,document,click,position", "1,tea,cup,1,first"), "line 2: 'position' is 'first'"),
        (("group,query,document,click,clicks,impressions", "1,tea,cup,1,1,1"), "take it with --click-column"),
    ],
)
def test_refuses_a_broken_table_with_file_and_line(tmp_path: Path, lines: tuple[str, ...], fault: str) -> None:
    path = write_csv(tmp_path, *lines)
    with pytest.raises(ClickLogError) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert fault in str(caught.value)


def test_refuses_an_empty_file_another_encoding_and_no_file(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"")
    with pytest.raises(ClickLogError, match="is empty"):
        read(path)
    path.write_bytes("group,query,document,click\n1,tea,cup,1\n1,caf\u00e9,cup,1\n".encode("latin-1"))
    with pytest.raises(ClickLogError, match="line 3: not UTF-8"):
        read(path)
    with pytest.raises(ClickLogError, match="cannot read"):
        read(tmp_path / "none.csv")
    with pytest.raises(ClickLogError, match="cannot read"):
        read(tmp_path / "none.parquet")


def test_refuses_a_damaged_parquet_file(tmp_path: Path) -> None:
    rows = 20_000
    documents = [f"document {number}" for number in range(rows)]
    path = write_parquet(tmp_path, group=documents, query=documents, document=documents, click=[0] * rows)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ClickLogError, match=r"log\.parquet: cannot read"):
        read(path)
    path.write_bytes(whole[:20_000] + bytes(2000) + whole[22_000:])
    with pytest.raises(ClickLogError, match=r"log\.parquet: cannot read"):
        read(path)


def test_refuses_a_null_text(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, group=["1", "1"], query=["tea", None], document=["a", "b"], click=[0, 1])
    with pytest.raises(ClickLogError, match="row 2: 'query' is None, not a string"):
        read(path)


cells = st.one_of(
    st.text(max_size=8), st.integers(-(2**63), 2**63 - 1), st.floats(), st.booleans(), st.none(), st.binary(max_size=3),
    st.lists(st.text(max_size=3), max_size=2), st.datetimes(), st.dates(),
)  # fmt: skip


@given(st.sampled_from([*COLUMNS, "price", "domain"]), cells)
def test_any_parquet_value_gives_a_row_or_an_error(key: str, value: object) -> None:
    table = {"group": "1", "query": "q", "document": "d", "click": 1, "price": 1.0, "domain": "x", key: value}
    buffer = io.BytesIO()
    with TemporaryDirectory() as name:
        path = Path(name) / "log.parquet"
        parquet.write_table(pa.table({name: [each] for name, each in table.items()}), buffer)
        path.write_bytes(buffer.getvalue())
        try:
            rows = read(path, Columns(features=["price"], others=["domain"]))
        except ClickLogError as error:
            assert str(error).startswith(str(path))
        else:
            assert len(rows) == 1


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_as_csv_give_rows_or_an_error(data: bytes) -> None:
    with TemporaryDirectory() as name:
        path = Path(name) / "log.csv"
        path.write_bytes(b"group,query,document,click\n1,a,b,0\n" + data)
        try:
            assert read(path)
        except ClickLogError as error:
            assert str(error).startswith(str(path))
