"""How many replicas a rate needs so that an objective holds, by what `python -m benchmarks saturate` measured on one.

    python -m benchmarks plan --rate 200 --slo p99=1000ms --results benchmarks/results/2026-11-28T15-45-11.json \\
        --model clickbert_onnx_int8
    python -m benchmarks plan --rate 200 --slo p95=1000ms --results FILE --model clickbert_onnx_int8 --spare 2

The replicas are machines like the measured one, behind the gateway, which gives each call to that one of two with fewer
in flight. The objective holds even when --spare of them are down, and the curve is as far off as it was at the worst
measured load. Nothing is said of loads that were not measured: `saturate --slo` measures more of them. The last
line of the output is one JSON document. `python -m benchmarks capacity` checks all of this with two replicas.
"""

from __future__ import annotations

import argparse
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from benchmarks import BenchmarkError
from benchmarks.capacity.model import Curve, Point
from benchmarks.measure.schema import (
    PERCENTILES,
    Environment,
    ModelResult,
    SaturationResult,
    Slo,
    Step,
    WorkloadInfo,
    dump,
    percentile_names,
    read_result,
)

EXPECTED = (BenchmarkError,)
BEYOND = 0.5  # of a percentile: so many requests must lie beyond it, on average, or it is none
LEAST = 3  # loads: two numbers are fitted to them
STEADY = 0.92  # load: above it, the seconds of a measurement are too few for a queue to grow as long as it gets
ROUNDING = 1e-9  # of a rate divided by a capacity: the highest load that was measured is within the measured ones
STEPS = 40  # of the search for a rate, which halves the range each time


@dataclass(frozen=True)
class Node:
    """One replica, as it was measured: requests a second at saturation, and curves by percentile, if it has them."""

    capacity: float
    curves: Mapping[str, Curve]


@dataclass(frozen=True)
class Forecast:
    """A rate on so many replicas. `breaks_at`: the highest rate that meets the objective, within what was measured."""

    replicas: int
    utilisation: float
    latency_ms: dict[str, float]  # by percentile
    breaks_at: float
    break_measured: bool  # False: the objective still holds there, and higher loads were not measured


@dataclass(frozen=True)
class Plan:
    """The JSON document."""

    result: str
    model: str
    version: str
    rate: float
    slo: Slo
    replicas: int  # to run: needed and spare
    needed: int
    spare: int
    capacity: float  # requests a second of one
    curve: Curve  # of the objective's percentile
    all_up: Forecast
    spare_down: Forecast
    measured: Environment
    workload: WorkloadInfo


def run(options: argparse.Namespace) -> int:
    """Plans and prints. Returns the exit code.

    Raises:
        BenchmarkError: the result cannot be used, or no number of replicas meets the objective.
    """
    result = read_result(options.results)
    model = choose(result, options.model, options.results)
    plan = make_plan(result, model, options)
    print(f"{show(plan)}\n{dump(plan)}")
    return 0


def choose(result: SaturationResult, asked: str | None, path: Path) -> str:
    """The model to plan for. Raises BenchmarkError if it is not there, or not named and there are several."""
    names = ", ".join(result.models)
    if asked is not None and asked not in result.models:
        raise BenchmarkError(f"{path} has no {asked}, only {names or 'nothing'}")
    if asked is None and len(result.models) != 1:
        raise BenchmarkError(f"{path} has {names or 'no model'}; choose one with --model")
    return asked or names


def make_plan(result: SaturationResult, model: str, options: argparse.Namespace) -> Plan:
    """The plan. Raises BenchmarkError if there is none."""
    found, slo = result.models[model], options.slo
    node = read_node(found, f"{options.results}: {model}")
    if slo.percentile not in node.curves:
        raise BenchmarkError(
            f"{options.results}: {model} has too few requests for {slo.percentile} at {LEAST} loads; measure more of "
            f"them with `python -m benchmarks saturate --model {model} --slo {slo}`"
        )
    needed = replicas_needed(node, options.rate, slo)
    return Plan(
        result=str(options.results),
        model=model,
        version=found.version,
        rate=options.rate,
        slo=slo,
        replicas=needed + options.spare,
        needed=needed,
        spare=options.spare,
        capacity=node.capacity,
        curve=node.curves[slo.percentile],
        all_up=forecast(node, options.rate, needed + options.spare, slo),
        spare_down=forecast(node, options.rate, needed, slo),
        measured=result.environment,
        workload=result.workload,
    )


