"""Results that are made up: of a server whose speed is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.measure.recording import CLASSES, Sample
from benchmarks.measure.schema import (
    SCHEMA,
    CeilingResult,
    Environment,
    GeneratorUse,
    Machine,
    ModelResult,
    OpenStep,
    Round,
    SaturationResult,
    Sent,
    ServerInfo,
    Step,
    TimeSplit,
    WorkloadInfo,
)
from benchmarks.measure.stats import summarize

MODELS = ("clickbert_onnx", "clickbert_onnx_int8")
RATE, PAIRS, LATENCY = 60.0, 10, 0.02  # requests a second at saturation, pairs of each, seconds until the answer
BUSY = "the generator's thread was busy 95% of the time"
USE = GeneratorUse(processes=1, busy=0.1, cores=0.2, first_messages={})


def make_step(chance: np.random.Generator, per_second: float, latency: float, seconds: int, **load: Any) -> Step:
    """A step of so many requests a second, give or take 3 % in each second."""
    counts = [round(per_second * (1 + 0.03 * chance.standard_normal())) for _ in range(seconds)]
    begins = np.concatenate([second + np.arange(count) / count for second, count in enumerate(counts)])
    lasted = latency * chance.lognormal(0, 0.3, len(begins))
    samples = [
        Sample(float(begin), 0.0, float(last), PAIRS, None, CLASSES[place % 3])
        for place, (begin, last) in enumerate(zip(begins, lasted, strict=True))
    ]
    step = summarize(samples, 0, seconds, generator=USE, **load)
    return replace(step, time_split=TimeSplit(1.5, 1000 * latency - 2.5, 1.0), tokens_per_chunk=200.0)


@cache
def make_result(
    seed: int = 0, speed: float = 1.0, ceiling: float | None = 1.0, models: tuple[str, ...] = MODELS, rounds: int = 8
) -> SaturationResult:
    """A result of a server so many times as fast as RATE and LATENCY say, and its ceiling too, if it has one."""
    chance = np.random.default_rng(seed)
    sent = Sent(87, 870, 40, 400, {"packed": 100, "padded to 512": 730})
    return SaturationResult(
        schema=SCHEMA,
        environment=Environment(
            "2026-11-25T02:25:46+00:00",
            "6b85c8b",
            Machine("Linux", "AMD EPYC", 2, 23.5, ()),
            {"python": "3.11.7", "locust": "2.47.0"},
        ),
        server=ServerInfo("triton", "2.51.0", "127.0.0.1:36381", started_here=ceiling is not None),
        workload=WorkloadInfo("data/sample/test.jsonl", PAIRS, "all", sent if ceiling is not None else None),
        complete=True,
        models={model: make_model(chance, speed, ceiling, rounds) for model in models},
    )


def make_model(chance: np.random.Generator, speed: float, ceiling: float | None, rounds: int) -> ModelResult:
    def step(share: float, seconds: int, **load: Any) -> Step:
        return make_step(chance, RATE * speed * share, LATENCY / speed, seconds, **load)

    found, around = None, [None] * rounds
    if ceiling is not None:
        mean = 1.2 * RATE * PAIRS * ceiling
        speeds = [float(mean * (1 + 0.01 * chance.standard_normal())) for _ in range(rounds + 1)]
        found = CeilingResult("2 at a time, 1 threads each, chunks of 512", True, tuple(speeds), {})
        around = [(before + after) / 2 for before, after in pairwise(speeds)]
    return ModelResult(
        version="2",
        config=None if ceiling is None else 'name: "it"',
        ceiling=found,
        closed=tuple(step(share, 6, users=users) for users, share in ((1, 0.6), (4, 1.0), (8, 0.9))),
        rounds=tuple(Round(step(1.0, 8, users=4), left) for left in around),
        open=tuple(OpenStep(share, step(share, 10, rate=RATE * speed * share)) for share in (0.3, 0.5, 0.7, 0.9)),
    )


def with_model(result: SaturationResult, model: str = MODELS[0], **changes: Any) -> SaturationResult:
    """A result whose model has other fields."""
    return replace(result, models=result.models | {model: replace(result.models[model], **changes)})


def with_step(result: SaturationResult, part: str, place: int, change: Callable[[Step], Step]) -> SaturationResult:
    """A result with one step of its first model changed: of `closed`, `rounds` or `open`."""
    steps = list(getattr(result.models[MODELS[0]], part))
    one = steps[place]
    steps[place] = change(one) if isinstance(one, Step) else replace(one, step=change(one.step))
    return with_model(result, **{part: tuple(steps)})


def client_bound(step: Step) -> Step:
    """A client-bound step, whose figures are nonsense."""
    return replace(
        step, client_bound=BUSY, latencies_ms=tuple(7 * each for each in step.latencies_ms), pairs_per_second=1e6
    )


def scaled(step: Step, factor: float) -> Step:
    """A step in which the server was so many times as fast."""
    return replace(step, pairs_per_second=factor * step.pairs_per_second)


def slower(step: Step, factor: float) -> Step:
    """A step whose requests took so many times as long."""
    return replace(step, latencies_ms=tuple(factor * each for each in step.latencies_ms))


def unanswered(step: Step) -> Step:
    """A step in which nothing was answered."""
    return replace(
        step,
        errors=step.requests,
        error_kinds={"ServerTimeoutError": step.requests},
        latency=None,
        latencies_ms=(),
        latency_by_size=dict.fromkeys(CLASSES),
        time_split=None,
        tokens_per_chunk=None,
    )
