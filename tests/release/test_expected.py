"""Classes are as Prometheus' `le` has them, and the population stability index is by its definition."""

from __future__ import annotations

from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from release.expected import (
    CANDIDATES,
    LEAST,
    SCORES,
    TOKENS,
    Expected,
    class_of,
    population_stability_index,
    shares,
)
from tests.release.examples import EXPECTED


@pytest.mark.parametrize(
    ("value", "name"),
    [(0.0, "0.05"), (0.05, "0.05"), (0.0500001, "0.10"), (0.1, "0.10"), (0.15, "0.15"), (0.999, "1.00"), (1.0, "1.00")],
)
def test_a_class_has_its_upper_bound(value: float, name: str) -> None:
    assert class_of(value, SCORES) == name


def test_a_class_without_a_bound_has_the_rest() -> None:
    assert [class_of(value, CANDIDATES) for value in (1, 3, 500, 501)] == ["1", "5", "500", "+Inf"]


@given(st.lists(st.floats(0, 1), min_size=1))
def test_every_value_is_in_the_one_class_between_whose_bounds_it_lies(values: list[float]) -> None:
    found = shares(values, SCORES)
    assert tuple(found) == SCORES
    lower = -1.0
    for name, share in found.items():
        inside = sum(lower < value <= float(name) for value in values)
        assert share == inside / len(values)
        lower = float(name)


def test_equal_distributions_have_the_index_0_and_a_shifted_one_a_large_one() -> None:
    expected = dict.fromkeys(SCORES, 0.05)
    assert population_stability_index(expected, dict.fromkeys(SCORES, 7.0)) == pytest.approx(0, abs=1e-12)
    shifted = dict(zip(SCORES, [0.0] * 4 + [0.05] * 15 + [0.25], strict=True))
    assert population_stability_index(expected, shifted) > 0.25


def test_the_index_is_that_of_its_definition() -> None:
    assert population_stability_index({"a": 1, "b": 3}, {"a": 2, "b": 2}) == pytest.approx(
        (0.5 - 0.25) * log(0.5 / 0.25) + (0.5 - 0.75) * log(0.5 / 0.75)
    )
    assert population_stability_index({"a": 1.0}, {"b": 1.0}) == pytest.approx(2 * (1 - LEAST) * log(1 / LEAST))


COUNTS = st.lists(st.integers(0, 1000), min_size=20, max_size=20).filter(any)


@given(COUNTS, COUNTS)
def test_the_index_is_never_negative_and_the_same_both_ways(first: list[int], second: list[int]) -> None:
    one, other = (dict(zip(SCORES, map(float, counts), strict=True)) for counts in (first, second))
    index = population_stability_index(one, other)
    assert index >= 0
    assert index == pytest.approx(population_stability_index(other, one))
    assert population_stability_index(one, one) == 0


@pytest.mark.parametrize("wrong", [{}, {"1.00": 0.0}, {"1.00": float("nan")}, {"0.05": -1.0, "1.00": 2.0}])
def test_an_index_of_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="the found distribution is empty"):
        population_stability_index({"1.00": 1.0}, wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": {"0.50": 0.5, "1.00": 0.5}}, "scores has the classes 0.50, 1.00, expected 0.05, 0.10"),
        ({"candidates": {}}, "candidates has the classes none"),
        ({"tokens": dict.fromkeys(TOKENS, 0.5)}, "tokens has shares that do not add up to 1"),
        ({"tokens": dict.fromkeys(TOKENS, 0.0) | {"8": -1.0, "16": 2.0}}, "tokens has shares that do not add up to 1"),
        ({"tokens": dict.fromkeys(TOKENS, float("nan"))}, "tokens has shares that do not add up to 1"),
        ({"truncated": 1.5}, "truncated is 1.5, expected a share"),
        ({"unknown": float("nan")}, "unknown is nan, expected a share"),
    ],
)
def test_what_is_no_distribution_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Expected(**(vars(EXPECTED) | changes))  # type: ignore[arg-type]


def test_what_the_clients_get_is_of_the_inputs_alone() -> None:
    assert EXPECTED.of_inputs().keys() == {"candidates", "tokens", "truncated", "unknown"}
