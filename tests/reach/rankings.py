"""What a reranker should answer: for each question (index, score) pairs, best first."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from clickbert import Ranker
from tests.reach.questions import Question

Ranking = Sequence[tuple[int, float]]


def by_ranker(ranker: Ranker, questions: list[Question], top_k: int | None = None, **settings: bool) -> list[Ranking]:
    """What `Ranker.rank` answers."""
    asked = [ranker.rank(*question, top_k, **settings) for question in questions]
    return [[(item.index, item.score) for item in ranking] for ranking in asked]


def assert_same(rankings: Sequence[Ranking], wanted: Sequence[Ranking]) -> None:
    """The same order, of ties too, and the same scores."""
    assert [[index for index, _ in ranking] for ranking in rankings] == [
        [index for index, _ in ranking] for ranking in wanted
    ]
    assert [score for ranking in rankings for _, score in ranking] == pytest.approx(
        [score for ranking in wanted for _, score in ranking], abs=1e-6
    )
