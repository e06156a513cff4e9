"""MIND in its own layout: tabs, no header, no quotes."""

from collections import Counter
from pathlib import Path

import pytest

from finetune.data.clicklog import ClickLogError, ClickRow
from finetune.data.imports.mind import read_mind

NEWS = (
    'N1\tsports\ttennis\tThe "final" is today\tTwo meet again.\thttps://x/1\t[{"Label": "a"}]\t[]',
    "N2\tnews\tworld\tRain tomorrow\t\thttps://x/2\t[]\t[]",
    "N3\tfood\trecipes\tSoup in ten minutes\tWith leeks.\thttps://x/3\t[]\t[]",
)
BEHAVIORS = (
    "1\tU7\t11/15/2019 8:55:22 AM\tN1 N9 N2\tN3-1 N8-0 N1-0",
    "2\tU8\t11/11/2019 12:05:58 PM\t\tN2-0 N3-1",
)


def mind(folder: Path, behaviors: tuple[str, ...] = BEHAVIORS, news: tuple[str, ...] = NEWS) -> Path:
    (folder / "behaviors.tsv").write_text("\n".join(behaviors) + "\n", encoding="utf-8")
    (folder / "news.tsv").write_text("\n".join(news) + "\n", encoding="utf-8")
    return folder


def test_each_shown_news_item_becomes_a_row(tmp_path: Path) -> None:
    skipped: Counter[str] = Counter()
    rows = list(read_mind(mind(tmp_path), skipped=skipped))
    assert [(row.group, row.document, row.clicks, row.position) for row in rows] == [
        ("1", "Soup in ten minutes", 1.0, 1),
        ("1", 'The "final" is today', 0.0, 3),
        ("2", "Rain tomorrow", 0.0, 1),
        ("2", "Soup in ten minutes", 1.0, 2),
    ]
    query = 'Rain tomorrow ; The "final" is today'
    expected = ClickRow("1", query, "Soup in ten minutes", 1, 1, ("food",), 1, "U7", time=1573808122.0)
    assert rows[0] == expected, "and the history's last title comes first"
    assert rows[2].query == ""
    assert rows[2].time == 1573473958.0
    assert [row.line for row in rows] == [1, 1, 2, 2]
    assert skipped == {
        "clicks in a history, on unknown news": 1,
        "shown candidates, of unknown news": 1,
        "impressions without history (kept, with an empty query)": 1,
    }


def test_takes_the_last_titles_and_abstracts_if_asked(tmp_path: Path) -> None:
    rows = list(read_mind(mind(tmp_path), last=1, abstracts=True))
    assert rows[0].query == "Rain tomorrow"
    assert [row.document for row in rows[1:3]] == ['The "final" is today Two meet again.', "Rain tomorrow"]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("3\tU7\t11/15/2019 8:55:22 AM\tN1", "behaviors.tsv, line 2: has 4 columns of 5"),
        ("3\tU7\t2019-11-15\tN1\tN2-1", "behaviors.tsv, line 2: the time is '2019-11-15'; it must be like"),
        ("3\tU7\t11/15/2019 8:55:22 AM\tN1\tN2 N3", "line 2: 'N2' does not end in -0 or -1; take a part of MIND"),
        ("3\tU7\t11/15/2019 8:55:22 AM\tN1\tN2-2", "line 2: 'N2-2' does not end"),
        ("3\t\t11/15/2019 8:55:22 AM\tN1\tN2-1", "line 2: 'user' is empty"),
    ],
)
def test_refuses_a_broken_line_in_the_middle(tmp_path: Path, line: str, fault: str) -> None:
    rows = read_mind(mind(tmp_path, (BEHAVIORS[0], line, BEHAVIORS[1])))
    with pytest.raises(ClickLogError, match=fault.replace(".", r"\.")):
        list(rows)


def test_refuses_broken_news_and_another_encoding(tmp_path: Path) -> None:
    with pytest.raises(ClickLogError, match=r"news\.tsv, line 2: has 1 columns of 5"):
        list(read_mind(mind(tmp_path, news=(NEWS[0], "N2"))))
    mind(tmp_path)
    (tmp_path / "news.tsv").write_bytes("N1\ta\tb\tcaf\u00e9\t\n".encode("latin-1"))
    with pytest.raises(ClickLogError, match=r"news\.tsv, line 1: not UTF-8"):
        list(read_mind(tmp_path))
    (tmp_path / "news.tsv").unlink()
    with pytest.raises(ClickLogError, match=r"news\.tsv: cannot read: No such file"):
        list(read_mind(tmp_path))
