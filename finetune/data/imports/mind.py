"""MIND, Microsoft's news log, read as the click log: https://msnews.github.io

A folder holds `behaviors.tsv` (impression, user, time, history, shown news) and `news.tsv` (news, category,
subcategory, title, abstract, ...). Each shown news item becomes a row:

    group       the impression's number
    query       `user_text` of the history's titles
    document    the title, or title and abstract
    click       the mark behind the shown news item: N123-1
    topic       the category
    position    its place in the impression. MIND's authors shuffled these, so no position bias is to be found there
    user, time  as given; MIND names no time zone, so it is taken as UTC

Real files name news that `news.tsv` does not have: these are left out, and counted. A user without history has an empty
query. The news are held in memory, the behaviors are not.
"""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from finetune.data.clicklog import read_lines
from finetune.data.imports.tables import Watch
from finetune.data.row import ClickLogError, ClickRow, parse_row
from finetune.data.user_text import user_text

BEHAVIORS, NEWS = "behaviors.tsv", "news.tsv"
TIME = "%m/%d/%Y %I:%M:%S %p"  # 11/15/2019 8:55:22 AM


class _News(NamedTuple):
    topic: str
    title: str
    document: str


def read_mind(
    folder: Path, last: int = 12, abstracts: bool = False, skipped: Counter[str] | None = None, watch: Watch = None
) -> Iterator[ClickRow]:
    """Read MIND's rows. `last` is how many titles of the history make the user text; `abstracts` adds them to titles.

    `skipped` counts, in words, what was left out. `watch` is told how many bytes of the behaviors were read.

    Raises:
        ClickLogError: a file cannot be read, or a line is not MIND's.
    """
    skipped = Counter() if skipped is None else skipped
    news = _read_news(folder / NEWS, abstracts)
    path = folder / BEHAVIORS
    for number, line in enumerate(read_lines(path, watch), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        impression, user, time, history, shown = _cells(line, 5, where)[:5]
        clicked = history.split()
        titles = [news[item].title for item in clicked if item in news]
        skipped["clicks in a history, on unknown news"] += len(clicked) - len(titles)
        skipped["impressions without history (kept, with an empty query)"] += not titles
        row = {
            "group": impression,
            "query": user_text(titles, last),
            "user": user,
            "time": _time(time, where),
        }
        for position, mark in enumerate(shown.split(), start=1):
            item, dash, click = mark.rpartition("-")
            if not dash or click not in ("0", "1"):
                raise ClickLogError(
                    f"{where}: {mark!r} does not end in -0 or -1; take a part of MIND with clicks, not its test part"
                )
            if item not in news:
                skipped["shown candidates, of unknown news"] += 1
                continue
            fields = {**row, "document": news[item].document, "click": int(click), "position": position}
            yield parse_row({**fields, "topic": news[item].topic or None}, where, number)


def _read_news(path: Path, abstracts: bool) -> dict[str, _News]:
    news = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        item, topic, _, title, abstract = _cells(line, 5, f"{path}, line {number}")[:5]
        title, abstract = title.strip(), abstract.strip()
        document = f"{title} {abstract}".strip() if abstracts else title
        news[item] = _News(topic, title, document)
    if not news:
        raise ClickLogError(f"{path}: is empty; download MIND again")
    return news


def _cells(line: str, least: int, where: str) -> list[str]:
    cells = line.rstrip("\r\n").split("\t")  # (MIND quotes nothing, so this is no CSV)
    if len(cells) < least:
        raise ClickLogError(f"{where}: has {len(cells)} columns of {least}; each line needs as many, with tabs between")
    return cells


def _time(text: str, where: str) -> float:
    try:
        return datetime.strptime(text, TIME).replace(tzinfo=UTC).timestamp()
    except ValueError as error:
        raise ClickLogError(f"{where}: the time is {text!r}; it must be like '11/15/2019 8:55:22 AM'") from error
