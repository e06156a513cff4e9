"""How a version's scores and inputs were distributed on the evaluation log, and how far others are from that.

Values are counted in classes. A class is named by its upper bound, and holds what is above the class before and no
more than that, as Prometheus' `le` has it. Standard library only, and nothing else of this repository: the packed_cpu
backend gets a copy of this file.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isclose, isfinite, log

SCORES = tuple(f"{number / 20:.2f}" for number in range(1, 21))  # click probabilities
# The client has its own copy of these (`clickbert/wire/inputs.py`); a test holds them alike.
CANDIDATES = ("1", "2", "5", "10", "20", "50", "100", "200", "500", "+Inf")  # of a request
TOKENS = ("8", "16", "32", "64", "128", "256", "+Inf")  # of a pair, the three special ones included
LEAST = 0.0001  # a share counts as this at least: an empty class must not be infinitely far from one that is not


@dataclass(frozen=True)
class Expected:
    """What the evaluation log was to a version.

    Attributes:
        scores: share of the pairs by their click probability, in the classes `SCORES`; of this engine.
        candidates: share of the log's groups by how many candidates they have, in the classes `CANDIDATES`.
        tokens: share of the pairs by how many tokens they keep, in the classes `TOKENS`.
        truncated: share of the pairs of which a text was cut.
        unknown: share of [UNK] among the tokens, special ones included; a user text that is computed once is counted
            once a group.

    Raises:
        ValueError: shares of other classes, that are no shares, or that do not add up to 1.
    """

    scores: dict[str, float]
    candidates: dict[str, float]
    tokens: dict[str, float]
    truncated: float
    unknown: float

    def __post_init__(self) -> None:
        for name, classes in (("scores", SCORES), ("candidates", CANDIDATES), ("tokens", TOKENS)):
            found = getattr(self, name)
            if found.keys() != set(classes):
                raise ValueError(f"{name} has the classes {', '.join(found) or 'none'}, expected {', '.join(classes)}")
            if min(found.values()) < 0 or not isclose(sum(found.values()), 1, abs_tol=1e-6):
                raise ValueError(f"{name} has shares that do not add up to 1: {', '.join(map(str, found.values()))}")
        for name in ("truncated", "unknown"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a share from 0 to 1")

    def of_inputs(self) -> dict[str, object]:
        """What does not depend on the engine: the tokenizer carries it to the clients."""
        return {name: value for name, value in asdict(self).items() if name != "scores"}


def class_of(value: float, classes: Sequence[str]) -> str:
    """The class of a value: the first whose bound is not below it. It must not be above the last."""
    return classes[bisect_left(classes, value, key=float)]


def shares(values: Iterable[float], classes: Sequence[str]) -> dict[str, float]:
    """The share of the values, of which there must be one at least, by class."""
    counts = Counter(class_of(value, classes) for value in values)
    return {each: counts[each] / counts.total() for each in classes}


def population_stability_index(
    expected: Mapping[str, float], found: Mapping[str, float], least: float = LEAST
) -> float:
    """How far a distribution is from the expected one: the sum of (p - q) * ln(p / q) over the classes of both.

    It is 0 if they are equal, and the same if they change places. By custom, above 0.1 it is a shift to look into,
    above 0.25 another population (docs/decisions/0023-scores-are-counted-at-the-server.md).

    Args:
        expected: shares or counts by class. A class that one of the two lacks is empty there.
        found: the same of the other.
        least: what a share counts as at least.

    Raises:
        ValueError: a distribution is empty, or a number in it is negative or not finite.
    """
    for name, each in (("expected", expected), ("found", found)):
        if not all(isfinite(value) and value >= 0 for value in each.values()) or not sum(each.values()):
            raise ValueError(f"the {name} distribution is empty, or a number in it is negative or not finite")
    totals = sum(expected.values()), sum(found.values())
    index = 0.0
    for name in {*expected, *found}:
        q, p = (max(each.get(name, 0.0) / total, least) for each, total in zip((expected, found), totals, strict=True))
        index += (p - q) * log(p / q)
    return index
