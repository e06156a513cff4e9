"""What is good, bad or open: beyond a limit is not enough where chance explains it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.canary.judging import BAD, GOOD, OPEN, Limits, Side, drift, judge, judge_model, judge_scores, p99, wilson

LIMITS = Limits(errors=0.01, p99=1.5, drift=0.25, least_calls=300)
FAST = {(10.0, 11.0): 0.98, (40.0, 41.0): 0.02}
SLOW = {(10.0, 11.0): 0.95, (400.0, 410.0): 0.05}
LOW, HIGH = {"0.10": 0.9, "0.90": 0.1}, {"0.10": 0.1, "0.90": 0.9}
HISTOGRAM = st.dictionaries(st.sampled_from([f"{n / 20:.2f}" for n in range(1, 21)]), st.integers(1, 10**6), min_size=1)


def side(
    calls: int,
    errors: int = 0,
    times: Mapping[tuple[float, float], float] = FAST,
    scores: Mapping[str, float] = LOW,
    refused: int = 0,
) -> Side:
    """One that had so many calls, with ten pairs each."""
    return Side(
        calls - errors,
        errors,
        {bucket: round(share * calls) for bucket, share in times.items()},
        {("clickbert_onnx", up_to): round(share * calls * 10) for up_to, share in scores.items()},
        refused,
        {"clickbert_onnx": calls - refused},
    )


CASES = [
    ("alike", side(1000), side(300), [GOOD, GOOD, GOOD, GOOD]),
    ("too few calls", side(1000), side(20), [OPEN, OPEN, OPEN, OPEN]),
    ("too few of the stable one", side(20), side(300), [OPEN, OPEN, OPEN, OPEN]),
    ("no calls", Side(), Side(), [OPEN, OPEN, OPEN, OPEN]),
    ("one error of 20 is no 5 %", side(1000), side(20, 1), [OPEN, OPEN, OPEN, OPEN]),
    ("each of 20 is an error", side(1000), side(20, 20), [BAD, OPEN, OPEN, OPEN]),
    ("2 % of 300 may be chance", side(1000), side(300, 6), [OPEN, GOOD, GOOD, GOOD]),
    ("2 % of 20,000 is none", side(20000), side(20000, 400), [BAD, GOOD, GOOD, GOOD]),
    ("both fail as often", side(1000, 100), side(300, 30), [GOOD, GOOD, GOOD, GOOD]),
    ("slow", side(1000), side(1000, times=SLOW), [GOOD, GOOD, BAD, GOOD]),
    ("slow, but few calls", side(1000), side(100, times=SLOW), [OPEN, OPEN, OPEN, OPEN]),
    ("other scores", side(1000), side(1000, scores=HIGH), [GOOD, GOOD, GOOD, BAD]),
    ("no scores", side(1000), side(1000, scores={}), [GOOD, GOOD, GOOD, OPEN]),
    ("no times", side(1000), side(1000, times={}), [GOOD, GOOD, OPEN, GOOD]),
    ("its servers refuse", side(1000), side(1000, refused=300), [GOOD, BAD, GOOD, GOOD]),
]


@pytest.mark.parametrize("stable, canary, expected", [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_figure_is_bad_only_where_chance_does_not_explain_it(stable: Side, canary: Side, expected: list[str]) -> None:
    assert [each.verdict for each in judge(stable, canary, LIMITS, same_calls=False, passed=1.0)] == expected


def test_a_drift_that_other_calls_may_explain_is_bad_for_the_same_calls() -> None:
    stable, canary = side(300), side(300, scores={"0.10": 0.7, "0.90": 0.3})
    assert judge_scores(stable, canary, LIMITS, same_calls=False, passed=1.0).verdict == OPEN
    assert judge_scores(stable, canary, LIMITS, same_calls=True, passed=1.0).verdict == BAD


def test_the_model_that_drifted_most_counts() -> None:
    both = {("a", "0.10"): 1000, ("b", "0.10"): 1000}
    answered = {"a": 500, "b": 500}
    other = Side(1000, 0, {}, both | {("b", "0.90"): 2000}, answered=answered)
    found = judge_scores(Side(1000, 0, {}, both, answered=answered), other, LIMITS, same_calls=True, passed=1.0)
    assert found.verdict == BAD and "drift of a 0.000, of b" in found.told


@pytest.mark.parametrize("calls", [(50, 50), (50, 4950), (100, 100), (300, 300)])
def test_few_calls_of_a_release_that_is_alike_are_not_bad(calls: tuple[int, int]) -> None:
    """The pairs of each call have all the same score, which is the worst: any of the classes is as likely."""
    drawn, classes = random.Random(1), [f"{number / 20:.2f}" for number in range(1, 21)]
    limits = Limits(errors=0.01, p99=1.5, drift=0.25, least_calls=50)
    verdicts = Counter()
    for _ in range(1000):
        one, other = (Counter(drawn.choices(classes, k=number)) for number in calls)
        stable, canary = (
            Side(scores={("a", name): 10 * count for name, count in found.items()}, answered={"a": found.total()})
            for found in (other, one)
        )
        verdicts[judge_model("a", stable, canary, limits, same_calls=False)[0]] += 1
    assert verdicts[BAD] <= 1


def test_a_release_with_other_scores_is_bad_after_few_calls_too() -> None:
    limits = Limits(errors=0.01, p99=1.5, drift=0.25, least_calls=50)
    stable, canary = side(4950), side(50, scores=HIGH)
    assert judge_scores(stable, canary, limits, same_calls=False, passed=1.0).verdict == BAD


def test_what_may_be_chance_says_how_much() -> None:
    found = judge_scores(side(300), side(300, scores={"0.10": 0.7, "0.90": 0.3}), LIMITS, same_calls=False, passed=1.0)
    assert found.told == "drift of clickbert_onnx 0.270, of which chance may make 0.292"


def two_models(a: int, b: int, moved: Sequence[str] = ()) -> Side:
    """One with so many requests of each model, of which those `moved` have other scores."""
    scores = {(model, "0.90" if model in moved else "0.10"): calls for model, calls in (("a", a), ("b", b)) if calls}
    return Side(a + b, 0, {}, scores, answered={"a": a, "b": b})


@pytest.mark.parametrize(
    "stable, canary, verdict, told",
    [
        (two_models(9900, 100), two_models(5000, 9, ["b"]), GOOD, "without b: asked too rarely"),
        (two_models(9900, 100), two_models(5000, 50, ["a"]), BAD, "without b"),
        (two_models(9900, 400), two_models(5000, 9), GOOD, "without b"),
        (two_models(5000, 5000), two_models(5000, 0), OPEN, "of b unknown"),
        (two_models(100, 100), two_models(100, 100), OPEN, "without a, b"),
        (two_models(5000, 400), two_models(5000, 400, ["b"]), BAD, "of b"),
    ],
    ids=["rare one moved", "frequent one moved", "rare at the canary", "never answered", "all rare", "second moved"],
)
def test_a_model_that_is_asked_too_rarely_is_left_out_and_named(
    stable: Side, canary: Side, verdict: str, told: str
) -> None:
    found = judge_scores(stable, canary, LIMITS, same_calls=False, passed=1.0)
    assert found.verdict == verdict and told in found.told


@pytest.mark.parametrize("calls, passed, verdict", [(240, 120 / 1800, OPEN), (240, 1.0, GOOD), (10, 120 / 1800, GOOD)])
def test_a_model_that_will_be_asked_often_enough_is_waited_for(calls: int, passed: float, verdict: str) -> None:
    """Two calls a second: 300 of them within the patience, though not yet."""
    stable, canary = two_models(9900, calls), two_models(9900, calls, ["b"])
    assert judge_scores(stable, canary, LIMITS, same_calls=True, passed=passed).verdict == verdict


def test_patience_does_not_end_because_of_a_model_that_is_asked_just_often_enough() -> None:
    """305 requests are expected, and 295 came."""
    found = judge_scores(two_models(9900, 305), two_models(9900, 295), LIMITS, same_calls=False, passed=1.0)
    assert found.verdict == GOOD and "without b: asked too rarely" in found.told


@pytest.mark.parametrize("requests, verdict", [(400, OPEN), (20000, BAD)])
def test_chance_is_of_the_model_s_own_requests(requests: int, verdict: str) -> None:
    """All 20,000 calls, or 400 of them, are of this model."""
    limits = Limits(errors=0.01, p99=1.5, drift=0.6, least_calls=300)
    stable, canary = (
        Side(
            20000,
            0,
            {},
            {("b", "0.10"): low, ("b", "0.90"): 400 - low},
            answered={"a": 20000 - requests, "b": requests},
        )
        for low in (320, 160)
    )
    assert judge_scores(stable, canary, limits, same_calls=False, passed=1.0).verdict == verdict


def test_a_slow_one_in_a_hundred_is_the_99th_percentile() -> None:
    low, middle, high = p99({(10.0, 11.0): 9800, (500.0, 510.0): 200})
    assert (low, middle, high) == (500.0, 505.0, 510.0)
    assert p99({(0.0, 0.0): 1000}) == (1.0, 1.0, 1.0), "below a millisecond"


@settings(deadline=None)
@given(st.integers(1, 10**6).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
def test_an_interval_holds_its_ratio_and_narrows_with_calls(drawn: tuple[int, int]) -> None:
    count, of = drawn
    low, high = wilson(count, of)
    assert 0 <= low <= count / of <= high <= 1
    more_low, more_high = wilson(count * 100, of * 100)
    assert more_high - more_low < high - low


@settings(deadline=None)
@given(HISTOGRAM, HISTOGRAM, st.integers(2, 50))
def test_drift_is_nothing_for_equal_shares_and_alike_both_ways(
    one: dict[str, int], other: dict[str, int], times: int
) -> None:
    assert drift(one, {name: count * times for name, count in one.items()}) == pytest.approx(0, abs=1e-9)
    forth, back = drift(one, other), drift(other, one)
    assert forth is not None and forth == pytest.approx(back) and forth >= 0


def test_drift_of_nothing_is_unknown() -> None:
    assert drift({}, {"0.10": 1}) is None and drift({"0.10": 1}, {"0.10": 0}) is None
