"""Runs the load: Locust processes side by side, each with a share of the users or of the rate.

Locust has processes of its own, since gevent changes the standard library of the process it is in. Not known here:
what the figures are compared with.
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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.load_gen.target import TOKEN_VARIABLE, LoadError, Target
from benchmarks.load_gen.workload import ALL
from benchmarks.measure.stats import Sample, summarize, what_limits_the_generator

Running = Mapping[Path, "subprocess.Popen[bytes]"]  # generators by the stem of their files
ROOT = Path(__file__).resolve().parent.parent.parent
LOCUSTFILE = ROOT / "benchmarks" / "load_gen" / "worker.py"
# Seconds. Connections, caches and the tokenizer's fetch are behind the users before anything is counted; users that
# have these, and only rested, need less.
WARM_UP, RESTED = 2, 0.5
# The load goes on for a second behind the measured part, so that its last requests have company, too.
RUN_OUT = 1
# A round of users that rest has no such second: of its seconds one generator may begin this share behind another.
LATE = 0.1
# For calls in flight at the end: more than the ten seconds after which the users' client gives up.
STOP_TIMEOUT = 12
# For Locust's own start and end; past this it hangs.
GRACE = 60


@dataclass(frozen=True)
class Load:
    """What is sent.

    Attributes:
        data: the click log.
        candidates: of a request; None: as the click log has them.
        texts: workload.ALL or TITLES.
        users: closed loop: requests in flight.
        rate: open loop: requests to start a second, on average. Just one of the two.
        duration: seconds that are measured.
        processes: generators.
        seed: of the requests' order and moments.
        distinct: so many of the requests, over and over; None: all.
    """

    data: Path
    candidates: int | None = None
    texts: str = ALL
    users: int | None = None
    rate: float | None = None
    duration: int = 10
    processes: int = 1
    seed: int = 0
    distinct: int | None = None

    @property
    def parts(self) -> tuple[int, int, int]:
        """Seconds before, of and behind the measured part."""
        return WARM_UP, self.duration, RUN_OUT

    @property
    def run_time(self) -> int:
        """Seconds of all parts."""
        return sum(self.parts)


def run_load(target: Target, model: str, load: Load, folder: Path) -> dict[str, Any]:
    """Sends a load and returns its figures: `summarize`'s, users, rate, and what the generators did.

    Args:
        target: the server.
        model: the click model.
        load: what is sent.
        folder: for logs and samples.

    Raises:
        LoadError: a generator ended with an error, too early, or not at all; they began apart; or nothing was recorded.
    """
    with contextlib.ExitStack() as stack:
        running = start_all(stack, target, model, load, folder)
        wait(running.values(), load.run_time)
    return combine([read(process, files, load) for files, process in running.items()], load, WARM_UP)


@contextlib.contextmanager
def resting(target: Target, model: str, load: Load, folder: Path) -> Iterator[Callable[[int, int], dict[str, Any]]]:
    """Generators of a closed loop that rest, but for its rounds; behind the block they are gone.

    A generator takes seconds to start, which is too long for a round of seconds; one that rests takes nothing.

    Args:
        target, model, folder: as for `run_load`.
        load: what is sent, its users the most that a round can have.

    Yields:
        A function of users and seconds that sends a round and returns its figures, as `run_load` does.

    Raises:
        LoadError: likewise, in a round, too.
    """
    with contextlib.ExitStack() as stack:
        running = start_all(stack, target, model, load, folder, at_rest=True)
        went = dict.fromkeys(running, 0)  # rounds of each
        await_files(running, {files: files.with_suffix(".ready") for files in running})

        def send(users: int, seconds: int) -> dict[str, Any]:
            shares = {files: share(users, load.processes, number) for number, files in enumerate(running)}
            going = {files: running[files] for files, some in shares.items() if some}
            warm_up = RESTED if all(went[files] for files in going) else WARM_UP
            tell(going, shares)
            time.sleep(warm_up + seconds)
            tell(going, dict.fromkeys(going, 0))
            written = {files: files.with_suffix(f".{went[files]}.json") for files in going}
            await_files(going, written)
            for files in going:
                went[files] += 1
            recorded = [json.loads(path.read_text(encoding="utf-8")) for path in written.values()]
            given = replace(load, users=users, duration=seconds, processes=len(going))
            return combine(recorded, given, warm_up, LATE * seconds)

        yield send


def start_all(
    stack: contextlib.ExitStack, target: Target, model: str, load: Load, folder: Path, *, at_rest: bool = False
) -> Running:
    """All generators of a load, running; they are gone when `stack` is closed."""
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=folder))  # of its own: nothing of a former run is read
    running = {}
    for number in range(load.processes):
        files = folder / f"generator-{number}"
        words = command(target, model, load, number, files, at_rest=at_rest)
        running[files] = stack.enter_context(started(words, files, target))
    return running


def tell(running: Running, users: Mapping[Path, int]) -> None:
    """Tells generators at rest how many of their users are to go. Raises LoadError if one has ended."""
    for files, process in running.items():
        assert process.stdin
        try:
            process.stdin.write(b"%d\n" % users[files])
            process.stdin.flush()
        except BrokenPipeError:
            process.wait()
            raise LoadError(how_it_ended(process, files)) from None


def await_files(running: Running, wanted: Mapping[Path, Path]) -> None:
    """Waits until each generator has written its file. Raises LoadError if one ends instead, or hangs."""
    deadline = time.monotonic() + STOP_TIMEOUT + GRACE
    for files, path in wanted.items():
        while not path.exists():
            if running[files].poll() is not None:
                raise LoadError(how_it_ended(running[files], files))
            if time.monotonic() > deadline:
                raise LoadError(
                    f"Locust did not answer for {STOP_TIMEOUT + GRACE} s; its log: {files.with_suffix('.log')}"
                )
            time.sleep(0.02)


def combine(
    recorded: Sequence[dict[str, Any]], load: Load, warm_up: float, most_apart: float = RUN_OUT
) -> dict[str, Any]:
    """The figures of what all generators recorded.

    Args:
        recorded: what each wrote.
        load: what they sent.
        warm_up: seconds before the measured part.
        most_apart: seconds that one may begin behind another.

    Raises:
        LoadError: they began apart, or nothing was recorded.
    """
    begin = max(each["started"] for each in recorded)
    if (apart := begin - min(each["started"] for each in recorded)) > most_apart:
        raise LoadError(
            f"the generators began {apart:.1f} s apart, so one had ended before the others were measured; "
            "give fewer --processes, or let nothing else run on this machine"
        )
    samples = [
        Sample(planned + each["started"] - begin, *rest) for each in recorded for planned, *rest in each["samples"]
    ]
    cycle = sum(each["distinct"] for each in recorded) if load.users else None
    figures = summarize(samples, warm_up, load.duration, cycle)
    if not figures["requests"]:
        raise LoadError(f"no request began in the {load.duration} s measured; give a longer --duration")
    busy = max(each["busy"] for each in recorded)
    generator = {
        "processes": load.processes,
        "busy": busy,
        "cores": sum(each["cores"] for each in recorded),
        "limit": what_limits_the_generator(figures, busy),
        "first_messages": {kind: text for each in recorded for kind, text in each["first_messages"].items()},
    }
    return {"users": load.users, "rate": load.rate, **figures, "generator": generator}


def command(target: Target, model: str, load: Load, number: int, files: Path, *, at_rest: bool = False) -> list[str]:
    """The command line of one generator."""
    users = 1 if load.users is None else share(load.users, load.processes, number)
    words = [sys.executable, "-m", "locust", "--headless", "--only-summary", "--exit-code-on-error", "0"]
    words += ["--locustfile", str(LOCUSTFILE), "--host", target.url, "--model", model, "--texts", load.texts]
    words += ["--users", str(users), "--spawn-rate", str(users)]
    words += ["--at-rest"] if at_rest else ["--run-time", str(load.run_time)]
    words += ["--stop-timeout", str(STOP_TIMEOUT), "--click-log", str(load.data)]
    words += ["--samples", str(files.with_suffix(".json")), "--seed", str(load.seed * load.processes + number)]
    words += [] if load.candidates is None else ["--candidates", str(load.candidates)]
    words += [] if load.distinct is None else ["--distinct", str(load.distinct)]
    if load.rate is not None:
        words += ["--rate", str(load.rate / load.processes), "--parts", ",".join(map(str, load.parts))]
    return words + ([] if target.ca_file is None else ["--ca-file", str(target.ca_file)])


def share(users: int, processes: int, number: int) -> int:
    """The users of one of several processes."""
    return users // processes + (number < users % processes)


@contextlib.contextmanager
def started(words: list[str], files: Path, target: Target) -> Any:
    """A running generator; behind the block it is gone."""
    # Locust takes options from such variables, too; what is measured must not depend on the shell.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [variables.get("PYTHONPATH")])])
    variables.pop(TOKEN_VARIABLE, None)  # it is for the server that --url names
    if target.token is not None:
        variables[TOKEN_VARIABLE] = target.token
    with files.with_suffix(".log").open("wb") as output:
        # A session of its own: Ctrl-C reaches this process alone, which then ends Locust. (A pipe has no keys to read.)
        process = subprocess.Popen(
            words, env=variables, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def wait(running: Collection[subprocess.Popen[bytes]], run_time: int) -> None:
    """Waits for the generators, with a progress bar of the run's seconds.

    Raises:
        LoadError: one hangs.
    """
    began = time.monotonic()
    with tqdm(total=run_time, unit="s", desc="load", leave=False, disable=None) as progress:
        while any(process.poll() is None for process in running):
            passed = time.monotonic() - began
            if passed > run_time + STOP_TIMEOUT + GRACE:
                raise LoadError(f"Locust did not end {STOP_TIMEOUT + GRACE} s after its time was over")
            progress.update(min(int(passed), run_time) - progress.n)
            time.sleep(0.1)


def read(process: subprocess.Popen[bytes], files: Path, load: Load) -> dict[str, Any]:
    """What a generator that has ended wrote.

    Raises:
        LoadError: it ended with an error or too early.
    """
    samples = files.with_suffix(".json")
    if process.returncode or not samples.exists():
        raise LoadError(how_it_ended(process, files))
    recorded: dict[str, Any] = json.loads(samples.read_text(encoding="utf-8"))
    if recorded["lasted"] < WARM_UP + load.duration:
        raise LoadError(
            f"Locust ended after {recorded['lasted']:.1f} s of {load.run_time}: who stopped it? Its log: "
            f"{files.with_suffix('.log')}"
        )
    return recorded


def how_it_ended(process: subprocess.Popen[bytes], files: Path) -> str:
    """Of a generator that has ended and should not have: its code, and the end of its log."""
    log = files.with_suffix(".log")
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    told = list(itertools.takewhile(lambda line: not line.startswith("Type "), lines))[-15:]  # then comes its table
    return "\n".join([f"Locust ended with code {process.returncode} and without results; its log, {log}, ends:", *told])
