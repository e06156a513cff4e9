"""Locust users that rank: requests of a click log, by gRPC through `clickbert.Ranker`; closed loop or open loop.

Closed loop: each user sends its next request when the last one is answered. Open loop: one user starts requests at
random moments, whatever was answered. A latency counts from the moment at which the request was *to* start, so a stall
of the server, or of this process, is in the figures of every request that it would have met.

`python -m benchmarks` runs this file with `--paused STEM`. Its users wait; a line of stdin starts a round, {"users": 4}
or {"users": 1, "rate": 20.0, "parts": [2, 10, 1]}, and {"users": 0} pauses them again. The round is then written to
STEM.0.json, the next one to STEM.1.json; STEM.ready says that this process listens. The end of stdin ends it. By
itself, with Locust's own table, in a closed loop:

    locust -f benchmarks/load_gen/worker.py --url localhost:8001 --users 8 --spawn-rate 8 --headless --run-time 30s
"""

# mypy: disable-error-code="no-untyped-call"
# Locust's event hooks have no types.

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
from gevent.event import Event
from gevent.pool import Group
from grpc.experimental.gevent import init_gevent
from locust import User, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from benchmarks.load_gen import workload
from benchmarks.load_gen.workload import Request, random_moments, sample_of_all_sizes, size_classes, spread
from benchmarks.measure.recording import Recording, Sample
from clickbert import ClickBertError, Ranker
from clickbert.connection import Connection
from clickbert.wire.protocol import DEFAULT_MODEL

# Locust has patched the standard library for gevent before it imports this file. gRPC, however, waits in C, where
# gevent cannot see it: one user's call would stop all the others until its answer is there. This hands the waiting to
# gevent; it must come before the first channel. Measured with grpcio 1.85.1 and gevent 26.9.0, 8 users with 3 calls
# each to a server that sleeps 0.2 s: without it 4.9 s and never more than 1 call in flight, with it 0.65 s and 8 in
# flight. (Calls in gevent's threadpool are no way out: with the library patched they did not return.)
init_gevent()

TIMEOUT = 10.0  # seconds of a whole call
# A server that is gone refuses at once; without a pause its users would only compete for the processor.
PAUSE_AFTER_ERROR = 0.1
Clocks = tuple[float, float, float]


def read_clocks() -> Clocks:
    """The time, and the CPU time of the users' thread and of the process."""
    return time.perf_counter(), time.thread_time(), time.process_time()


class Recorder:
    """What the users share: the requests, one ranker as an application has it, and every request's sample."""

    def __init__(self, ranker: Ranker, requests: Sequence[Request], seed: int, distinct: int | None = None) -> None:
        self.ranker, self.seed = ranker, seed
        self.sizes = size_classes(requests)
        self.requests = sample_of_all_sizes(requests, distinct)
        # All users of a closed loop take the next one, so that what is sent in any short time is a fair sample.
        self.turns = itertools.cycle(spread(self.requests, random.Random(seed)))
        self.numbers = itertools.count()  # of the users
        self.going = sys.maxsize  # users with a smaller number are not paused
        self.rate: float | None = None  # open loop: requests to start a second
        self.parts: Sequence[float] = ()  # open loop: seconds of the parts that have this rate each
        self.changed = Event()  # set for a moment when `going` grows
        self.open_rounds = itertools.count()  # numbers of the open loop's rounds
        self.unfinished = 0  # requests in flight, and open loops
        self.start()

    def start(self) -> None:
        """Forgets what was recorded, and starts the clocks."""
        self.samples: list[Sample] = []
        self.first_messages: dict[str, str] = {}
        self.clocks = read_clocks()

    def send(self, environment: Environment, request: Request, intended_start: float) -> ClickBertError | None:
        """Sends one request and records it; `intended_start` is on the clock of `time.perf_counter`."""
        error: ClickBertError | None = None
        start_delay = time.perf_counter() - intended_start
        self.unfinished += 1
        try:
            self.ranker.rank(request.query, request.documents)
        except ClickBertError as exc:
            error = exc
            self.first_messages.setdefault(type(exc).__name__, str(exc))
        finally:
            self.unfinished -= 1
        latency = time.perf_counter() - intended_start
        kind = type(error).__name__ if error else None
        at, size = intended_start - self.clocks[0], self.sizes[request]
        self.samples.append(Sample(at, start_delay, latency, len(request.documents), kind, size))
        environment.events.request.fire(
            request_type="gRPC",
            name="rank",
            response_time=latency * 1000,
            response_length=0,
            exception=error,
            context={},
        )
        return error

    def start_at_random_moments(self, environment: Environment, rate: float) -> None:
        """Starts requests at a Poisson process's moments, whatever is answered."""
        in_flight, broken = Group(), list[gevent.Greenlet]()
        # Each round draws anew: the same moments again would say nothing new of what comes together by chance.
        chance = random.Random(f"{self.seed} {next(self.open_rounds)}")
        # In plain random order: spreading the sizes would keep apart large ones that chance brings together.
        requests = itertools.cycle(chance.sample(self.requests, len(self.requests)))
        self.unfinished += 1
        for moment in random_moments(rate, self.parts, chance):
            if broken:
                break
            intended_start = self.clocks[0] + moment
            gevent.sleep(max(0.0, intended_start - time.perf_counter()))  # 0: lets the others run
            sending = in_flight.spawn(self.send, environment, next(requests), intended_start)
            sending.link_exception(broken.append)
        in_flight.join()  # each ends by its own timeout
        self.unfinished -= 1
        for sending in broken:
            sending.get()  # raises what is not the client's error, for Locust to report

    def obey(self, stem: Path, environment: Environment) -> None:
        """Sends rounds as stdin says, and writes each; returns at its end, or after a bug."""
        rounds, rest = itertools.count(), b""
        stem.with_suffix(".ready").touch()
        while environment.process_exit_code is None:
            gevent.socket.wait_read(sys.stdin.fileno())
            if not (read := os.read(sys.stdin.fileno(), 4096)):
                break
            *lines, rest = (rest + read).split(b"\n")
            for order in map(json.loads, lines):
                ended = read_clocks()  # what comes until all are answered is no part of the round
                self.going = order["users"]
                if self.going:
                    self.rate, self.parts = order.get("rate"), order.get("parts", ())
                    self.start()
                    self.changed.set()
                    self.changed.clear()
                    continue
                while self.unfinished:
                    gevent.sleep(0.01)
                if environment.process_exit_code is None:
                    self.write(stem.with_suffix(f".{next(rounds)}.json"), ended)

    def write(self, path: Path, ended: Clocks) -> None:
        """Writes the round as JSON, whole or not at all."""
        lasted, thread, process = (end - begin for begin, end in zip(self.clocks, ended, strict=True))
        recording = Recording(
            self.samples, self.first_messages, len(self.requests), self.clocks[0], thread / lasted, process / lasted
        )
        unfinished = path.with_suffix(".part")
        unfinished.write_text(recording.to_json(), encoding="utf-8")
        unfinished.rename(path)


