"""What a benchmark finds: frozen dataclasses, written as JSON and read back with every type checked.

PERCENTILES is the one list of percentiles: tables, plots, `--slo` and `--compare` all go through it. A change that
older files do not fit needs a new SCHEMA; a figure that they lack, and nobody misses in them, is a field that is LATER.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Self

from benchmarks import BenchmarkError
from release.files import write_whole
from release.records import LATER, RecordError, read_record

SCHEMA = 4
PERCENTILES: tuple[float, ...] = (50, 95, 99)


def percentile_names() -> tuple[str, ...]:
    """The PERCENTILES as they are written everywhere: p50, p95, p99."""
    return tuple(f"p{each:g}" for each in PERCENTILES)


@dataclass(frozen=True)
class Machine:
    """The machine of the load, and of the server if the benchmark started it."""

    system: str
    cpu: str
    cores: int
    memory_gib: float
    gpus: tuple[str, ...]

    @property
    def processors(self) -> str:
        """What it computes with, in words."""
        return "; ".join((f"{self.cpu}, {self.cores} cores", *self.gpus))


@dataclass(frozen=True)
class Environment:
    """When, where and with what something was measured."""

    time: str  # ISO 8601, UTC
    commit: str | None  # "+" at its end: files differed from it. None: not in a git checkout
    machine: Machine
    versions: dict[str, str]  # of Python and the packages that matter


@dataclass(frozen=True)
class Latency:
    """Milliseconds: percentiles by their names (exact, interpolated between neighbours), mean and maximum."""

    percentiles: dict[str, float]
    mean: float
    max: float

    def __getitem__(self, percentile: str) -> float:
        return self.percentiles[percentile]


@dataclass(frozen=True)
class GeneratorUse:
    """What the load's own processes took."""

    processes: int
    busy: float  # the share of its time that the busiest one's thread computed
    cores: float  # that all of them used together
    first_messages: dict[str, str]  # the first error message of each kind


@dataclass(frozen=True)
class TimeSplit:
    """Where a request's time went on average, in milliseconds.

    Of a model that packed_cpu cuts into chunks, by that backend's figures; of others by Triton's statistics.
    """

    queue: float  # waiting: for its first chunk, or for its execution
    compute: float  # from its first chunk to its answer, with pauses for others' chunks; or the execution and copies
    rest: float  # what the caller waited beyond that: network, client, Triton's own work


@dataclass(frozen=True)
class Step:
    """One load on one model. Errors and latencies are of the requests scheduled in this window."""

    users: int | None  # closed loop: requests in flight
    rate: float | None  # open loop: requests to start a second
    duration: int  # seconds that were measured
    requests: int  # scheduled in this window
    errors: int
    error_kinds: dict[str, int]  # by class
    offered_per_second: float  # requests that were scheduled
    requests_per_second: float  # that were answered
    pairs_per_second: float
    pairs_by_second: tuple[int, ...]
    latency: Latency | None  # from the intended start to the answer; None: nothing was answered
    latencies_ms: tuple[float, ...]  # every answered request's, ascending
    latency_by_size: dict[str, Latency | None]  # by `recording.CLASSES`
    start_delay: Latency | None  # from the intended start to the actual one; None: no request was scheduled
    generator: GeneratorUse
    client_bound: str | None  # why the figures are the generator's own; None: they are the server's
    time_split: TimeSplit | None = None  # None: nothing was counted, or a server elsewhere cuts into chunks
    requests_per_execution: float | None = None  # that Triton merged; None of a model that is cut into chunks
    tokens_per_chunk: float | None = field(default=None, metadata=LATER)  # padding not counted; None of other models

    @property
    def load(self) -> str:
        """The load in words."""
        if self.users is None:
            return f"{self.rate:.1f}/s"
        return f"{self.users} user{'s' * (self.users > 1)}"

    @property
    def server_bound(self) -> bool:
        """Whether the figures are the server's. (It may have answered nothing.)"""
        return self.client_bound is None

    @property
    def shown_latency(self) -> Latency | None:
        """The latency, if it is the server's."""
        return self.latency if self.server_bound else None


@dataclass(frozen=True)
class Round:
    """A step at saturation, and the ceiling minus what the generators used, in pairs per second."""

    step: Step
    left_of_ceiling: float | None


@dataclass(frozen=True)
class OpenStep:
    """A step of the open loop, and its rate as a share of saturation."""

    share: float
    step: Step


@dataclass(frozen=True)
class CeilingResult:
    """The engine in process, without server, client and network; speeds in pairs per second."""

    layout: str  # the fastest way to use the cores or the GPU, in words
    on_cpu: bool  # on the cores that the generators use, too
    rounds: tuple[float, ...]  # between the loads
    tried: dict[str, float]  # every layout, on a few requests

    @property
    def pairs_per_second(self) -> float:
        """The mean of the rounds."""
        return fmean(self.rounds)

    def left_by(self, generator: GeneratorUse, cores: int) -> float:
        """Pairs per second on what the generators leave of the cores. They take nothing of a GPU."""
        return self.pairs_per_second * (1 - generator.cores / cores if self.on_cpu else 1.0)


