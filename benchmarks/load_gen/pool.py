"""Runs the load: Locust processes side by side, each with a share of the users or of the rate.

Locust has processes of its own, because gevent changes the standard library of the process it is in. A process takes
seconds to start, so it stays, paused, for as many rounds as are sent.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import BenchmarkError
from benchmarks.load_gen.target import Target
from benchmarks.load_gen.workload import Selection
from benchmarks.measure.recording import Recording
from benchmarks.measure.schema import GeneratorUse, Step
from benchmarks.measure.stats import LIMITS, ClientLimits, summarize

ROOT = Path(__file__).resolve().parents[2]
LOCUSTFILE = ROOT / "benchmarks" / "load_gen" / "worker.py"


@dataclass(frozen=True)
class Timing:
    """Seconds around the measured part of a round."""

    warm_up: int = 2  # before it: connections, caches and the tokenizer's fetch are done by then
    resume: float = 0.5  # the same in a closed loop of users that were paused, and have all that
    run_out: int = 1  # after it, so that its last requests have company, too
    patience: float = 72  # for Locust's start, and for calls in flight at the end; past this it hangs


TIMING = Timing()


@dataclass(frozen=True)
class Load:
    """What is sent, apart from how much."""

    selection: Selection
    processes: int = 1
    distinct: int | None = None  # this many of the requests, over and over; None: all
    seed: int = 0  # of the first process; each other one has the next
    timing: Timing = TIMING
    limits: ClientLimits = LIMITS


class Generator:
    """A running Locust process. It writes its files beside `stem`."""

    def __init__(self, process: subprocess.Popen[bytes], stem: Path) -> None:
        self.process, self.log, self.stem = process, stem.with_suffix(".log"), stem
        self.rounds = 0

    def tell(self, **order: Any) -> None:
        """Starts a round, or pauses it. Raises BenchmarkError if the process has ended."""
        assert self.process.stdin
        try:
            self.process.stdin.write(f"{json.dumps(order)}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            self.process.wait()
            self.check()

    def check(self) -> None:
        """Raises BenchmarkError, with the end of its log, if the process has ended."""
        if self.process.poll() is None:
            return
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        last = list(itertools.takewhile(lambda line: not line.startswith("Type "), lines))[-15:]  # its table follows
        head = f"Locust ended with code {self.process.returncode} and without results; its log, {self.log}, ends:"
        raise BenchmarkError("\n".join([head, *last]))

    def read(self, suffix: str, patience: float) -> bytes:
        """Waits for a file and reads it. Raises BenchmarkError if the process ends instead, or hangs."""
        file, deadline = self.stem.with_suffix(suffix), time.monotonic() + patience
        while not file.exists():
            self.check()
            if time.monotonic() > deadline:
                raise BenchmarkError(f"Locust has not answered for {patience:.0f} s; its log: {self.log}")
            time.sleep(0.02)
        return file.read_bytes()

    def finish_round(self, patience: float) -> Recording:
        """What it did in the round that was paused."""
        content = self.read(f".{self.rounds}.json", patience)
        self.rounds += 1
        return Recording.from_json(content)


@dataclass(frozen=True)
class Pool:
    """The generators of a load, paused."""

    generators: list[Generator]
    load: Load

    def send(self, seconds: int, *, users: int | None = None, rate: float | None = None) -> Step:
        """Sends a round, a closed loop (`users`) or an open one (`rate` a second); returns the figures of its seconds.

        Raises:
            BenchmarkError: a generator ended or hangs, or began long after another one.
        """
        timing = self.load.timing
        going = self.generators if users is None else self.generators[:users]
        resumed = users is not None and all(generator.rounds for generator in going)
        warm_up = timing.resume if resumed else timing.warm_up
        parts = (warm_up, seconds, timing.run_out)
        for number, generator in enumerate(going):
            if users is None:
                generator.tell(users=1, rate=(rate or 0.0) / len(going), parts=parts)
            else:
                generator.tell(users=share(users, len(going), number))
        end = time.monotonic() + sum(parts)
        while (left := end - time.monotonic()) > 0:
            for generator in going:
                generator.check()
            time.sleep(min(left, 0.1))
        for generator in going:
            generator.tell(users=0)
        recordings = [generator.finish_round(timing.patience) for generator in going]
        return combine(recordings, self.load, warm_up, seconds, users, rate)


@contextlib.contextmanager
def open_pool(target: Target, model: str, load: Load, folder: Path, users: int | None = None) -> Iterator[Pool]:
    """Generators that wait for rounds; they end with the block.

    Args:
        target, model, load: what is sent where.
        folder: for logs and recordings.
        users: closed loop: the most that a round will have. None: open loop.

    Raises:
        BenchmarkError: a generator cannot start.
    """
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=folder))  # its own: nothing of an earlier run is read
    processes = load.processes if users is None else min(users, load.processes)
    with contextlib.ExitStack() as stack:
        generators = []
        for number in range(processes):
            stem = folder / f"generator-{number}"
            words = command(target, model, load, stem, number, 1 if users is None else share(users, processes, number))
            generators.append(stack.enter_context(start(words, stem, target)))
        for generator in generators:
            generator.read(".ready", load.timing.patience)
        yield Pool(generators, load)


@contextlib.contextmanager
def start(words: Sequence[str], stem: Path, target: Target) -> Iterator[Generator]:
    """A running generator; it ends with the block."""
    # Locust takes options from such variables, too; what is measured must not depend on the shell.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [variables.get("PYTHONPATH")])])
    variables |= target.connection.to_environment()
    with stem.with_suffix(".log").open("wb") as output:
        # A session of its own: Ctrl-C reaches this process alone, which then ends Locust. (A pipe has no keys to read.)
        process = subprocess.Popen(
            words, env=variables, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
        )
        try:
            yield Generator(process, stem)
        finally:
            process.kill()
            process.communicate()


def command(target: Target, model: str, load: Load, stem: Path, number: int, users: int) -> list[str]:
    """The command line of one generator."""
    words = [sys.executable, "-m", "locust", "--headless", "--only-summary", "--locustfile", str(LOCUSTFILE)]
    words += ["--users", str(users), "--spawn-rate", str(users), "--exit-code-on-error", "0"]
    words += [*target.connection.to_arguments(), "--model", model, *load.selection.to_arguments()]
    words += ["--paused", str(stem), "--seed", str(load.seed + number)]
    return words if load.distinct is None else [*words, "--distinct", str(load.distinct)]


def share(users: int, processes: int, number: int) -> int:
    """The users of one of several processes."""
    return users // processes + (number < users % processes)


def combine(
    recordings: Sequence[Recording], load: Load, warm_up: float, seconds: int, users: int | None, rate: float | None
) -> Step:
    """The figures of what all generators recorded. Raises BenchmarkError if they began apart."""
    begin = max(each.started for each in recordings)
    if (apart := begin - min(each.started for each in recordings)) > load.timing.run_out:
        raise BenchmarkError(
            f"the generators began {apart:.1f} s apart, so one had ended before the others were measured; "
            "give fewer --processes, or let nothing else run on this machine"
        )
    samples = [
        sample._replace(intended_start=sample.intended_start + each.started - begin)
        for each in recordings
        for sample in each.samples
    ]
    use = GeneratorUse(
        processes=len(recordings),
        busy=max(each.busy for each in recordings),
        cores=sum(each.cores for each in recordings),
        first_messages={kind: text for each in recordings for kind, text in each.first_messages.items()},
    )
    cycle = sum(each.distinct for each in recordings) if users else None
    return summarize(samples, warm_up, seconds, users=users, rate=rate, generator=use, cycle=cycle, limits=load.limits)
