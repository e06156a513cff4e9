"""Does `python -m benchmarks plan` say the truth? One replica's curve, and two replicas behind the gateway.

    python -m benchmarks capacity --model clickbert_onnx_int8 --texts titles --candidates 4       15 minutes

Each of two replicas gets half of this machine's cores. In turns: both are loaded directly, each by a generator that
has the replica's cores (so that what the load costs, and what the cores share, is the same in both parts); and
both together behind a real Envoy, with TLS, at twice the rate. Cores are kept busy throughout: two threads of one core
would else each be faster while the other rests. From the first part comes the curve, as `saturate` would write it, and
from the curve what the second part should be (latencies: medians of the repetitions; capacity: the mean). Capacity, and
p99 at the planned load, may be 15 % off. Kept as benchmarks/results/TIME.json (the curve, which `plan` reads) and
two-replicas-TIME.json.

Exit code: 1 if a prediction is further off. The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from benchmarks import BenchmarkError, say
from benchmarks.capacity.plan import Node, find_points, read_node
from benchmarks.capacity.replicas import halves, kept_busy, on_cores, start_gateway, start_replica
from benchmarks.load_gen import target, workload
from benchmarks.load_gen.pool import TIMING, Load, Pool, Timing, open_pool
from benchmarks.load_gen.target import Target
from benchmarks.measure import schema
from benchmarks.measure.environment import find_environment
from benchmarks.measure.schema import (
    PERCENTILES,
    Environment,
    ModelResult,
    OpenStep,
    Round,
    SaturationResult,
    Step,
    WorkloadInfo,
    percentile_names,
)
from benchmarks.measure.stats import LIMITS, ClientLimits
from benchmarks.options import USERS
from benchmarks.report.tables import NONE, make_table

EXPECTED = target.EXPECTED
LIMIT = 0.15  # of what is measured: so far a prediction may be off


@dataclass(frozen=True)
class Schedule:
    """What is measured, for how many seconds, `repeats` times in turns."""

    repeats: int = 4
    saturated_seconds: int = 8
    # At the planned load long enough for some tens of requests beyond the p99, which else is a matter of chance.
    shares: tuple[tuple[float, int], ...] = ((0.5, 15), (0.7, 60), (0.85, 15))
    planned: float = 0.7  # the share whose p99 is judged


SCHEDULE = Schedule()


@dataclass(frozen=True)
class Comparison:
    """A figure of two replicas. `limit`: how far the prediction may be off; None: it is only shown."""

    figure: str
    predicted: float
    measured: float
    limit: float | None

    @property
    def off(self) -> float:
        """How far the prediction is off, as a share of what was measured."""
        return self.predicted / self.measured - 1

    @property
    def holds(self) -> bool:
        """Whether it is near enough."""
        return self.limit is None or abs(self.off) <= self.limit


@dataclass(frozen=True)
class CapacityResult:
    """The JSON document. `curve`: the file with what was measured of one replica."""

    model: str
    version: str
    environment: Environment
    workload: WorkloadInfo
    cores: list[list[int]]  # of each replica
    curve: str
    comparisons: list[Comparison]
    saturated: list[Step]  # of both together
    open: list[OpenStep]


def run(
    options: argparse.Namespace, schedule: Schedule = SCHEDULE, timing: Timing = TIMING, limits: ClientLimits = LIMITS
) -> int:
    """Measures, prints and writes. Returns the exit code: 1 if a prediction is too far off.

    Raises:
        EXPECTED: there are no figures.
        OSError: they cannot be written.
    """
    load = Load(workload.from_arguments(options), timing=timing, limits=limits)
    requests, cores, selection = load.selection.read(), halves(), load.selection
    options.results.mkdir(parents=True, exist_ok=True)
    with target.log_folder() as folder, contextlib.ExitStack() as stack:
        replicas = [
            stack.enter_context(start_replica(options.repository, each, folder / f"triton-{place}.log"))
            for place, each in enumerate(cores)
        ]
        for replica in replicas:
            replica.try_out(options.model, requests[0])
        gateway = stack.enter_context(start_gateway(replicas, options.model, folder))
        gateway.try_out(options.model, requests[0])
        version = replicas[0].models()[options.model]
        with (
            kept_busy([core for own in cores for core in own]),
            open_pools(replicas, gateway, options.model, load, cores, folder) as pools,
        ):
            alone, together = measure(*pools, schedule)
        info = replicas[0].info()
    found = SaturationResult(
        schema=schema.SCHEMA,
        environment=find_environment(),
        server=info,
        workload=WorkloadInfo(str(selection.data), selection.candidates, selection.texts, None),
        complete=True,
        models={options.model: replace(alone, version=version)},
    )
    stem = found.environment.time[:19].replace(":", "-")
    path = options.results / f"{stem}.json"
    schema.write(path, found)  # before it is judged
    result = CapacityResult(
        model=options.model,
        version=version,
        environment=found.environment,
        workload=found.workload,
        cores=cores,
        curve=str(path),
        comparisons=compare(read_node(alone, str(path)), together, schedule.planned),
        saturated=[each.step for each in together.rounds],
        open=list(together.open),
    )
    schema.write(options.results / f"two-replicas-{stem}.json", result)
    say("capacity", f"{path} has one replica's curve, two-replicas-{stem}.json beside it what both did")
    print(f"{show(result)}\n{schema.dump(shortened(result))}")
    return 0 if all(each.holds for each in result.comparisons) else 1


@contextlib.contextmanager
def open_pools(
    replicas: Sequence[Target], gateway: Target, model: str, load: Load, cores: Sequence[Sequence[int]], folder: Path
) -> Iterator[tuple[list[Pool], Pool]]:
    """A pool for each replica, on its cores, and one of as many processes for the gateway; they end with the block."""
    with contextlib.ExitStack() as stack:
        alone = []
        for seed, (replica, own) in enumerate(zip(replicas, cores, strict=True)):
            with on_cores(own):
                pool = open_pool(replica, model, replace(load, seed=seed), folder, USERS)
                alone.append(stack.enter_context(pool))
        # With the same seeds: the callers that came to each replica alone come together here, and chance is the same
        # (as long as both have as many rounds, in one order).
        both = replace(load, processes=len(replicas))
        yield alone, stack.enter_context(open_pool(gateway, model, both, folder, USERS * len(replicas)))


def measure(alone: Sequence[Pool], together: Pool, schedule: Schedule) -> tuple[ModelResult, ModelResult]:
    """What was measured of each replica for itself, and of both behind the gateway, in turns."""
    single, double = ModelResult(""), ModelResult("")

    def each_alone(seconds: int, **load: float) -> list[Step]:
        with ThreadPoolExecutor(len(alone)) as threads:  # at the same time
            return list(threads.map(lambda pool: pool.send(seconds, **load), alone))

    for _ in range(schedule.repeats):
        steps = each_alone(schedule.saturated_seconds, users=USERS)
        single = replace(single, rounds=(*single.rounds, *(Round(step, None) for step in steps)))
        step = together.send(schedule.saturated_seconds, users=USERS * len(alone))
        double = replace(double, rounds=(*double.rounds, Round(step, None)))
    if single.saturated is None or double.saturated is None:
        why = next(each.step.client_bound for each in (*single.rounds, *double.rounds) if each.step.client_bound)
        raise BenchmarkError(f"the load was client-bound ({why}); give larger requests (--candidates)")
    capacity = single.saturated.requests_per_second
    for _ in range(schedule.repeats):
        for share, seconds in schedule.shares:
            say("capacity", f"{share:.0%} of saturation, {share * capacity:.1f} requests/s for each replica")
            steps = each_alone(seconds, rate=share * capacity)
            single = replace(single, open=(*single.open, *(OpenStep(share, step) for step in steps)))
            step = together.send(seconds, rate=share * capacity * len(alone))
            double = replace(double, open=(*double.open, OpenStep(share, step)))
    return single, double


def compare(node: Node, together: ModelResult, planned: float) -> list[Comparison]:
    """What was predicted from one replica beside what two did. Raises BenchmarkError if there is no p99 to judge."""
    assert together.saturated
    measured = together.saturated.requests_per_second
    found = [Comparison("requests/s at saturation", 2 * node.capacity, measured, LIMIT)]
    for share in sorted({each.share for each in together.open}):
        steps = [each.step for each in together.open if each.share == share]
        for name, percentile in zip(percentile_names(), PERCENTILES, strict=True):
            points = find_points(steps, name, percentile, 2 * node.capacity)
            if points and name in node.curves:
                predicted = node.curves[name].latency(points[0].load, 2)
                judged = share == planned and percentile == max(PERCENTILES)
                value, limit = median(each.latency_ms for each in points), LIMIT if judged else None
                found.append(Comparison(f"{name} in ms at {share:.0%}", predicted, value, limit))
    if len([each for each in found if each.limit]) < 2:
        raise BenchmarkError(f"there is no {percentile_names()[-1]} at {planned:.0%} to judge; measure larger requests")
    return found


def show(result: CapacityResult) -> str:
    """What was predicted and measured, for the screen."""
    table = make_table(
        {
            "two replicas": lambda each: each.figure,
            "predicted": lambda each: f"{each.predicted:.1f}",
            "measured": lambda each: f"{each.measured:.1f}",
            "off": lambda each: f"{each.off:+.0%}",
            "allowed": lambda each: NONE if each.limit is None else f"{each.limit:.0%}",
            "": lambda each: "" if each.holds else "too far off",
        },
        result.comparisons,
    )
    used = max(step.generator.cores for step in result.saturated)
    return f"{table.text()}\nthe generators used {used:.2f} cores at saturation, beside Envoy, on the replicas' own"


def shortened(result: CapacityResult) -> CapacityResult:
    """Without every request's latency, which would be too many to read."""
    return replace(
        result,
        saturated=[replace(step, latencies_ms=()) for step in result.saturated],
        open=[replace(each, step=replace(each.step, latencies_ms=())) for each in result.open],
    )