@dataclass(frozen=True)
class Slo:
    """A service level objective: a latency percentile and its limit."""

    percentile: str
    limit_ms: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads "p99=50ms". Raises ValueError."""
        names = percentile_names()
        match = re.fullmatch(rf"({'|'.join(map(re.escape, names))})=(\d+(?:\.\d+)?)ms", text)
        if not match or not float(match[2]):
            raise ValueError(
                f"{text!r} is not an objective like {names[-1]}=50ms: one of {', '.join(names)}, in milliseconds"
            )
        return cls(match[1], float(match[2]))

    def __str__(self) -> str:
        return f"{self.percentile}={self.limit_ms:g}ms"

    def holds(self, step: Step) -> bool:
        """Whether a step met it, without an error."""
        latency = step.shown_latency
        return latency is not None and not step.errors and latency[self.percentile] <= self.limit_ms


@dataclass(frozen=True)
class SloResult:
    """The search for the highest rate that meets an objective; no rate if none does or the search was client-bound."""

    slo: Slo
    requests_per_second: float | None
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        if not all(step.server_bound for step in self.steps):
            return f"{self.slo} is unknown: the search was client-bound"
        rate = self.requests_per_second
        return f"{self.slo} " + ("never holds" if rate is None else f"holds up to {rate:.1f} requests/s")


@dataclass(frozen=True)
class Saturation:
    """The means of a model's rounds at saturation; its share is of what the generators left of the ceiling."""

    users: int
    requests_per_second: float
    pairs_per_second: float
    share_of_ceiling: float | None


@dataclass(frozen=True)
class ModelResult:
    """One model. A server elsewhere has neither config nor ceiling here."""

    version: str
    config: str | None = None  # the text of its config.pbtxt
    ceiling: CeilingResult | None = None
    closed: tuple[Step, ...] = ()  # of more and more users
    rounds: tuple[Round, ...] = ()  # at saturation
    open: tuple[OpenStep, ...] = ()
    slo: SloResult | None = None
    failure: str | None = None  # why there are no figures

    @property
    def saturated(self) -> Saturation | None:
        """Mean of the rounds that are not client-bound; None if there are none.

        The share is all that was served / all that the ceilings allowed: disturbances of some seconds even out.
        """
        sound = [each for each in self.rounds if each.step.server_bound]
        if not sound:
            return None
        requests, pairs = (
            fmean(getattr(each.step, name) for each in sound) for name in ("requests_per_second", "pairs_per_second")
        )
        left = [each.left_of_ceiling for each in sound if each.left_of_ceiling is not None]
        return Saturation(sound[0].step.users or 0, requests, pairs, pairs / fmean(left) if left else None)

    @property
    def alone_and_open(self) -> list[Step]:
        """The step of one user, in which nothing waits, and the open loop's."""
        return [*(step for step in self.closed if step.users == 1), *(each.step for each in self.open)]


@dataclass(frozen=True)
class ServerInfo:
    """The server that was measured."""

    name: str
    version: str
    url: str
    started_here: bool


@dataclass(frozen=True)
class Sent:
    """The requests: of the click log, of the closed loops and the ceilings, and tokens by the kind of padding."""

    requests: int
    pairs: int
    closed_requests: int
    closed_pairs: int
    tokens: dict[str, int]


@dataclass(frozen=True)
class WorkloadInfo:
    """What was asked for, and what that selected. `sent` is None for a server elsewhere, without its tokenizer."""

    data: str
    candidates: int | None
    texts: str
    sent: Sent | None


@dataclass(frozen=True)
class SaturationResult:
    """The result of `python -m benchmarks saturate`; `complete` is False while it runs."""

    schema: int
    environment: Environment
    server: ServerInfo
    workload: WorkloadInfo
    complete: bool
    models: dict[str, ModelResult]


def write(path: Path, result: Any) -> None:
    """Writes a result as JSON, whole or not at all. Raises OSError."""
    write_whole(path, dump(result).encode())


def dump(result: Any) -> str:
    """A result as one line of JSON."""
    return json.dumps(asdict(result), ensure_ascii=False)


def read_result(path: Path) -> SaturationResult:
    """Reads a result that `saturate` wrote.

    Raises:
        BenchmarkError: it is missing, broken, incomplete, or of another schema.
    """
    try:
        result = read_record(SaturationResult, path, SCHEMA)
    except (RecordError, RecursionError) as exc:
        raise BenchmarkError(f"{exc}; give a file that this version of `python -m benchmarks saturate` wrote") from exc
    if not result.complete:
        raise BenchmarkError(f"{path} is incomplete: that run ended early; measure again")
    return result
