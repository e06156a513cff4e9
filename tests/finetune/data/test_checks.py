"""The warnings about a click log that reads without an error."""

from dataclasses import replace

import pytest

from finetune.data.checks import check_log, check_splits
from finetune.data.row import ClickRow

GOOD = (("a", "q", "one"), ("a", "q", "two"), ("b", "q", "one"), ("b", "q", "two"))


def rows(*texts: tuple[str, str, str], clicks: tuple[float, ...] = (0, 1)) -> list[ClickRow]:
    """Make rows of group, query and document, on the lines of a file, clicked in turns."""
    return [
        ClickRow(*fields, clicks=clicks[number % len(clicks)], impressions=1, line=number)
        for number, fields in enumerate(texts, start=1)
    ]


def test_a_good_log_gives_no_warning() -> None:
    assert check_log(rows(*GOOD)) == check_log([]) == []


@pytest.mark.parametrize(
    ("log", "warning"),
    [
        (rows(("a", "q", "one"), ("a", "q", " ")), "1 row has an empty document, the first on line 2"),
        (rows(("a", "", "one"), ("a", "", "two")), "2 rows have an empty query, the first on line 1"),
        (rows(*GOOD, ("c", "q", "one")), "1 group has one candidate, the first on line 5"),
        (rows(*GOOD, *GOOD[2:]), "2 rows repeat a candidate of the same group, the first on line 5"),
        (rows(*GOOD, clicks=(0,)), "no row has a click"),
        (rows(*GOOD, clicks=(1,)), "every impression has a click"),
    ],
)
def test_warns_of(log: list[ClickRow], warning: str) -> None:
    assert check_log(log) == [warning]


def test_warns_of_topics_that_only_dev_has() -> None:
    train = [replace(row, topics=("tea", "soup")) for row in rows(*GOOD)]
    dev = [replace(row, group="c", topics=("tea", topic)) for row, topic in zip(train, "yxxy", strict=True)]
    assert check_splits(train, dev) == [
        "topic 'y' is only in dev, first on line 1",
        "topic 'x' is only in dev, first on line 2",
    ]
    many = [replace(row, topics=tuple("abcdefg")) for row in dev]
    assert check_splits(train, many)[-1] == "2 more topics are only in dev"
    assert len(check_splits(train, many)) == 6


def test_warns_of_groups_and_users_in_both() -> None:
    train = [replace(row, user=f"u{row.group}") for row in rows(*GOOD)]
    dev = [replace(train[0], group="c"), replace(train[3], line=9), replace(train[2], user=None, line=10)]
    assert check_splits(train, dev) == [
        "1 group is in both train and dev, the first on line 9 of dev",
        "2 users are in both train and dev, the first on line 1 of dev",
    ]
    assert check_splits(rows(*GOOD[:2]), rows(*GOOD[2:])) == [], "rows without a user share none"
