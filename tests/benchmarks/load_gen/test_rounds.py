"""Rounds of real generators on the real server: closed and open loops, pauses between them, and what ends them."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from benchmarks import BenchmarkError
from benchmarks.load_gen import pool as pooling
from benchmarks.load_gen.pool import Generator, Load, open_pool
from benchmarks.load_gen.target import Target
from benchmarks.load_gen.workload import Selection
from benchmarks.measure.recording import Recording
from clickbert.connection import Connection
from serving.server import Server
from tests.benchmarks.conftest import LIMITS, MODEL, TIMING, locusts
from tests.client.certificates import Authority
from tests.published import serve_with_tls

# What the locustfile does before its first call, then eight users with a call each: none is answered before all have
# come. (In a process of its own: gevent must not get into pytest's.)
EIGHT_CALLS = """
import sys
import locust, gevent, grpc
import benchmarks.load_gen.worker
call = grpc.insecure_channel(sys.argv[1]).unary_unary("/slow/call")
gevent.joinall([gevent.spawn(call, b"", timeout=60) for _ in range(8)], raise_error=True)
"""
# The third request and all after it meet a bug.
BROKEN_USER = """
from benchmarks.load_gen.worker import *
turns, rank = itertools.count(), Ranker.rank
def broken(*arguments):
    if next(turns) >= 2:
        raise RuntimeError("a bug of the load")
    return rank(*arguments)
Ranker.rank = broken
"""
# Open loops of a user whose requests nobody answers before all have begun, and whose process does something else for a
# while in their midst. (In a process of its own, for gevent.)
MOMENTS = """
import json, sys, time
import gevent
from gevent.event import Event
from locust.env import Environment
from benchmarks.load_gen.worker import Recorder
from benchmarks.load_gen.workload import Request

class Nobody:
    def rank(self, query, documents):
        sent.append(query)
        if len(sent) == 200:
            until = time.perf_counter() + 0.2
            while time.perf_counter() < until:
                pass
        done.wait(30)

runs = []
for seed in (3, 3, 4, None):
    sent, done = [], Event()
    if seed is not None:  # else the recorder before sends its next round
        recorder = Recorder(Nobody(), [Request(str(number), ("a",)) for number in range(50)], seed)
    recorder.start()
    recorder.parts = [0.25, 0.75]
    gevent.get_hub().loop.update_now()
    loop = gevent.spawn(recorder.start_at_random_moments, Environment(), 400.0)
    while len(sent) < 400:
        gevent.sleep(0.01)
    done.set()
    loop.join()
    runs.append({"samples": recorder.samples, "sent": sent})
