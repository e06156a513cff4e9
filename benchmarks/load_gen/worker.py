"""Locust users that rank: requests of a click log, by gRPC through `clickbert.Ranker`; closed loop or open loop.

Closed loop (the default): each user sends its next request when the last was answered. Open loop (`--rate`): one user
starts requests at random moments, whatever was answered; a latency counts from the moment at which the request was *to*
start, so that a stall of the server, or of this process, is in the figures of all whom it would have met.

`python -m benchmarks` runs this file and makes its figures from the samples. By itself, with Locust's own table:

    locust -f benchmarks/load_gen/worker.py --host localhost:8001 --users 8 --spawn-rate 8 --headless --run-time 30s
    locust -f benchmarks/load_gen/worker.py --host localhost:8001 --users 1 --rate 20 --headless --run-time 30s

With `--at-rest` the users of a closed loop rest until a line of stdin says how many of them are to go, and from a 0 on
again; what they did between is written to a file of its own (SAMPLES.0.json, .1.json, ...; SAMPLES.ready says that it
listens). The end of stdin ends the run.

A token is read from the environment variable CLICKBERT_TOKEN. Not known here: which part of the run is measured.
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
from locust.exception import StopUser

from benchmarks.load_gen.workload import ALL, Request, few, read_requests, size_classes, spread
from clickbert import ClickBertError, Connection, Ranker
from clickbert.protocol import DEFAULT_MODEL

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
ENDED = -1  # in place of how many users are to go


class Recorder:
    """What the users share: the requests, one ranker as an application has it, and every request's sample."""

    def __init__(self, ranker: Ranker, requests: list[Request], seed: int, distinct: int | None = None) -> None:
        self.ranker, self.seed = ranker, seed
        chance = random.Random(seed)
        self.sizes = size_classes(requests)
        requests = few(requests, distinct)
        # All users take the next one of a closed loop, so that what is sent in any short time is a fair sample.
        self.turns = itertools.cycle(spread(requests, chance))
        self.random_turns = itertools.cycle(chance.sample(requests, len(requests)))
        self.distinct = len(requests)
        # [was to begin, s after the start; began so much later, s; took from then, s; pairs; the error's class or None;
        # the request's size class]
        self.samples: list[tuple[float, float, float, int, str | None, str]]
        self.first_messages: dict[str, str]  # by the error's class
        self.numbers = itertools.count()  # of the users of a closed loop
        self.going = sys.maxsize  # so many of them do not rest
        self.told = Event()  # set for a moment when that changes
        self.in_flight = 0
        self.start()

    def start(self) -> None:
        """Forgets what was recorded, and starts the clocks."""
        self.samples, self.first_messages = [], {}
        self.started, self.thread, self.process = time.perf_counter(), time.thread_time(), time.process_time()

    def send(self, environment: Environment, request: Request, planned: float) -> ClickBertError | None:
        """Sends one request and records it; `planned` on the clock of `time.perf_counter`."""
        error: ClickBertError | None = None
        began = time.perf_counter()
        self.in_flight += 1
        try:
            self.ranker.rank(request.query, request.documents)
        except ClickBertError as exc:
            error = exc
            self.first_messages.setdefault(type(exc).__name__, str(exc))
        finally:
            self.in_flight -= 1
        took = time.perf_counter() - planned
        kind = type(error).__name__ if error else None
        size = self.sizes[request]
        self.samples.append((planned - self.started, began - planned, took, len(request.documents), kind, size))
        environment.events.request.fire(
            request_type="gRPC", name="rank", response_time=took * 1000, response_length=0, exception=error, context={}
        )
        return error

    def obey(self, files: Path, environment: Environment) -> None:
        """Lets users go and rest as stdin says, and writes each round's file; returns at its end, or after a bug."""
        rounds, lines = itertools.count(), b""
        files.with_suffix(".ready").touch()
        while environment.process_exit_code is None:
            gevent.socket.wait_read(sys.stdin.fileno())
            if not (read := os.read(sys.stdin.fileno(), 64)):
                break
            *whole, lines = (lines + read).split(b"\n")
            for line in whole:
                self.let_go(int(line))
                if self.going:
                    self.start()
                    continue
                clocks = self.clocks()  # what comes until all are answered is no part of the round
                while self.in_flight:
                    gevent.sleep(0.01)
                if environment.process_exit_code is None:
                    self.write(files.with_suffix(f".{next(rounds)}.json"), clocks)
        self.let_go(ENDED)

    def let_go(self, users: int) -> None:
        """Lets so many users go, and the others rest; ENDED: all stop."""
        self.going = users
        self.told.set()
        self.told.clear()

    def clocks(self) -> tuple[float, float, float]:
        """Seconds since the start: on the clock, of the users' thread, of the process."""
        return (
            time.perf_counter() - self.started,
            time.thread_time() - self.thread,
            time.process_time() - self.process,
        )

    def write(self, path: Path, clocks: tuple[float, float, float]) -> None:
        """Writes what was recorded until then as JSON, whole or not at all."""
        lasted, thread, process = clocks
        content = {
            "samples": self.samples,
            "first_messages": self.first_messages,
            "distinct": self.distinct,
            "started": self.started,  # on a clock that all processes of this machine share
            "lasted": lasted,
            # All users run in this thread: where it never rests, the response times are its own and not the server's.
            "busy": thread / lasted,
            "cores": process / lasted,  # gRPC's threads count, too
        }
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(content), encoding="utf-8")
        unfinished.rename(path)


