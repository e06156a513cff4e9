"""The description of a click log: its figures, its table, its page."""

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.describe.description import Description, describe, moment, quantile, tables
from finetune.data.describe.page import write_page
from finetune.data.row import ClickRow, parse_row

LINES = (
    {"group": "a", "query": "one two", "document": "x y z", "click": 1, "topic": ["tea", "shop"], "position": 1,
     "user": "u1", "time": "2026-01-01T10:00Z", "features": {"price": 2}, "domain": "x"},
    {"group": "a", "query": "one two", "document": "x y z", "click": 0, "topic": "tea", "position": 2,
     "user": "u1", "time": "2026-01-02T10:00Z", "features": {"price": 4}},
    {"group": "b", "query": " ", "document": "", "impressions": 8, "clicks": 2, "position": 2},
)  # fmt: skip


@pytest.fixture
def found() -> Description:
    return describe(parse_row(line, "here") for line in LINES)


def figures(found: Description) -> dict[str, dict[str, tuple[str, ...]]]:
    return {table.title: {name: values for name, *values in table.rows} for table in tables(found)}  # type: ignore[misc]


def test_counts_everything_once(found: Description) -> None:
    assert (found.rows, found.overall.clicks, found.overall.impressions) == (3, 3.0, 10.0)
    assert found.overall.value == pytest.approx(0.3)
    assert found.group_sizes == {2: 1, 1: 1}
    assert found.duplicates == 1
    assert found.empty == {"query": 1, "document": 1}
    assert found.lacking == {"topic": 1, "user": 1, "time": 1}
    assert found.users == 1
    assert found.words == {"query": {2: 2, 0: 1}, "document": {3: 2, 0: 1}}
    assert {place: (rate.clicks, rate.impressions) for place, rate in found.positions.items()} == {1: (1, 1), 2: (2, 9)}
    assert {topic: (rate.clicks, rate.impressions) for topic, rate in found.topics.items()} == {
        "tea": (1, 2),
        "shop": (1, 1),
    }
    assert len(found.days) == 2
    price = found.features["price"]
    assert (price.rows, price.least, price.mean, price.most) == (2, 2, 3, 4)
    assert found.others == {"domain": 1}


def test_the_table_has_the_figures(found: Description) -> None:
    shown = figures(found)
    counts = shown["The log"]
    assert counts["click rate"] == ["0.3000"]
    assert counts["rows that repeat a candidate of their group"] == ["1"]
    assert counts["groups of one candidate"] == ["1"]
    assert counts["first impression"] == ["2026-01-01 10:00"]
    assert counts["last impression"] == ["2026-01-02 10:00"]
    assert shown["Click rate by position"]["2"] == ["9", "2", "0.2222"]
    assert list(shown["Click rate by topic"]) == ["tea", "shop"], "the most shown first"
    assert shown["Features"]["price"] == ["2", "2", "3", "4"]
    assert shown["Other keys"]["domain"] == ["1"]
    lines = str(tables(found)[0]).splitlines()
    assert len({len(line) for line in lines[1:]}) == 1, "aligned"


def test_a_plain_log_has_no_tables_of_what_it_lacks() -> None:
    plain = describe([ClickRow("a", "q", "d", 0, 1), ClickRow("a", "q", "e", 0, 1)])
    assert list(figures(plain)) == ["The log", "Lengths, in words"]
    assert "first impression" not in figures(plain)["The log"]


def test_long_lists_are_cut_and_say_so() -> None:
    rows = [ClickRow("a", "q", f"d{place}", 0, 1, topics=(f"t{place}",), position=place) for place in range(1, 31)]
    titles = [table.title for table in tables(describe(rows))]
    assert "Click rate by position (the first 20 of 30)" in titles
    assert "Click rate by topic (the first 20 of 30)" in titles


def test_texts_that_join_alike_are_no_duplicates() -> None:
    assert describe([ClickRow("a", "bc", "d", 0, 1), ClickRow("ab", "c", "d", 0, 1)]).duplicates == 0


@given(st.lists(st.integers(0, 50), min_size=1), st.floats(0, 1))
def test_quantiles_are_numpys(values: list[int], share: float) -> None:
    expected = np.quantile(values, share, method="inverted_cdf")
    # (where share * size is a whole number but for rounding, either neighbour is right)
    near = {np.quantile(values, min(1, max(0, share + small)), method="inverted_cdf") for small in (-1e-9, 1e-9)}
    assert quantile(Counter(values), share) in {expected, *near}


def test_moments_are_utc() -> None:
    assert (moment(0), moment(-60), moment(None)) == ("1970-01-01 00:00", "1969-12-31 23:59", "-")


class Reader(HTMLParser):
    """Collects what a page would load, and its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_the_page_has_tables_and_pictures_and_loads_nothing(tmp_path: Path, found: Description) -> None:
    path = tmp_path / "new" / "page.html"
    write_page(path, Path("log.jsonl"), found)
    text = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert reader.elements["figure"] == reader.elements["svg"] == 6
    ids = re.findall(r'\bid="([^"]*)"', path.read_text(encoding="utf-8"))
    assert len(ids) == len(set(ids)) > 6, "no picture refers to another's shapes"
    assert reader.elements["table"] == len(tables(found))
    assert reader.elements["script"] == reader.elements["link"] == reader.elements["img"] == 0
    assert all(load.startswith("#") for load in reader.loads), "all that it shows is inside"
    assert not re.search(r"url\((?!#)|@import", text)
    write_page(tmp_path / "again.html", Path("log.jsonl"), found)
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == text
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


def test_a_hostile_log_draws_a_harmless_page(tmp_path: Path) -> None:
    topics = ("<script>alert(1)</script>", "$\\frac{$", "\x00\x0b", "\U0001f600", "&amp;", "x" * 500)
    rows = [
        parse_row({**line, "group": "<script>", "topic": list(topics), "features": {"<b>": 1e308}}, "here")
        for line in json.loads(json.dumps(LINES))
    ]
    write_page(tmp_path / "page.html", Path("<script>.jsonl"), describe(rows))
    reader = Reader()
    reader.feed((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert reader.elements["script"] == reader.elements["b"] == 0


def test_a_plain_log_draws_fewer_pictures(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", Path("log"), describe([ClickRow("a", "", "", 0, 1)]))
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<svg ") == 3