json.dump(runs, sys.stdout)
"""


@pytest.fixture
def load(published_log: Path) -> Load:
    return Load(Selection(published_log), timing=TIMING, limits=LIMITS)


@contextmanager
def kept_recordings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Recording]]:
    """What each generator recorded, in the order in which they were read."""
    recordings: list[Recording] = []
    finish = Generator.finish_round

    def remember(self: Generator, patience: float) -> Recording:
        recordings.append(finish(self, patience))
        return recordings[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Generator, "finish_round", remember)
        yield recordings


@pytest.mark.slow
def test_generators_send_in_their_rounds_and_pause_between_them(
    target: Target, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCUST_USERS", "1")  # of somebody's shell: not this run's
    load = Load(load.selection, processes=2, distinct=30, timing=TIMING, limits=LIMITS)
    with kept_recordings(monkeypatch) as recordings, open_pool(target, MODEL, load, tmp_path, users=4) as pool:
        running = locusts()
        assert len(running) == 2
        alone = pool.send(1, users=1)  # of one of the two generators
        before = target.settled_counts(MODEL)
        first = pool.send(2, users=4)
        once = target.settled_counts(MODEL)
        time.sleep(1.5)
        assert target.counts(MODEL) == once, "they pause"
        second = pool.send(1, users=4)
        twice = target.settled_counts(MODEL)
        running[0].kill()
        with pytest.raises(BenchmarkError, match=r"Locust ended with code -9 and without .*generator-0\.log"):
            pool.send(1, users=4)
    assert not locusts()
    assert (alone.users, alone.duration, alone.generator.processes) == (1, 1, 1)
    assert alone.requests > 1
    for step in (first, second):
        assert (step.users, step.errors, step.client_bound) == (4, 0, None)
        assert step.requests > 4
        assert step.latency
        assert 0 < step.latency["p50"] <= step.latency["p95"] <= step.latency["p99"] <= step.latency.max
        assert 0 < step.generator.busy <= step.generator.cores < 2
    # The server saw what was recorded. Not all of a round is measured, and nothing of the first is in the second.
    sent = [sample for each in recordings[1:3] for sample in each.samples]
    assert before and once and twice
    assert once.requests - before.requests == len(sent) > first.requests
    assert second.requests < twice.requests - once.requests
    # The users really were under way together, as many as there are.
    assert most_in_flight(recordings[1:3]) == 4
    # Every request is a group of the log, and all groups that take turns come about equally often.
    sizes = Counter(json.loads(line)["group"] for line in load.selection.data.read_text().splitlines())
    assert {sample.pairs for sample in sent} <= set(sizes.values())
    # Throughput is of whole turns, which is nearly what was answered.
    begin = max(each.started for each in recordings[1:3])
    moments = [sample.intended_start + sample.latency + each.started - begin
               for each in recordings[1:3] for sample in each.samples]  # fmt: skip
    answered = sum(TIMING.warm_up <= moment < TIMING.warm_up + 2 for moment in moments)
    assert first.requests_per_second == pytest.approx(answered / 2, rel=0.2)


def most_in_flight(recordings: list[Recording]) -> int:
    """How many requests were under way at a time, at the most."""
    moments: list[tuple[float, int]] = []
    for each in recordings:
        for sample in each.samples:
            began = each.started + sample.intended_start
            moments += [(began + sample.start_delay, 1), (began + sample.latency, -1)]
    return max(itertools.accumulate(change for _, change in sorted(moments)))


def test_users_do_not_wait_for_each_others_answers() -> None:
    together = threading.Barrier(8, timeout=30)

    class Meeting(grpc.GenericRpcHandler):
        def service(self, _details: object) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(lambda *_: (together.wait(), b"")[1])

    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[Meeting()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        words = [sys.executable, "-c", EIGHT_CALLS, f"127.0.0.1:{port}"]
        ran = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    finally:
        server.stop(None).wait()
    assert ran.returncode == 0, ran.stderr


def test_moments_are_random_the_same_in_every_run_and_others_in_each_round() -> None:
    words = [sys.executable, "-c", MOMENTS]
    ran = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    first, second, other, following = runs = json.loads(ran.stdout)
    starts = [np.sort([sample[0] for sample in run["samples"]]) for run in runs]
    assert starts[0] == pytest.approx(starts[1], abs=1e-6)
    assert starts[0][:50] != pytest.approx(starts[2][:50], abs=1e-3)
    assert starts[2][:50] != pytest.approx(starts[3][:50], abs=1e-3)
    assert first["sent"] == second["sent"] != other["sent"] != following["sent"]
    # At exponential distances: those vary as much as they are long on average.
    for moments in starts:
        assert 0 < moments[0] < moments[-1] < 1
        assert (len(moments), sum(moments < 0.25)) == (400, 100)  # as many as the rate says, in each part
        distances = np.diff(moments)
        assert 0.8 < distances.std() / distances.mean() < 1.25
        assert np.median(distances) / distances.mean() == pytest.approx(np.log(2), abs=0.2)
    # All began before the first was answered, none before its time, and the latency counts from the intended start.
    for run in runs:
        moments, delays, latencies, _, errors, _ = zip(*run["samples"], strict=True)
        assert min(delays) >= 0
        assert max(np.add(moments, delays)) < min(np.add(moments, latencies))
        assert sum(delay > 0.1 for delay in delays) > 10
        assert set(errors) == {None}


def test_a_stall_of_the_server_is_in_the_latencies_of_all_whom_it_met(
    published_server: Server, target: Target, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Triton alone, not the processes of its Python backend: Triton takes one that is silent for a second for dead.
    rate, seconds, lasts, triton = 40, 4, 1.5, published_server.running().pid
    stall: list[float] = []

    def hold() -> None:
        time.sleep(2.5)  # about the middle
        os.kill(triton, signal.SIGSTOP)
        stall.append(time.perf_counter())
        time.sleep(lasts)
        stall.append(time.perf_counter())  # before it goes on: this thread may wait for a core afterwards
        os.kill(triton, signal.SIGCONT)

    with kept_recordings(monkeypatch) as recordings, open_pool(target, MODEL, load, tmp_path) as pool:
        holder = threading.Thread(target=hold)
        holder.start()
        step = pool.send(seconds, rate=float(rate))
        holder.join()
    assert (step.users, step.rate, step.errors) == (None, rate, 0)
    (run,) = recordings
    began, ended = (moment - run.started for moment in stall)
    assert TIMING.warm_up < began < ended < TIMING.warm_up + seconds, "the stall missed the measured part"
    # All that was to start started, when it was to start.
    measured = [sample for sample in run.samples if 0 <= sample.intended_start - TIMING.warm_up < seconds]
    assert step.requests == len(measured) == rate * seconds
    met = [sample for sample in run.samples if began + 0.02 < sample.intended_start < ended]
    assert len(met) == pytest.approx(rate * lasts, abs=4 * (rate * lasts) ** 0.5)  # four standard deviations
    for sample in met:
        assert sample.error is None
        assert sample.latency >= ended - sample.intended_start - 0.01  # nobody was answered before it went on
        assert sample.start_delay < sample.latency
    assert step.latency
    assert step.latency.max > 1000 * 0.8 * lasts
    assert step.latency["p99"] > 1000
    # They started while it stood still. (One whose turn came late may have started afterwards.)
    assert np.median([sample.intended_start + sample.start_delay for sample in met]) < ended


@pytest.mark.slow
def test_two_generators_over_tls_with_a_token_that_no_command_line_shows(
    published_repository: Path, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path / "ours")
    load = Load(Selection(load.selection.data, 3), processes=2, timing=TIMING, limits=LIMITS)
    with serve_with_tls(published_repository, authority) as server, kept_recordings(monkeypatch) as recordings:
        connection = Connection(f"grpcs://{server.addresses.grpc}", authority.file, "t0p-secret")
        with open_pool(Target(connection), MODEL, load, tmp_path) as pool:
            seen = [(each.cmdline(), each.environ().get("CLICKBERT_TOKEN")) for each in locusts()]
            step = pool.send(2, rate=60.5)
    assert [token for _, token in seen] == ["t0p-secret"] * 2
    assert "t0p-secret" not in str([words for words, _ in seen])
    assert (step.errors, step.generator.processes) == (0, 2)
    # Each generator has its half of the rate and moments of its own; the figures are of both, on one clock.
    begin = max(each.started for each in recordings)
    moments = [[sample.intended_start + each.started - begin for sample in each.samples] for each in recordings]
    inside = [sum(0 <= moment - TIMING.warm_up < 2 for moment in each) for each in moments]
    assert step.requests == sum(inside)
    assert all(each == pytest.approx(60.5, abs=4 * 60.5**0.5) for each in inside)
    assert np.diff(moments[0])[:20] != pytest.approx(np.diff(moments[1])[:20], abs=1e-3)
    assert step.pairs_per_second == pytest.approx(3 * step.requests_per_second)


@pytest.mark.parametrize("loop", [{"users": 2}, {"rate": 20.0}], ids=["closed", "open"])
def test_a_bug_of_the_load_ends_it_and_is_shown(
    loop: dict, target: Target, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN_USER)
    monkeypatch.setattr(pooling, "LOCUSTFILE", tmp_path / "broken.py")
    with open_pool(target, MODEL, load, tmp_path, loop.get("users")) as pool:
        with pytest.raises(BenchmarkError, match=r"(?s)Locust ended with code 1 .*a bug of the load"):
            pool.send(600, **loop)  # which it does not last


def test_a_generator_that_cannot_start_is_an_error(target: Target, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"(?s)Locust ended with code 1 .*no-such-log"):
        with open_pool(target, MODEL, Load(Selection(tmp_path / "no-such-log.jsonl")), tmp_path, users=1):
            raise AssertionError("it started")


def test_a_proxy_of_the_environment_does_not_get_the_load(
    target: Target, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody is there
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    target.try_out(MODEL, load.selection.read()[0])
    with open_pool(target, MODEL, load, tmp_path, users=1) as pool:
        step = target.with_counts(MODEL, lambda: pool.send(1, users=1))
    assert step.requests > step.errors == 0
    assert step.time_split