class RankingUser(User):
    """Ranks one request after another (closed loop), or starts them at random moments (open loop)."""

    wait_time = constant(0)
    recorder: Recorder  # set when the test starts
    rate: float | None = None  # requests a second that are to be started; None: closed loop
    parts: Sequence[float] = ()  # seconds of the run's parts, for `random_moments`

    def on_start(self) -> None:
        """Takes a number."""
        self.number = next(self.recorder.numbers)

    @task
    def rank(self) -> None:
        """Sends one request (closed loop) or all requests of the run (open loop)."""
        if self.rate is not None:
            self.start_at_random_moments(self.rate)
            raise StopUser
        while self.number >= self.recorder.going:
            if self.recorder.going == ENDED:
                raise StopUser
            self.recorder.told.wait()
        if self.recorder.send(self.environment, next(self.recorder.turns), time.perf_counter()):
            time.sleep(PAUSE_AFTER_ERROR)

    def start_at_random_moments(self, rate: float) -> None:
        """Starts requests at a Poisson process's moments, whatever is answered."""
        in_flight, broken = Group(), list[gevent.Greenlet]()
        for moment in random_moments(rate, self.parts, random.Random(self.recorder.seed)):
            if broken:
                break
            planned = self.recorder.started + moment
            gevent.sleep(max(0.0, planned - time.perf_counter()))  # 0: lets the others run
            # No spread of their sizes here: it would keep apart large ones that chance brings together.
            request = next(self.recorder.random_turns)
            sending = in_flight.spawn(self.recorder.send, self.environment, request, planned)
            sending.link_exception(broken.append)
        in_flight.join()  # each ends by its own timeout
        for sending in broken:
            sending.get()  # raises what is not the client's error, for Locust to report


def random_moments(rate: float, parts: Sequence[float], chance: random.Random) -> list[float]:
    """A Poisson process's moments, given that each part of the run has as many as the rate says.

    Left to chance alone, a measured part of 100 requests would often have 10 % more or fewer, and the same ones every
    time, since runs are seeded: "70 % of saturation" was 55 to 63 % (docs/benchmarks.md).

    Args:
        rate: moments a second.
        parts: seconds of each part, one behind the other.

    Returns:
        Seconds from the start, ascending.
    """
    moments, start = [], 0.0
    for part in parts:
        moments += sorted(chance.uniform(start, start + part) for _ in range(round(rate * part)))
        start += part
    return moments


def seconds(text: str) -> list[float]:
    """Numbers between commas."""
    return [float(part) for part in text.split(",")]


def add_options(parser: LocustArgumentParser) -> None:
    """Adds this file's options to Locust's."""
    parser.add_argument("--click-log", default="data/sample/test.jsonl", help="where the requests come from")
    parser.add_argument("--candidates", type=int, help="how many each request has (default: as the click log has them)")
    parser.add_argument("--texts", default=ALL, help="'all' candidates, or only those that are 'titles'")
    parser.add_argument("--distinct", type=int, help="how many of the requests are sent, over and over (default: all)")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="the click model on the server")
    parser.add_argument("--ca-file", help="PEM file of the authority that signed the server's certificate")
    parser.add_argument("--rate", type=float, help="open loop: requests a second to start, on average")
    parser.add_argument(
        "--parts", type=seconds, help="open loop: seconds of the parts that have this --rate each: 2,10,2"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order of requests, and of the open loop's moments")
    parser.add_argument("--at-rest", action="store_true", help="closed loop: go and rest as stdin says (see the file)")
    parser.add_argument("--samples", metavar="FILE", help="where to write every request's response time, as JSON")


def prepare(environment: Environment, **_: Any) -> None:
    """Reads the click log once; an error here ends Locust."""
    options = environment.parsed_options
    if options is None or not environment.host:
        raise ValueError("there is no server to aim at; give --host, its gRPC address: localhost:8001")
    if options.at_rest and (options.rate is not None or not options.samples):
        raise ValueError("--at-rest is for a closed loop (no --rate), and needs --samples: where each round is written")
    requests = read_requests(Path(options.click_log), options.candidates, options.texts)
    token = os.environ.get("CLICKBERT_TOKEN") or None
    connection = Connection(environment.host, options.ca_file, token)
    ranker = Ranker(connection, options.model, timeout=TIMEOUT)
    RankingUser.recorder = Recorder(ranker, requests, options.seed, options.distinct)
    RankingUser.rate, RankingUser.parts = options.rate, options.parts or [options.run_time or 0.0]

    def stop_on_a_bug(**_: Any) -> None:
        # An error that is not the client's: Locust would log it and go on, and the request would be in no figure.
        RankingUser.recorder.let_go(ENDED)
        if environment.process_exit_code is None and environment.runner:  # the first one
            gevent.spawn(environment.runner.quit)  # not here: it waits for the users, and this is one of them
        environment.process_exit_code = 1

    environment.events.user_error.add_listener(stop_on_a_bug)
    # gevent's clock stands still while this file is read: Locust's --run-time would count from before, and end early.
    gevent.get_hub().loop.update_now()


def start_the_clock(environment: Environment, **_: Any) -> None:
    """Makes the samples' times relative to the start of the users; those of `--at-rest` begin to rest."""
    recorder, options = RankingUser.recorder, environment.parsed_options
    recorder.start()
    if options is not None and options.at_rest and environment.runner:
        recorder.going = 0
        gevent.spawn(recorder.obey, Path(options.samples), environment).link(lambda _: environment.runner.quit())


def write_samples(environment: Environment, **_: Any) -> None:
    """Hands the samples over and closes the connection; all users have stopped."""
    options = environment.parsed_options
    if options is not None and options.samples:
        RankingUser.recorder.write(Path(options.samples), RankingUser.recorder.clocks())
    RankingUser.recorder.ranker.close()


events.init_command_line_parser.add_listener(add_options)
events.init.add_listener(prepare)
events.test_start.add_listener(start_the_clock)
events.quitting.add_listener(write_samples)