class RankingUser(User):
    """Ranks one request after another (closed loop), or starts them at random moments (open loop)."""

    wait_time = constant(0)
    recorder: Recorder  # set when the test starts

    def on_start(self) -> None:
        """Takes a number."""
        self.number = next(self.recorder.numbers)

    @task
    def rank(self) -> None:
        """Sends one request (closed loop) or all requests of the round (open loop)."""
        recorder = self.recorder
        while self.number >= recorder.going:
            recorder.changed.wait()
        if recorder.rate is not None:
            recorder.going = 0  # no second time
            recorder.start_at_random_moments(self.environment, recorder.rate)
        elif recorder.send(self.environment, next(recorder.turns), time.perf_counter()):
            time.sleep(PAUSE_AFTER_ERROR)


def add_options(parser: LocustArgumentParser) -> None:
    """Adds this file's options to Locust's."""
    Connection.add_arguments(parser)
    workload.add_workload_options(parser)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="the click model on the server")
    parser.add_argument("--distinct", type=int, help="send only this many requests, over and over (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of requests, and of the open loop's moments")
    parser.add_argument("--paused", metavar="STEM", type=Path, help="start paused, and obey stdin (see the file)")


def prepare(environment: Environment, **_: Any) -> None:
    """Reads the click log once; an error here ends Locust."""
    options = environment.parsed_options
    if options is None:
        raise ValueError("run this file with the `locust` command")
    requests = workload.from_arguments(options).read()
    ranker = Ranker(Connection.from_arguments(options), options.model, timeout=TIMEOUT)
    RankingUser.recorder = Recorder(ranker, requests, options.seed, options.distinct)

    def stop_on_a_bug(**_: Any) -> None:
        # An error that is not the client's: Locust would log it and go on, and the request would be in no figure.
        if environment.process_exit_code is None and environment.runner:  # the first one
            gevent.spawn(environment.runner.quit)  # not here: it waits for the users, and this is one of them
        environment.process_exit_code = 1

    environment.events.user_error.add_listener(stop_on_a_bug)


def begin(environment: Environment, **_: Any) -> None:
    """Starts the clocks; with `--paused`, pauses the users and listens."""
    recorder, options = RankingUser.recorder, environment.parsed_options
    recorder.start()
    if options is not None and options.paused and environment.runner:
        recorder.going = 0
        gevent.spawn(recorder.obey, options.paused, environment).link(lambda _: environment.runner.quit())


events.init_command_line_parser.add_listener(add_options)
events.init.add_listener(prepare)
events.test_start.add_listener(begin)
events.quitting.add_listener(lambda **_: RankingUser.recorder.ranker.close())
