"""Any mixture of rows, in any format: each is in the output once, in order, with its score, or among the bad rows."""

import csv
import gzip
import io
import json
import math
from pathlib import Path

import pytest

from clickbert.bulk import rows
from clickbert.bulk.rows import MOST_BYTES, JobError
from tests.client.bulk.stubs import left_of, run, score_of

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, assume, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

pytestmark = pytest.mark.usefixtures("small_batches")
ANY_TEXT = st.text(max_size=20)  # surrogates, too
GOOD_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
OTHER = st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.lists(st.integers(), max_size=3)
by_files = settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def bad_of(output: Path) -> list[dict]:
    path = output.with_name(f"{output.name}.bad.jsonl")
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def fresh(tmp_path: Path) -> Path:
    for path in tmp_path.iterdir():
        path.unlink()
    return tmp_path


def is_text(value: object) -> bool:
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


@by_files
@given(
    st.lists(
        st.tuples(
            st.just(True), st.fixed_dictionaries({"query": GOOD_TEXT, "document": GOOD_TEXT}, optional={"a": OTHER})
        )
        | st.tuples(st.just(False), st.dictionaries(st.sampled_from(["query", "document", "b", "score"]), OTHER)),
        max_size=30,
    ),
    st.lists(st.binary(max_size=12).filter(lambda line: b"\n" not in line), max_size=4),
    st.booleans(),
    st.booleans(),
)
def test_json_lines(tmp_path, entries, rubbish, gzipped_in, gzipped_out):
    folder = fresh(tmp_path)
    lines = [
        json.dumps(row, ensure_ascii=index % 2 == 0).encode("utf-8", "surrogatepass")
        for index, (_, row) in enumerate(entries)
    ]
    lines = [b'{"query": "first", "document": "d"}', *lines]
    for index, line in enumerate(rubbish):
        lines.insert(1 + index * 3 % len(lines), line)
    content = b"\n".join(lines)
    source = folder / ("in.jsonl.gz" if gzipped_in else "in.jsonl")
    source.write_bytes(gzip.compress(content) if gzipped_in else content)
    output = folder / ("out.jsonl.gz" if gzipped_out else "out.jsonl")
    done = run(source, output)
    written = output.read_bytes()
    found = [json.loads(line) for line in (gzip.decompress(written) if gzipped_out else written).splitlines()]
    expected = [json.loads(line) for line in lines if _is_good(line)]
    assert len(found) == len(expected) == done.scored
    for row, original in zip(found, expected, strict=True):
        assert row.pop("score") == score_of(original["query"], original["document"])
        assert repr(row) == repr(original), "the fields stay, NaN and surrogates, too"
    bad_lines = [number for number, line in enumerate(lines, start=1) if line.strip(b" \t\r\n") and not _is_good(line)]
    assert [row["line"] for row in bad_of(output)] == bad_lines
    assert done.bad == len(bad_lines)
    assert left_of(output) == {"", ".bad.jsonl"} if bad_lines else {""}


def _is_good(line: bytes) -> bool:
    try:
        row = json.loads(line.decode())
    except ValueError:
        return False
    return isinstance(row, dict) and "score" not in row and is_text(row.get("query")) and is_text(row.get("document"))