def read_node(found: ModelResult, where: str) -> Node:
    """A replica as it was measured. Raises BenchmarkError if there is nothing to plan with."""
    if found.saturated is None:
        raise BenchmarkError(
            f"{where} was not brought to saturation ({found.failure or 'client-bound'}); measure again"
        )
    capacity = found.saturated.requests_per_second
    steps = [each.step for each in found.open] + list(found.slo.steps if found.slo else ())
    curves = {}
    for name, percentile in zip(percentile_names(), PERCENTILES, strict=True):
        points = find_points(steps, name, percentile, capacity)
        if len({each.load for each in points}) >= LEAST:
            curves[name] = Curve.fit(points, percentile)
    return Node(capacity, curves)


def find_points(steps: list[Step], name: str, percentile: float, capacity: float) -> list[Point]:
    """The steps of an open loop that say something of a percentile: the server's, without errors, and long enough."""
    return [
        Point(step.rate / capacity, step.latency[name], step.requests)
        for step in steps
        if step.rate
        and step.shown_latency
        and step.latency
        and not step.errors
        and step.rate <= STEADY * capacity
        and step.requests * (1 - percentile / 100) >= BEYOND
    ]


def replicas_needed(node: Node, rate: float, slo: Slo) -> int:
    """The least number that meets the objective. Raises BenchmarkError if even the lowest measured load does not."""
    curve = node.curves[slo.percentile]
    fewest, most = (max(1, ceil(rate / (load * node.capacity) - ROUNDING)) for load in (curve.highest, curve.lowest))

    def holds(replicas: int) -> bool:
        return curve.cautious(rate / (replicas * node.capacity), replicas) <= slo.limit_ms

    if not holds(most):
        best, caution = curve.cautious(curve.lowest, 1), curve.miss / (1 + curve.miss)
        raise BenchmarkError(
            f"no number of replicas meets {slo}: at the lowest measured load, {curve.lowest:.0%}, one has "
            f"{slo.percentile} = {best:.0f} ms, of which {caution:.0%} are caution. Give a longer limit, a faster "
            "machine or model, or smaller requests"
        )
    return fewest + bisect_left(range(fewest, most), True, key=holds)


def forecast(node: Node, rate: float, replicas: int, slo: Slo) -> Forecast:
    """What is to be expected of a rate on so many replicas."""
    curve, all_of_them = node.curves[slo.percentile], replicas * node.capacity
    low, high = 0.0, curve.highest
    break_measured = curve.cautious(high, replicas) > slo.limit_ms
    for _ in range(STEPS if break_measured else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if curve.cautious(middle, replicas) <= slo.limit_ms else (low, middle)
    load = rate / all_of_them
    latency = {
        name: each.latency(load, replicas) for name, each in node.curves.items() if load <= each.highest + ROUNDING
    }
    return Forecast(replicas, load, latency, (low if break_measured else high) * all_of_them, break_measured)


def show(plan: Plan) -> str:
    """The plan, for the screen."""
    machine, curve, slo = plan.measured.machine, plan.curve, plan.slo
    sent = f"{plan.workload.data}, {plan.workload.candidates or 'its own'} candidates, texts: {plan.workload.texts}"
    lines = [
        f"{plan.replicas} replicas for {plan.rate:g} requests/s with {slo}: {plan.needed} needed, {plan.spare} spare",
        show_forecast("all up", plan.all_up, slo),
        *([show_forecast(f"{plan.spare} down", plan.spare_down, slo)] if plan.spare else []),
        f"one replica: {plan.capacity:.1f} requests/s at saturation; measured from {curve.lowest:.0%} to "
        f"{curve.highest:.0%} of that, and nothing is said of higher loads",
        f"caution: the worst measured {slo.percentile} is {curve.miss:.0%} above the curve, so as much is added before "
        "the objective is asked for",
        f"measured {plan.measured.time} at {plan.measured.commit} on {machine.processors}, {machine.memory_gib:g} GiB",
        f"{plan.model}, version {plan.version}; requests: {sent}",
        "another machine, model or log needs a measurement of its own",
    ]
    return "\n".join(lines)


def show_forecast(name: str, found: Forecast, slo: Slo) -> str:
    """A line of it."""
    latency = ", ".join(f"{percentile} {value:.0f} ms" for percentile, value in found.latency_ms.items())
    limit = f"with the caution below, {slo} {'breaks above' if found.break_measured else 'holds at least to'}"
    limit += f" {found.breaks_at:.0f} requests/s"
    return f"{name}: {found.replicas} at {found.utilisation:.0%} of their capacity, {latency or 'no curve'}; {limit}"
