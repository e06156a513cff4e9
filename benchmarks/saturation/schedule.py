"""How models are brought to saturation, in turns: each part for all models before the next part. And the SLO search.

The speed of a shared machine changes within minutes. So figures that are compared are measured side by side: one model
next to another, and what was served between two rounds of its ceiling.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import BenchmarkError
from benchmarks.load_gen.pool import Load, Pool, open_pool
from benchmarks.load_gen.target import Target, published_version
from benchmarks.measure.schema import ModelResult, OpenStep, Round, Slo, SloResult, Step
from benchmarks.saturation.ceiling import Ceiling, open_ceiling
from clickbert.wire.packing import Packed
from release.names import CONFIG_FILE
from serving.backends.packed_cpu.cores import usable_cores


@dataclass(frozen=True)
class Schedule:
    """What is measured, for how many seconds. docs/benchmarks.md has the reasons."""

    users: tuple[int, ...] = (1, 4, 8)  # closed loop; then twice as many each time while that brings more
    most_users: int = 128  # of more, a slow machine would answer some too late
    gain: float = 0.2  # what more users must bring; less is noise of a machine whose speed changes
    closed_seconds: int = 4
    rounds: int = 8  # at saturation: a round's share of its ceiling varies by a tenth, and many even that out
    round_seconds: int = 5
    ceiling_seconds: float = 2.5  # of a ceiling's round, at least; one turn may take longer
    # Closed loops and ceilings repeat this many requests: few enough that a round holds each of them if six are
    # answered a second. On average they have as many tokens as all requests have.
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
        """Whether the last step clearly beat all earlier ones, without an error."""
        *before, last = closed
        most = max((step.pairs_per_second for step in before), default=0.0)
        return last.server_bound and not last.errors and last.pairs_per_second > (1 + self.gain) * most

    def saturating_users(self, closed: Sequence[Step]) -> int:
        """The least number of users, from the last of `users` on, that saturates the server, within noise.

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