@by_files
@given(
    st.lists(st.tuples(GOOD_TEXT, GOOD_TEXT, GOOD_TEXT).map(list) | st.lists(GOOD_TEXT, max_size=5), max_size=20),
    st.sampled_from(["\n", "\r\n", "\r\r\n"]),
    st.booleans(),
    st.booleans(),
)
def test_csv(tmp_path, records, line_break, quoted, with_bom):
    # Python's writer quotes a carriage return only where line breaks have one; else it would be part of the line break.
    assume(quoted or line_break != "\n" or not any("\r" in field for record in records for field in record))
    folder = fresh(tmp_path)
    written = io.StringIO(newline="")
    writer = csv.writer(written, lineterminator=line_break, quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)
    writer.writerows([["document", "x", "query"], ["d", "x", "q"], *records])
    source, output = folder / "in.csv", folder / "out.csv"
    source.write_bytes((b"\xef\xbb\xbf" if with_bom else b"") + written.getvalue().encode())
    done = run(source, output)
    assert output.read_bytes().endswith(line_break.encode())
    # Where a line break has two carriage returns, Python reads an empty row between them.
    found = [row for row in csv.reader(io.StringIO(output.read_bytes().decode(), newline=""), strict=True) if row]
    good = [["d", "x", "q"], *(record for record in records if len(record) == 3)]
    assert found == [["document", "x", "query", "score"]] + [
        [*record, repr(score_of(record[2], record[0]))] for record in good
    ]
    assert done.bad == len(bad_of(output)) == len([record for record in records if record and len(record) != 3])


@by_files
@given(
    st.lists(st.tuples(st.none() | GOOD_TEXT, st.none() | GOOD_TEXT, st.integers(0, 9)), max_size=30),
    st.integers(1, 9),
    st.sampled_from(["string", "dictionary", "string_view"]),
)
def test_parquet(tmp_path, values, group, kind):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    folder = fresh(tmp_path)
    values = [("q", "d", 1), *values]
    queries, documents, numbers = zip(*values, strict=True)
    texts = pa.array(queries, pa.string_view() if kind == "string_view" else pa.string())
    table = pa.table(
        {
            "number": pa.array(numbers, pa.int8()),
            "query": texts.dictionary_encode() if kind == "dictionary" else texts,
            "document": pa.array(documents, pa.large_string()),
        },
        metadata={b"kept": b"yes"},
    )
    source, output = folder / "in.parquet", folder / "out.parquet"
    pq.write_table(table, source, row_group_size=group)
    done = run(source, output)
    found = pq.read_table(output)
    good = [value for value in values if None not in value]
    assert found.schema.remove(found.schema.get_field_index("score")).equals(table.schema)
    assert [tuple(row.values()) for row in found.select(["query", "document", "number"]).to_pylist()] == good
    assert found.schema.metadata[b"kept"] == b"yes" and found.schema.field("score").type == pa.float64()
    assert found["score"].to_pylist() == [score_of(*value[:2]) for value in good]
    assert [row["line"] for row in bad_of(output)] == [n for n, value in enumerate(values, start=1) if None in value]
    assert done.scored == len(good)


