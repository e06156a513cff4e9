"""A Locust user that ranks: real groups of a click log, one request at a time, by gRPC through `clickbert.Ranker`.

`python -m benchmarks load` runs this file and makes its figures from the samples. By itself, with Locust's own table:

    locust -f benchmarks/locustfile.py --host localhost:8001 --users 8 --spawn-rate 8 --headless --run-time 30s
    locust -f benchmarks/locustfile.py --host localhost:8001 --click-log my-clicks.jsonl.gz --model clickbert_trt_fp16

Not known here: which part of the run is measured. Every request is recorded, with the moment it began.
"""

# mypy: disable-error-code="no-untyped-call"
# Locust's event hooks have no types.

from __future__ import annotations

import itertools
import json
import random
import time
from pathlib import Path
from typing import Any

import gevent
from grpc.experimental.gevent import init_gevent
from locust import User, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from clickbert import ClickBertError, Ranker
from clickbert.protocol import DEFAULT_MODEL
from finetune.clicklog import ClickRow, read_click_log

# Locust has patched the standard library for gevent before it imports this file. gRPC, however, waits in C, where
# gevent cannot see it: one user's call would stop all the others until its answer is there. This hands the waiting to
# gevent; it must come before the first channel. Measured with grpcio 1.85.1 and gevent 26.9.0, 8 users with 3 calls
# each to a server that sleeps 0.2 s: without it 4.9 s and never more than 1 call in flight, with it 0.65 s and 8 in
# flight. (Calls in gevent's threadpool are no way out: with the library patched they did not return.)
init_gevent()

# A whole call may take this many seconds; Locust must wait longer than that for calls in flight when it stops.
TIMEOUT = 10.0
# A server that is gone refuses in no time; without a pause its users would only compete for the processor.
PAUSE_AFTER_ERROR = 0.1

Group = tuple[str, list[str]]


class Recorder:
    """What the users share: the groups, one ranker as an application has it, and every request's sample."""

    def __init__(self, url: str, model: str, groups: list[Group]) -> None:
        self.groups = groups
        self.ranker = Ranker(url, model, timeout=TIMEOUT)
        # [began, s after the start; took, s; pairs; the error's class or None]
        self.samples: list[tuple[float, float, int, str | None]] = []
        self.first_messages: dict[str, str] = {}  # by the error's class
        self.started, self.busy = time.perf_counter(), time.thread_time()

    def record(self, began: float, took: float, pairs: int, error: ClickBertError | None) -> None:
        """Keeps one request; `began` on the clock of `time.perf_counter`."""
        kind = type(error).__name__ if error else None
        self.samples.append((began - self.started, took, pairs, kind))
        if kind:
            self.first_messages.setdefault(kind, str(error))

    def write(self, path: Path) -> None:
        """Writes what was recorded as JSON, whole or not at all."""
        lasted = time.perf_counter() - self.started
        # All users run in this thread: where it never rests, the response times are its own and not the server's.
        busy = (time.thread_time() - self.busy) / lasted
        content = {
            "samples": self.samples,
            "first_messages": self.first_messages,
            "lasted": lasted,
            "busy": busy,
        }
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(content), encoding="utf-8")
        unfinished.rename(path)


class RankingUser(User):
    """Ranks one group after another, in an order of its own; the next request begins when the last was answered."""

    wait_time = constant(0)
    recorder: Recorder  # set when the test starts
    numbers = itertools.count()

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        # Seeded by the user's number: the same run sends the same requests, but no two users march in step.
        order = random.Random(next(self.numbers)).sample(self.recorder.groups, len(self.recorder.groups))
        self.turns = itertools.cycle(order)

    @task
    def rank(self) -> None:
        """Sends one request and records it."""
        query, documents = next(self.turns)
        error: ClickBertError | None = None
        began = time.perf_counter()
        try:
            self.recorder.ranker.rank(query, documents)
        except ClickBertError as exc:
            error = exc
        took = time.perf_counter() - began
        self.recorder.record(began, took, len(documents), error)
        self.environment.events.request.fire(
            request_type="gRPC", name="rank", response_time=took * 1000, response_length=0, exception=error, context={}
        )
        if error:
            time.sleep(PAUSE_AFTER_ERROR)


def read_groups(rows: list[ClickRow]) -> list[Group]:
    """The ranking requests of a click log: each group's query with its candidates, in the file's order."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        groups.setdefault((row.group, row.query), []).append(row.document)
    return [(query, documents) for (_, query), documents in groups.items()]


def add_options(parser: LocustArgumentParser) -> None:
    """Adds this file's options to Locust's."""
    parser.add_argument("--click-log", default="data/sample/test.jsonl", help="where the requests come from")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="the click model on the server")
    parser.add_argument("--samples", metavar="FILE", help="where to write every request's response time, as JSON")


def read_requests(environment: Environment, **_: Any) -> None:
    """Reads the click log once; an error here ends Locust."""
    options = environment.parsed_options
    if options is None or not environment.host:
        raise ValueError("there is no server to aim at; give --host, its gRPC address: localhost:8001")
    groups = read_groups(read_click_log(options.click_log))
    RankingUser.recorder = Recorder(environment.host, options.model, groups)

    def stop_on_a_bug(**_: Any) -> None:
        # An error that is not the client's: Locust would log it and go on, and the request would be in no figure.
        environment.process_exit_code = 1
        if environment.runner:
            gevent.spawn(environment.runner.quit)  # not here: it waits for the users, and this is one of them

    environment.events.user_error.add_listener(stop_on_a_bug)
    # gevent's clock stands still while this file is read: Locust's --run-time would count from before, and end early.
    gevent.get_hub().loop.update_now()


def start_the_clock(**_: Any) -> None:
    """Makes the samples' times relative to the start of the users."""
    recorder = RankingUser.recorder
    recorder.started, recorder.busy = time.perf_counter(), time.thread_time()


def write_samples(environment: Environment, **_: Any) -> None:
    """Hands the samples over and closes the connection; all users have stopped."""
    options = environment.parsed_options
    if options is not None and options.samples:
        RankingUser.recorder.write(Path(options.samples))
    RankingUser.recorder.ranker.close()


events.init_command_line_parser.add_listener(add_options)
events.init.add_listener(read_requests)
events.test_start.add_listener(start_the_clock)
events.quitting.add_listener(write_samples)
