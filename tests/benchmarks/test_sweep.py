"""Tuning's search, on speeds that are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import pytest

from benchmarks.tune import Settings, Trial, candidates, confirmed, sweep

OWN = Settings(instances=2, threads=0, chunk_elements=512, max_batch_size=4, queue_delay_us=0)


def surface(of: Callable[[Settings], float], tail: Callable[[Settings], float] = lambda _: 100.0, errors: int = 0):
    """A measure whose speed and tail are known, and what it was asked for."""
    asked: list[Settings] = []

    def measure(one: Settings) -> Trial:
        asked.append(one)
        return Trial(one, of(one), 50.0, tail(one), errors if one != OWN else 0)

    return measure, asked


def test_the_sweep_finds_the_best_of_a_known_surface() -> None:
    best = Settings(instances=1, threads=0, chunk_elements=1024, max_batch_size=8, queue_delay_us=500)

    def speed(one: Settings) -> float:
        # Each setting's own part; a wrong one costs a tenth and more.
        return 1000 * 0.85 ** sum(getattr(one, field.name) != getattr(best, field.name) for field in fields(one))

    measure, asked = surface(speed)
    assert sweep(OWN, measure) == best
    assert asked[0] == OWN
    assert len(asked) == len(set(asked)), "one was measured twice"
    # One setting after another, each with the best of those before.
    assert all(one.chunk_elements == OWN.chunk_elements for one in asked if one.instances != best.instances)
    assert all(one.instances == best.instances for one in asked if one.queue_delay_us != OWN.queue_delay_us)


@pytest.mark.parametrize("better", [1.0, 1.02], ids=["nothing is faster", "faster by noise"])
def test_the_own_settings_stay_where_nothing_is_better_by_more_than_noise(better: float) -> None:
    measure, _ = surface(lambda one: 1000.0 if one == OWN else 1000.0 * better, lambda one: 100 if one == OWN else 95)
    assert sweep(OWN, measure) == OWN


def test_a_shorter_tail_at_the_same_speed_is_better_and_errors_are_not() -> None:
    def speed(one: Settings) -> float:
        return 990.0 if one.max_batch_size == 1 else 1000.0

    def tail(one: Settings) -> float:
        return 80.0 if one.max_batch_size == 1 else 100.0

    measure, _ = surface(speed, tail)
    assert sweep(OWN, measure) == replace(OWN, max_batch_size=1)
    measure, _ = surface(speed, tail, errors=3)
    assert sweep(OWN, measure) == OWN
    measure, _ = surface(lambda one: 2000.0 if one != OWN else 1000.0, errors=1)
    assert sweep(OWN, measure) == OWN


def test_settings_that_fail_are_not_chosen_and_the_others_are_still_tried() -> None:
    def measure(one: Settings) -> Trial | None:
        return (
            None if one.instances == 3 or one.max_batch_size == 8 else Trial(one, 100.0 + one.max_batch_size, 1, 1, 0)
        )

    assert sweep(OWN, measure) == replace(OWN, max_batch_size=16)
    assert not confirmed(OWN, replace(OWN, instances=3), measure)
    assert confirmed(OWN, replace(OWN, max_batch_size=16), measure)


def test_what_the_config_does_not_have_is_not_swept() -> None:
    names = [name for name, _ in candidates(replace(OWN, threads=None, chunk_elements=None, queue_delay_us=None))]
    assert names == [("instances",), ("max_batch_size",)]


@pytest.mark.parametrize(
    ("ratio", "tail", "errors", "kept"),
    [
        (1.1, 1.0, 0, True),
        (1.02, 1.0, 0, False),
        (0.98, 0.9, 0, True),
        (0.96, 0.5, 0, False),
        (1.1, 1.0, 2, False),
    ],
)
def test_what_was_found_must_win_again(ratio: float, tail: float, errors: int, kept: bool) -> None:
    found = replace(OWN, max_batch_size=16)
    machine = iter([1.0, 1.0, 0.5, 0.5, 0.3, 0.3])  # the machine grows slower: turns are compared, not their means

    def measure(one: Settings) -> Trial:
        speed = next(machine) * (ratio if one == found else 1)
        return Trial(one, 1000 * speed, 50, 100 * (tail if one == found else 1), errors if one == found else 0)

    assert confirmed(OWN, found, measure) is kept
    assert not confirmed(OWN, OWN, measure)
