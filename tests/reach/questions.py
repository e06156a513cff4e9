"""Queries with their candidates, as odd as callers' texts may be."""

from __future__ import annotations

from itertools import groupby

from finetune.data.clicklog import ClickRow

Question = tuple[str, list[str]]
AWKWARD = [
    "",
    "   ",
    "我想买一双跑步鞋、轻便透气",
    "она сказала: «да»",
    'she said "yes", it\'s {"a": [1, 2]} \\ <b>&amp;</b>',
    "w1 👟🏃‍♀️ w2 🇨🇭",
    "w3\tw4\nw5\r\nw6\u2028w7\x00w8",
    "w9 " * 5000,
    "e\u0301 \ufeff \u202eabc\u202c",
]


def make_questions(rows: list[ClickRow]) -> list[Question]:
    """A question for each impression: its query or an awkward one, its documents, four awkward ones, and one twice."""
    questions = []
    for number, (_, group) in enumerate(groupby(rows, key=lambda row: row.group)):
        of_group = list(group)
        awkward = [AWKWARD[(number + place) % len(AWKWARD)] for place in range(4)]
        query = awkward[0] if number % 3 == 2 else of_group[0].query
        documents = [row.document for row in of_group]
        questions.append((query, [*awkward[:2], *documents, *awkward[2:], documents[0]]))
    return questions