@pytest.mark.parametrize("kind", ["string", "dictionary", "string_view"])
def test_bad_rows_in_parquet_do_not_make_the_output_larger(tmp_path, kind):
    """Each with a part of its own, the output would have the dictionary as often as there are parts."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    texts = pa.array([f"{number} " + "text " * 100 for number in range(1500)])
    texts = texts.dictionary_encode() if kind == "dictionary" else texts.cast(getattr(pa, kind)())
    documents = ["d" if number % 3 else None for number in range(1500)]
    pq.write_table(pa.table({"query": texts, "document": documents}), tmp_path / "in.parquet")
    done = run(tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert (done.scored, done.bad) == (1000, 500)
    groups = pq.ParquetFile(tmp_path / "out.parquet").metadata.num_row_groups
    assert groups <= (2 if kind == "string_view" else 1), "of views, what lies behind them counts with each batch"
    assert (tmp_path / "out.parquet").stat().st_size < 2 * (tmp_path / "in.parquet").stat().st_size


def test_a_parquet_file_of_text_that_is_not_utf8(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    texts = pa.array([b"fine", b"\xff", None]).view(pa.string())
    pq.write_table(pa.table({"query": texts, "document": ["a", "b", "c"]}), tmp_path / "in.parquet")
    done = run(tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert (done.scored, done.bad) == (1, 2)
    assert pq.read_table(tmp_path / "out.parquet")["document"].to_pylist() == ["a"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"nonsense", "not JSON: Expecting value at character 0"),
        (b'{"query": "q", "document": 7}', "'document' is no text"),
        (b'{"query": "q"}', "has no field 'document'"),
        (b'["query"]', "not a JSON object"),
        (b'{"query": "q", "document": "\\ud800"}', "'document' holds a lone surrogate at character 0"),
        (b'{"query": "caf\xe9", "document": "d"}', "not UTF-8 at byte 14"),
        (b"[" * 100_000, "JSON that is nested too deep"),
        (b'{"query": "q", "document": "d", "score": 1}', "has a field 'score' already"),
        (b'{"query": "q", "document": "%s"}' % (b"d" * MOST_BYTES), "longer than 4,194,304 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_why_a_line_is_bad(tmp_path, capsys, line, reason):
    good = b'{"query": "q", "document": "d", "big": %s}' % (b"9" * 5000)
    (tmp_path / "in.jsonl").write_bytes(b"\n".join([good, b"", line, good]))
    done = run(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert (done.scored, done.bad) == (2, 1)
    (bad,) = bad_of(tmp_path / "out.jsonl")
    assert (bad["file"], bad["line"], bad["reason"]) == (str(tmp_path / "in.jsonl"), 3, reason)
    assert bad["raw"][:8] == line.decode(errors="backslashreplace")[:8]
    assert capsys.readouterr().err == "", "no text of a row, and nothing else"
    scored = good[:-1] + b', "score": %b}\n' % repr(score_of("q", "d")).encode()
    assert (tmp_path / "out.jsonl").read_bytes() == scored * 2


def test_bad_csv_costs_only_itself(tmp_path):
    long = b"q,%s\n" % (b"d" * MOST_BYTES)
    middle = b'q,"d\n\nd"\nq\nq,"d"d\n\nq,\xff\n' + long
    (tmp_path / "in.csv").write_bytes(b"query,document\n" + middle + b"q,last\n" + b'q,"never closed\nq,d\n')
    done = run(tmp_path / "in.csv", tmp_path / "out.csv")
    scores = [repr(score_of("q", text)).encode() for text in ("d\n\nd", "last")]
    expected = b'query,document,score\nq,"d\n\nd",%b\nq,last,%b\n'
    assert (tmp_path / "out.csv").read_bytes() == expected % tuple(scores)
    assert [(row["line"], row["reason"]) for row in bad_of(tmp_path / "out.csv")] == [
        (5, "has 1 fields, expected 2"),
        (6, "not CSV: ',' expected after '\"'"),
        (8, "not UTF-8 at byte 2"),
        (9, f"longer than {MOST_BYTES:,} bytes"),
        (11, "not CSV: unexpected end of data"),
    ]
    assert done.rows == 7


def test_a_column_that_no_row_has_is_refused(tmp_path):
    (tmp_path / "in.jsonl").write_text("null\n" + '{"title": "secret", "query": "", "my secret": 1}\n' * 9)
    with pytest.raises(
        JobError,
        match=r"none of the first 10 rows of .*in.jsonl has a field 'document'; their fields are 'title', 'query',"
        r" one of 9 characters: name others with --query-column and --document-column$",
    ) as caught:
        run(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert "secret" not in str(caught.value) and left_of(tmp_path / "out.jsonl") == set()


@pytest.mark.parametrize(
    "first",
    [
        b'{"query": null, "document": "d"}\n' * 3000,
        b'{"query": "q", "document": "%s"}\n' % (b"d" * MOST_BYTES),
        b'{"query": 1, "document": "%s"}\n' % (b"d" * (MOST_BYTES - 99)),
        b"no\n" * 3000,
    ],
    ids=["nulls", "too long", "long and no text", "no JSON"],
)
def test_bad_rows_at_the_beginning_cost_only_themselves(tmp_path, first):
    (tmp_path / "in.jsonl").write_bytes(first + b'{"query": "q", "document": "d"}\n')
    done = run(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert (done.scored, done.bad) == (1, first.count(b"\n"))
    assert (tmp_path / "out.jsonl").read_bytes().count(b"\n") == 1


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_file_none_of_whose_rows_can_be_scored_is_told(tmp_path, ending):
    source, output = tmp_path / f"in.{ending}", tmp_path / f"out.{ending}"
    if ending == "parquet":
        pa = pytest.importorskip("pyarrow")
        texts = pa.nulls(2000, pa.string())
        pytest.importorskip("pyarrow.parquet").write_table(pa.table({"query": texts, "document": texts}), source)
    else:
        header, row = ("", '{"query": 7, "document": "d"}\n') if ending == "jsonl" else ("query,document\n", "q\n")
        source.write_text(header + row * 2000)
    done = run(source, output)
    assert not done.scored and done.bad == len(bad_of(output)) == 2000
    assert done.first_bad == f"line {bad_of(output)[0]['line']}: {bad_of(output)[0]['reason']}"
    if ending == "parquet":
        assert pytest.importorskip("pyarrow.parquet").read_table(output).shape == (0, 3)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r\r\n"])  # the last: Python on Windows without `newline=""`
def test_line_ends_stay(tmp_path, end):
    score = repr(score_of("q", "d"))
    for name, lines, expected in [
        ("jsonl", ['{"query": "q", "document": "d"}', "no"], [f'{{"query": "q", "document": "d", "score": {score}}}']),
        ("csv", ["query,document", "q,d", "no"], ["query,document,score", f"q,d,{score}"]),
    ]:
        (tmp_path / f"in.{name}").write_bytes(end.join([*lines, ""]).encode())
        run(tmp_path / f"in.{name}", tmp_path / f"out.{name}")
        assert (tmp_path / f"out.{name}").read_bytes() == end.join([*expected, ""]).encode()
        assert end not in bad_of(tmp_path / f"out.{name}")[0]["raw"]


def test_an_empty_file_is_an_empty_output(tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b"\n\n")
    assert run(tmp_path / "in.jsonl", tmp_path / "out.jsonl").rows == 0
    assert (tmp_path / "out.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.csv", b"", "has no header"),
        ("in.csv", b"secret,text\n", "has 0 columns 'query' among its 2"),
        ("in.csv", b"query,document,score\n", "has a column 'score' already"),
        ("in.csv", b"query,query,document\n", "has 2 columns 'query'"),
        ("in.jsonl.gz", b"not gzipped\n", "cannot be read on after line 0: Not a gzipped file"),
        (
            "in.jsonl.gz",
            gzip.compress(b'{"query": "q", "document": "d"}\n' * 9, mtime=0)[:-12],
            "cannot be read on after line",
        ),
        ("in.parquet", b"PAR1", "is no Parquet file"),
        ("in.txt", b"", "does not say its format"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    if name == "in.parquet":
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(JobError, match=message) as caught:
        run(tmp_path / name, tmp_path / name.replace("in", "out"))
    assert "secret" not in str(caught.value)


def test_a_parquet_file_needs_columns_of_text(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    for columns, message in [
        ({"query": ["q"], "document": [1]}, "'document' of strings, but has int64"),
        ({"query": ["q"]}, "'document' of strings, but has none"),
        ({"query": ["q"], "document": ["d"], "score": [1]}, "'score' already"),
    ]:
        pq.write_table(pa.table(columns), tmp_path / "in.parquet")
        with pytest.raises(JobError, match=message):
            run(tmp_path / "in.parquet", tmp_path / "out.parquet")


def test_batches_are_small_in_bytes_too(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "BATCH_PAIRS", 256)
    line = json.dumps({"query": "q", "document": "d", "page": "x" * 2**19})
    (tmp_path / "in.jsonl").write_text(f"{line}\n" * 9)
    sizes = []
    from tests.client.bulk.stubs import StubRanker

    run(tmp_path / "in.jsonl", tmp_path / "out.jsonl", StubRanker(lambda pairs: sizes.append(len(pairs))))
    assert sizes == [2, 2, 2, 2, 1]
    assert math.isclose((tmp_path / "out.jsonl").stat().st_size, 9 * len(line), rel_tol=0.01)
