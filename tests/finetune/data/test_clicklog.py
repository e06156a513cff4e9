"""The click log: what is read and written, and that every refusal names file, line, fault and remedy."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.clicklog import ClickLogError, ClickRow, iterate_click_log, read_click_log
from finetune.data.row import KEYS, format_row, parse_row

GOOD = {"group": "g", "query": "user", "document": "candidate", "click": 1}


def counted(**counts: object) -> dict[str, object]:
    return {"group": "g", "query": "user", "document": "candidate", **counts}


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_reads_clicks_and_counts_in_order(tmp_path: Path) -> None:
    path = write(
        tmp_path / "log.jsonl", {**GOOD, "time": 7}, "", counted(impressions=40, clicks=3), {**GOOD, "click": 0}
    )
    assert read_click_log(path) == [
        ClickRow("g", "user", "candidate", 1.0, 1.0, time=7.0),
        ClickRow("g", "user", "candidate", 3.0, 40.0),
        ClickRow("g", "user", "candidate", 0.0, 1.0),
    ]


def test_reads_gzip_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + json.dumps(GOOD).encode()))
    assert read_click_log(path) == [ClickRow("g", "user", "candidate", 1.0, 1.0)]


def test_keeps_texts_exactly(tmp_path: Path) -> None:
    text = "  caf\u00e9 \u2028 \U0001f600\t"
    (row,) = read_click_log(write(tmp_path / "log.jsonl", {**GOOD, "query": text, "document": ""}))
    assert (row.query, row.document) == (text, "")


def test_reads_the_further_fields(tmp_path: Path) -> None:
    fields = {
        **GOOD,
        "topic": ["sport", "tennis", "sport"],
        "position": 3,
        "user": "u7",
        "time": "2026-01-01T01:00:00+01:00",
        "features": {"price": 9.5, "age": 3},
        "domain": "shop",
        "rank": 2,
        "premium": True,
        "ignored": [1],
        "unknown": None,
    }
    nulls = {**GOOD, "topic": None, "position": None, "user": None, "time": None, "features": None}
    row, plain = read_click_log(write(tmp_path / "log.jsonl", "", fields, nulls))
    assert row.topics == ("sport", "tennis")
    assert (row.position, row.user, row.time) == (3, "u7", 1767225600.0)
    assert row.features == {"price": 9.5, "age": 3.0}
    assert row.others == {"domain": "shop", "rank": "2", "premium": "true"}
    assert row.line == 2
    assert plain == ClickRow("g", "user", "candidate", 1.0, 1.0)


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        (1767225600.5, 1767225600.5),
        ("2026-01-01", 1767225600),
        ("2026-01-01 00:00:00", 1767225600),
        ("2026-01-01T00:00:00Z", 1767225600),
        ("2025-12-31T19:00:00-05:00", 1767225600),
        ("1969-12-31T23:59:59Z", -1),
    ],
)
def test_reads_times_without_an_offset_as_utc(tmp_path: Path, time: object, seconds: float) -> None:
    (row,) = read_click_log(write(tmp_path / "log.jsonl", {**GOOD, "time": time}))
    assert row.time == seconds


def test_importing_it_imports_nothing_heavy() -> None:
    script = "import sys, finetune.data.clicklog; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "pyarrow", "numpy", "tqdm"} & set(done.stdout.split())


def test_a_row_is_read_before_the_next_line_is(tmp_path: Path) -> None:
    rows = iterate_click_log(write(tmp_path / "log.jsonl", GOOD, "{broken"))
    assert next(rows).line == 1
    with pytest.raises(ClickLogError, match="line 2: not JSON"):
        next(rows)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)
texts = st.text(max_size=20)
numbers = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(min_size=1, max_size=10)
rows_of_a_log = st.builds(
    ClickRow,
    group=names,
    query=texts,
    document=texts,
    clicks=st.floats(0, 1) | st.sampled_from([0.0, 1.0, 40.0]),
    impressions=st.just(1.0) | st.floats(40, 1e9),
    topics=st.lists(names, unique=True, max_size=3).map(tuple),
    position=st.none() | st.integers(1, 10**9),
    user=st.none() | names,
    time=st.none() | st.floats(-1e10, 1e11),
    features=st.dictionaries(texts, numbers, max_size=3),
    others=st.dictionaries(texts.filter(lambda key: key not in KEYS), texts, max_size=3),
).filter(lambda row: row.clicks <= row.impressions)


@given(rows_of_a_log)
def test_a_written_row_reads_as_an_equal_row(row: ClickRow) -> None:
    line = format_row(row)
    assert line.endswith("\n")
    assert "\n" not in line[:-1]
    assert parse_row(json.loads(line), "here") == row


@given(st.dictionaries(st.sampled_from(KEYS) | st.text(st.characters(), max_size=5), json_values), st.booleans())
def test_any_value_in_any_field_gives_a_row_or_an_error(fields: dict[str, object], complete: bool) -> None:
    fields = {**GOOD, **fields} if complete else fields
    try:
        row = parse_row(fields, "file, line 7")
    except ClickLogError as error:
        assert str(error).startswith("file, line 7: ")
    else:
        assert parse_row(json.loads(format_row(row)), "here") == row


@pytest.mark.parametrize("key", KEYS)
@given(value=json_values)
def test_any_value_in_one_field_gives_a_row_or_an_error(key: str, value: object) -> None:
    try:
        parse_row({**GOOD, key: value}, "file, line 7")
    except ClickLogError as error:
        assert str(error).startswith("file, line 7: ")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{broken", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "holds list, not an object"),
        ({"group": "g", "query": "u", "click": 1}, "'document' is missing"),
        ({**GOOD, "group": ""}, "'group' is empty; name the impression"),
        ({**GOOD, "query": 5}, "'query' is 5, not a string"),
        ({**GOOD, "query": None}, "'query' is None, not a string"),
        ({**GOOD, "document": "\ud83d"}, "half a character"),
        ({**GOOD, "click": 2}, "'click' is 2; it must be 0 or 1"),
        ({**GOOD, "click": "1"}, "'click' is '1'; it must be 0 or 1"),
        ({**GOOD, "click": True}, "'click' is True; it must be 0 or 1"),
        ({**GOOD, "clicks": 1}, "both 'click' and 'clicks'"),
        (counted(), "'click' is missing"),
        (counted(clicks=1), "'clicks' stands alone"),
        (counted(impressions=3), "'impressions' stands alone"),
        (counted(impressions=3, clicks=4), "4 clicks of 3 impressions"),
        (counted(impressions=3, clicks=-1), "'clicks' is -1; a count must be finite and not negative"),
        (counted(impressions=float("inf"), clicks=1), "'impressions' is inf; a count must be finite"),
        (counted(impressions=3, clicks=float("nan")), "'clicks' is nan; a count must be finite"),
        (counted(impressions=10**400, clicks=1), "a count must be finite"),
        (counted(impressions="3", clicks=1), "'impressions' is '3', not a number"),
        (counted(impressions=True, clicks=True), "'impressions' is True, not a number"),
        (counted(impressions=0, clicks=0), "'impressions' is 0"),
        ({**GOOD, "topic": 5}, "'topic' is 5; write a string"),
        ({**GOOD, "topic": ["sport", 5]}, "'topic' is 5, not a string"),
        ({**GOOD, "topic": ""}, "'topic' is empty"),
        ({**GOOD, "position": 0}, "'position' is 0; it must be a whole number"),
        ({**GOOD, "position": 1.5}, "'position' is 1.5"),
        ({**GOOD, "position": True}, "'position' is True"),
        ({**GOOD, "position": "1"}, "'position' is '1'"),
        ({**GOOD, "user": 7}, "'user' is 7, not a string"),
        ({**GOOD, "user": ""}, "'user' is empty"),
        ({**GOOD, "time": "yesterday"}, "'time' is 'yesterday', not a time"),
        ({**GOOD, "time": True}, "'time' is True, not a time"),
        ({**GOOD, "time": float("nan")}, "'time' is nan, not a time"),
        ({**GOOD, "time": 1767225600000}, "not milliseconds"),
        ({**GOOD, "features": [1]}, "'features' is [1], not an object"),
        ({**GOOD, "features": {"price": "9"}}, "the feature 'price' is '9'; it must be a finite number"),
        ({**GOOD, "features": {"price": float("inf")}}, "the feature 'price' is inf"),
        ({**GOOD, "domain": "\ud83d"}, "'domain' holds half a character"),
    ],
)
def test_refuses_a_bad_line_by_number(tmp_path: Path, line: object, fault: str) -> None:
    path = write(tmp_path / "log.jsonl", GOOD, line)
    with pytest.raises(ClickLogError) as caught:
        read_click_log(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 2: ")
    assert fault in message
    assert ";" in message or "must be" in message, "the message must say what to do"


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("log.jsonl", b"", "empty"),
        ("log.jsonl", b"\n \n", "empty"),
        ("log.jsonl", b'{"group": "\xff"}', "line 1: not UTF-8"),
        ("log.jsonl", json.dumps(GOOD).encode() + b'\n\n{"group": "caf\xe9"}\n', "line 3: not UTF-8"),
        ("log.jsonl", json.dumps(GOOD).encode("utf-16"), "line 1: not UTF-8"),
        ("log.jsonl.gz", b"plain text", "cannot read"),
        # (no time in the bytes: they are in the test's name, and pytest-xdist's processes must find the same names)
        ("log.jsonl.gz", gzip.compress(json.dumps(GOOD).encode(), mtime=0)[:-12], "cannot read"),
        ("log.jsonl", None, "No such file"),
    ],
)
def test_refuses_a_bad_file_by_name(tmp_path: Path, name: str, content: bytes | None, fault: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ClickLogError, match=fault) as caught:
        read_click_log(path)
    assert str(path) in str(caught.value)
