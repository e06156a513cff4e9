"""How models are brought to saturation, in turns: each part for all models before the next part. And the SLO search.

The speed of a shared machine changes within minutes. So figures that are compared are measured side by side: one model
beside another, and what was served between two rounds of its ceiling.

Not known here: how the figures are shown, kept, or compared with an earlier result's.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from benchmarks import BenchmarkError
from benchmarks.load_gen.pool import Load, Pool, open_pool
from benchmarks.load_gen.target import Target, newest_version
from benchmarks.measure.ceiling import Ceiling, open_ceiling
from benchmarks.measure.schema import ModelResult, OpenStep, Round, Slo, SloResult, Step
from clickbert.tokenization import PackedPairs
from release.names import CONFIG_FILE
from serving.backends.onnxruntime.workers import usable_cores


@dataclass(frozen=True)
class Schedule:
    """What is measured, for how many seconds. Why these: docs/benchmarks.md."""

    users: tuple[int, ...] = (1, 4, 8)  # closed loop; then twice as many each time while that brings more
    most_users: int = 128  # the config's queue takes so many
    gain: float = 0.2  # what more users must bring; less is noise of a machine whose speed changes
    closed_seconds: int = 4
    rounds: int = 8  # at saturation: a round's share of its ceiling varies by a tenth, and many even that out
    round_seconds: int = 5
    ceiling_seconds: float = 2.5  # of a ceiling's round, at least; one turn may take longer
    # So many requests are sent in closed loops and computed for ceilings, over and over: few enough that a round holds
    # each of them where six are answered a second, with as many tokens on average as all have.
    distinct: int = 30
    # Shares of the saturated rate, and the seconds of each: where the tail is looked at, it needs requests.
    shares: tuple[tuple[float, int], ...] = ((0.3, 5), (0.5, 8), (0.7, 14), (0.9, 6))
    slo_steps: int = 6  # of the search, which halves the range each time
    slo_seconds: int = 12

    def numbers_of_users(self) -> Iterator[int]:
        """The users, and twice as many each time."""
        yield from self.users
        doubled = (self.users[-1] << doublings for doublings in itertools.count(1))
        yield from itertools.takewhile(lambda users: users <= self.most_users, doubled)

    def rises(self, closed: Sequence[Step]) -> bool:
        """Whether the last step, without an error, brought more than all before it, beyond noise."""
        *before, last = closed
        most = max((step.pairs_per_second for step in before), default=0.0)
        return last.server_bound and not last.errors and last.pairs_per_second > (1 + self.gain) * most

    def saturating_users(self, closed: Sequence[Step]) -> int:
        """The least number of users that saturates the server but for noise, from the last of `users` on.

        Fewer are taken only if they are faster by more than `gain`: less is noise, and two runs are to choose the same.
        Steps with errors count only if all have some.
        """
        sound = [step for step in closed if step.server_bound]
        sound = [step for step in sound if not step.errors] or sound
        fastest = max(sound, key=lambda step: step.pairs_per_second)
        enough = [step for step in sound if (step.users or 0) >= self.users[-1]]
        best = max((step.pairs_per_second for step in enough), default=0.0)
        if not enough or (1 + self.gain) * best < fastest.pairs_per_second:
            return fastest.users or 0
        return next(step.users or 0 for step in enough if (1 + self.gain) * step.pairs_per_second >= best)


SCHEDULE = Schedule()


@dataclass
class Measured:
    """What is known of a model so far; see `ModelResult`."""

    model: str
    version: str
    config: str | None
    ceiling: Ceiling | None
    closed: list[Step] = field(default_factory=list)
    users: int = 0
    rounds: list[Round] = field(default_factory=list)
    open: list[OpenStep] = field(default_factory=list)
    slo: SloResult | None = None
    failure: str | None = None

    def result(self) -> ModelResult:
        """For the result file."""
        return ModelResult(
            version=self.version,
            config=self.config,
            ceiling=self.ceiling.result() if self.ceiling and self.ceiling.rounds else None,
            closed=tuple(self.closed),
            rounds=tuple(self.rounds),
            open=tuple(self.open),
            slo=self.slo,
            failure=self.failure,
        )


@dataclass(frozen=True)
class Run:
    """What all steps of a run share: the server, what is sent, the folder for logs and recordings, the schedule."""

    server: Target
    load: Load
    folder: Path
    schedule: Schedule

    def saturate(
        self, models: Mapping[str, str], packed: Sequence[PackedPairs], slo: Slo | None = None
    ) -> Iterator[dict[str, ModelResult]]:
        """Closed loops up to saturation, saturation in rounds between ceilings, open loops, and the SLO search.

        A model that has no figures drops out, and its result says why; the others go on.

        Args:
            models: their names and versions.
            packed: the `distinct` requests, for the ceilings of a server that was started here.
            slo: searched, too, if it is given.

        Yields:
            All that is known, each time that it is more, so that nothing need be lost.

        Raises:
            BenchmarkError: the server or a generator ended, or no model has figures.
        """
        with contextlib.ExitStack() as ceilings:
            measured = [self.prepare(ceilings, model, version, packed) for model, version in models.items()]
            steps = len(measured) * (len(self.schedule.users) + self.schedule.rounds + len(self.schedule.shares))
            with tqdm(total=steps, unit="step", leave=False, disable=None) as progress:
                for _ in self.closed_loops(measured, progress):
                    yield {each.model: each.result() for each in measured}
                for _ in self.open_loops(with_figures(measured), slo, progress):
                    yield {each.model: each.result() for each in measured}

    def prepare(
        self, ceilings: contextlib.ExitStack, model: str, version: str, packed: Sequence[PackedPairs]
    ) -> Measured:
        """A model of which nothing is known yet but the way to its ceiling."""
        repository = self.server.repository
        if repository is None:
            return Measured(model, version, None, None)
        config = (repository / model / CONFIG_FILE).read_text(encoding="utf-8")
        ceiling = ceilings.enter_context(open_ceiling(newest_version(repository, model), packed))
        return Measured(model, version, config, ceiling)

    def closed_loops(self, measured: Sequence[Measured], progress: tqdm) -> Iterator[None]:
        """Closed loops of more and more users, then the rounds at saturation; yields after each step of all models."""
        schedule, load = self.schedule, replace(self.load, distinct=self.schedule.distinct)
        with contextlib.ExitStack() as stack:
            pools: dict[str, Pool] = {}
            opened = {each.model: stack.enter_context(contextlib.ExitStack()) for each in measured}

            def start(each: Measured, users: int) -> None:
                opened[each.model].close()  # the pool of fewer users
                pools[each.model] = opened[each.model].enter_context(
                    open_pool(self.server, each.model, load, self.folder, users)
                )

            def loop(each: Measured, users: int, seconds: int) -> Step:
                progress.set_description(each.model)
                pool = pools[each.model]
                step = self.server.with_counts(each.model, lambda: pool.send(seconds, users=users))
                progress.update()
                return step

            for each in measured:
                start(each, schedule.users[-1])
            rising = list(measured)
            for users in schedule.numbers_of_users():
                for each in rising:
                    if users > schedule.users[-1]:
                        progress.total += 1
                        start(each, users)
                    each.closed.append(loop(each, users, schedule.closed_seconds))
                yield
                rising = [each for each in rising if users < schedule.users[-1] or schedule.rises(each.closed)]
                if not rising:
                    break
            for each in measured:
                each.failure = why_no_figures(each.closed)
            going = with_figures(measured)
            for each in going:
                each.users = schedule.saturating_users(each.closed)
            yield from self.rounds_at_saturation(going, loop)
            for each in going:
                each.failure = why_no_figures([one.step for one in each.rounds])

    def rounds_at_saturation(
        self, measured: Sequence[Measured], loop: Callable[[Measured, int, int], Step]
    ) -> Iterator[None]:
        """The rounds, with a round of every ceiling before, between and after them; yields after each."""
        ceilings = [each.ceiling for each in measured if each.ceiling]
        for ceiling in ceilings:
            ceiling.measure(self.schedule.ceiling_seconds)
        for _ in range(self.schedule.rounds):
            steps = [loop(each, each.users, self.schedule.round_seconds) for each in measured]
            for ceiling in ceilings:
                ceiling.measure(self.schedule.ceiling_seconds)
            for each, step in zip(measured, steps, strict=True):
                around = each.ceiling.result(last=2) if each.ceiling else None  # before and after the step
                each.rounds.append(Round(step, around.left_by(step.generator, usable_cores()) if around else None))
            yield

    def open_loops(self, measured: Sequence[Measured], slo: Slo | None, progress: tqdm) -> Iterator[None]:
        """Open loops at shares of saturation, and the SLO search; yields after each share, and after each search."""
        with contextlib.ExitStack() as stack:
            pools = [
                stack.enter_context(open_pool(self.server, each.model, self.load, self.folder)) for each in measured
            ]
            rates = [saturation.requests_per_second for each in measured if (saturation := each.result().saturated)]
            for share, seconds in self.schedule.shares:
                for each, pool, most in zip(measured, pools, rates, strict=True):
                    progress.set_description(each.model)
                    each.open.append(OpenStep(share, self.open_step(pool, each.model, share * most, seconds)))
                    progress.update()
                yield
            for each, pool, most in zip(measured, pools, rates, strict=True) if slo else ():
                assert slo
                each.slo = self.search(pool, each.model, most, slo)
                yield

    def open_step(self, pool: Pool, model: str, rate: float, seconds: int) -> Step:
        """A step of an open loop."""
        return self.server.with_counts(model, lambda: pool.send(seconds, rate=rate))

    def search(self, pool: Pool, model: str, saturated: float, slo: Slo) -> SloResult:
        """The highest rate whose latency meets an objective; each step halves what is left of the range.

        Args:
            pool: the model's, for an open loop.
            model: its name.
            saturated: requests a second that the closed loop reached.
            slo: the objective.
        """
        low, high, steps = 0.0, saturated, list[Step]()
        for _ in tqdm(range(self.schedule.slo_steps), desc=str(slo), unit="step", leave=False, disable=None):
            rate = (low + high) / 2
            if rate * self.schedule.slo_seconds < self.load.processes:  # less than a request for each generator
                break
            steps.append(self.open_step(pool, model, rate, self.schedule.slo_seconds))
            if not steps[-1].server_bound:  # other rates cannot tell what the server can do
                low = 0.0
                break
            low, high = (rate, high) if slo.holds(steps[-1]) else (low, rate)
        return SloResult(slo, low or None, tuple(steps))


def with_figures(measured: Sequence[Measured]) -> list[Measured]:
    """The models that have figures so far. Raises BenchmarkError if none has."""
    found = [each for each in measured if each.failure is None]
    if not found:
        raise BenchmarkError("; ".join(f"{each.model}: {each.failure}" for each in measured))
    return found


def why_no_figures(steps: Sequence[Step]) -> str | None:
    """Why steps say nothing of the server; None if one does."""
    sound = [step for step in steps if step.server_bound]
    if not sound:
        return f"client-bound ({steps[-1].client_bound}); give more --processes"
    if not any(step.requests_per_second for step in sound):
        messages = sound[-1].generator.first_messages
        errors = "; ".join(f"{kind}: {text}" for kind, text in messages.items()) or "without an error"
        return f"it answered nothing within {sound[-1].duration} s ({errors}); see the server's log"
    return None
