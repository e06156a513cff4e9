"""The click log: what is read, and that every refusal names file, line, fault and remedy."""

import gzip
import json
from pathlib import Path

import pytest

from finetune.data.clicklog import ClickLogError, ClickRow, read_click_log

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
        ClickRow("g", "user", "candidate", 1.0, 1.0),
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


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{broken", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "holds list, not an object"),
        ({"group": "g", "query": "u", "click": 1}, "'document' is missing"),
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
        ("log.jsonl", b'{"group": "\xff"}', "not UTF-8"),
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