class SaturationRun:
    """Brings models to saturation. `found` is everything found so far.

    A model without figures drops out, and its result says why; the others go on. `folder` takes logs and recordings.
    """

    def __init__(self, server: Target, load: Load, folder: Path, schedule: Schedule) -> None:
        self.server, self.load, self.folder, self.schedule = server, load, folder, schedule
        self.found: dict[str, ModelResult] = {}
        self.ceilings: dict[str, Ceiling] = {}

    def saturate(
        self, models: Mapping[str, str], packed: Sequence[Packed], slo: Slo | None = None
    ) -> Iterator[dict[str, ModelResult]]:
        """Closed loops up to saturation, saturation in rounds between ceilings, open loops, and the SLO search.

        Args:
            models: their names and versions.
            packed: the `distinct` requests, for the ceilings of a server that was started here.
            slo: the objective to search for.

        Yields:
            Everything found so far, after each step, so that an interruption loses nothing.

        Raises:
            BenchmarkError: the server or a generator ended, or no model has figures.
        """
        repository = self.server.repository
        with contextlib.ExitStack() as opened:
            for model, version in models.items():
                self.found[model] = ModelResult(version)
                if repository:
                    config = (repository / model / CONFIG_FILE).read_text(encoding="utf-8")
                    self.found[model] = ModelResult(version, config)
                    ceiling = open_ceiling(published_version(repository, model), packed)
                    self.ceilings[model] = opened.enter_context(ceiling)
            steps = len(models) * (len(self.schedule.users) + self.schedule.rounds + len(self.schedule.shares))
            progress = opened.enter_context(tqdm(total=steps, unit="step", leave=False, disable=None))
            for _ in itertools.chain(self.closed_loops(progress), self.open_loops(slo, progress)):
                yield dict(self.found)

    def models_with_figures(self) -> list[str]:
        """The models that have figures so far. Raises BenchmarkError if none has."""
        going = [model for model, found in self.found.items() if found.failure is None]
        if not going:
            raise BenchmarkError("; ".join(f"{model}: {found.failure}" for model, found in self.found.items()))
        return going

    def note(self, model: str, **fields: Any) -> None:
        """Notes what is new of a model."""
        self.found[model] = replace(self.found[model], **fields)

    def closed_loops(self, progress: tqdm) -> Iterator[None]:
        """Closed loops of more and more users, then the rounds at saturation; yields after each step of all models."""
        schedule, load = self.schedule, replace(self.load, distinct=self.schedule.distinct)
        with contextlib.ExitStack() as stack:
            pools: dict[str, Pool] = {}
            opened = {model: stack.enter_context(contextlib.ExitStack()) for model in self.found}

            def start(model: str, users: int) -> None:
                opened[model].close()  # the pool of fewer users
                pool = open_pool(self.server, model, load, self.folder, users)
                pools[model] = opened[model].enter_context(pool)

            def loop(model: str, users: int, seconds: int) -> Step:
                progress.set_description(model)
                step = self.server.with_counts(model, lambda: pools[model].send(seconds, users=users))
                progress.update()
                return step

            for model in self.found:
                start(model, schedule.users[-1])
            rising = list(self.found)
            for users in schedule.numbers_of_users():
                for model in rising:
                    if users > schedule.users[-1]:
                        progress.total += 1
                        start(model, users)
                    step = loop(model, users, schedule.closed_seconds)
                    self.note(model, closed=(*self.found[model].closed, step))
                yield
                rising = [
                    model for model in rising if users < schedule.users[-1] or schedule.rises(self.found[model].closed)
                ]
                if not rising:
                    break
            for model, found in list(self.found.items()):
                self.note(model, failure=why_no_figures(found.closed))
            users_of = {
                model: schedule.saturating_users(self.found[model].closed) for model in self.models_with_figures()
            }
            yield from self.rounds_at_saturation(users_of, loop)
            for model in users_of:
                self.note(model, failure=why_no_figures([one.step for one in self.found[model].rounds]))

    def rounds_at_saturation(
        self, users_of: Mapping[str, int], loop: Callable[[str, int, int], Step]
    ) -> Iterator[None]:
        """The rounds, with a round of every ceiling before, between and after them; yields after each."""

        def measure_ceilings() -> None:
            for model in users_of:
                if ceiling := self.ceilings.get(model):
                    ceiling.measure(self.schedule.ceiling_seconds)
                    self.note(model, ceiling=ceiling.result())

        measure_ceilings()
        for _ in range(self.schedule.rounds):
            steps = {model: loop(model, users, self.schedule.round_seconds) for model, users in users_of.items()}
            measure_ceilings()
            for model, step in steps.items():
                ceiling = self.ceilings.get(model)  # the rounds before and after the step
                left = ceiling.result(last=2).left_by(step.generator, usable_cores()) if ceiling else None
                self.note(model, rounds=(*self.found[model].rounds, Round(step, left)))
            yield

    def open_loops(self, slo: Slo | None, progress: tqdm) -> Iterator[None]:
        """Open loops at shares of saturation, and the SLO search; yields after each share, and after each search."""
        with contextlib.ExitStack() as stack:
            pools = {
                model: stack.enter_context(open_pool(self.server, model, self.load, self.folder))
                for model in self.models_with_figures()
            }
            rates = {
                model: found.saturated.requests_per_second for model, found in self.found.items() if found.saturated
            }
            for share, seconds in self.schedule.shares:
                for model, pool in pools.items():
                    progress.set_description(model)
                    step = self.open_step(pool, model, share * rates[model], seconds)
                    self.note(model, open=(*self.found[model].open, OpenStep(share, step)))
                    progress.update()
                yield
            for model, pool in pools.items() if slo else ():
                assert slo
                self.note(model, slo=self.search(pool, model, rates[model], slo))
                yield

    def open_step(self, pool: Pool, model: str, rate: float, seconds: int) -> Step:
        """A step of an open loop."""
        return self.server.with_counts(model, lambda: pool.send(seconds, rate=rate))

    def search(self, pool: Pool, model: str, saturated: float, slo: Slo) -> SloResult:
        """The highest rate that meets an objective, up to the saturated one; each step halves what is left."""
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


def why_no_figures(steps: Sequence[Step]) -> str | None:
    """Why no step measured the server; None if one did."""
    sound = [step for step in steps if step.server_bound]
    if not sound:
        return f"client-bound ({steps[-1].client_bound}); give more --processes"
    if not any(step.requests_per_second for step in sound):
        messages = sound[-1].generator.first_messages
        errors = "; ".join(f"{kind}: {text}" for kind, text in messages.items()) or "without an error"
        return f"it answered nothing within {sound[-1].duration} s ({errors}); see the server's log"
    return None
