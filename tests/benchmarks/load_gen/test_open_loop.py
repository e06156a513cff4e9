"""The open loop: requests begin when they are to begin, whatever becomes of those before them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from serving.server import Server
from tests.benchmarks.conftest import command, kept_samples, locusts, short_loads
from tests.client.certificates import Authority
from tests.published import serve_with_tls
from tests.waiting import eventually

RATE, DURATION = 40, 4
STALL = 1.5  # seconds
# Open loops of a user whose requests nobody answers before all have begun, and whose process does something else for a
# while in their midst. (In a process of its own, for gevent.)
MOMENTS = """
import json, sys, time
import gevent
from gevent.event import Event
from locust.env import Environment
from benchmarks.load_gen.worker import RankingUser, Recorder
from benchmarks.load_gen.workload import Request

class Nobody:
    def rank(self, query, documents):
        sent.append(query)
        if len(sent) == 200:
            until = time.perf_counter() + 0.2
            while time.perf_counter() < until:
                pass
        done.wait(10)

runs = []
for seed in (3, 3, 4):
    sent, done = [], Event()
    RankingUser.recorder = Recorder(Nobody(), [Request(str(number), ("a",)) for number in range(50)], seed)
    RankingUser.parts = [0.25, 0.75]
    gevent.get_hub().loop.update_now()
    gevent.spawn_later(1.2, done.set)
    RankingUser(Environment()).start_at_random_moments(400.0)
    runs.append({"samples": RankingUser.recorder.samples, "sent": sent})
json.dump(runs, sys.stdout)
"""


@pytest.fixture(autouse=True)
def short(tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    with short_loads(tmp_path / "logs") as patch:
        yield patch


def test_moments_are_random_and_the_same_in_every_run() -> None:
    words = [sys.executable, "-c", MOMENTS]
    ran = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    first, second, other = json.loads(ran.stdout)
    planned = [np.sort([sample[0] for sample in run["samples"]]) for run in (first, second, other)]
    assert planned[0] == pytest.approx(planned[1], abs=1e-6)
    assert planned[0][:50] != pytest.approx(planned[2][:50], abs=1e-3)
    assert first["sent"] == second["sent"] != other["sent"]
    # At exponential distances: those vary as much as they are long on average.
    for moments in planned:
        assert 0 < moments[0] < moments[-1] < 1
        assert (len(moments), sum(moments < 0.25)) == (400, 100)  # as many as the rate says, in each part
        distances = np.diff(moments)
        assert 0.8 < distances.std() / distances.mean() < 1.25
        assert np.median(distances) / distances.mean() == pytest.approx(np.log(2), abs=0.2)
    # All began long before the first was answered, none before its time, and the time counts from the planned moment.
    for run in (first, second, other):
        moments, lag, took, _, errors, _ = zip(*run["samples"], strict=True)
        assert min(lag) >= 0
        assert max(np.add(moments, lag)) < min(np.add(moments, took))
        assert sum(one > 0.1 for one in lag) > 10
        answered = np.add(moments, took)
        assert 1.2 <= answered.min() <= answered.max() < answered.min() + 0.1
        assert set(errors) == {None}


def test_a_stall_of_the_server_is_in_the_latencies_of_all_whom_it_met(
    server: Server, click_log: Path, short: pytest.MonkeyPatch
) -> None:
    # Triton alone, not the processes of its Python backend: Triton takes one that is silent for a second for dead.
    triton = server.running().pid
    stall: list[float] = []

    def hold() -> None:
        eventually(lambda: bool(locusts()))
        eventually(lambda: bool(connections(locusts(), server.addresses.grpc_port)))
        time.sleep(2.5)  # about the middle
        os.kill(triton, signal.SIGSTOP)
        stall.append(time.perf_counter())
        time.sleep(STALL)
        stall.append(time.perf_counter())  # before it goes on: this thread may wait for a core afterwards
        os.kill(triton, signal.SIGCONT)

    holder = threading.Thread(target=hold)
    holder.start()
    with kept_samples(short) as recorded:
        given = ("--rate", RATE, "--duration", DURATION, "--url", server.addresses.grpc, "--data", click_log)
        said = command("load", *given)
    holder.join()
    assert said.code == 0, said.err
    figures = json.loads(said.out.splitlines()[-1])
    assert (figures["users"], figures["rate"], figures["errors"]) == (None, RATE, 0)

    (run,) = recorded
    began, ended = (moment - run["started"] for moment in stall)
    assert 1 < began < ended < 1 + DURATION, "the stall missed the measured part"
    # All that was to begin began, when it was to begin.
    samples = [sample for sample in run["samples"] if 1 <= sample[0] < 1 + DURATION]
    assert figures["requests"] == len(samples) == RATE * DURATION
    met = [sample for sample in run["samples"] if began + 0.02 < sample[0] < ended]
    assert len(met) == pytest.approx(RATE * STALL, abs=4 * (RATE * STALL) ** 0.5)  # four standard deviations
    for planned, _, took, _, error, _ in met:
        assert error is None
        assert took >= ended - planned - 0.01  # nobody was answered before it went on
    assert figures["latency_ms"]["max"] > 1000 * 0.8 * STALL
    assert sum(latency > 500 for _, _, latency, *_ in in_ms(samples)) > RATE * (STALL - 0.5) / 2
    assert figures["latency_ms"]["p99"] > 1000
    assert np.median([lag for _, lag, *_ in in_ms(met)]) < 100  # they began while it stood still


def in_ms(samples: list[list]) -> list[tuple]:
    return [(planned, lag * 1000, took * 1000, *rest) for planned, lag, took, *rest in samples]


def connections(processes: list[psutil.Process], port: int) -> list:
    return [
        connection
        for process in processes
        for connection in process.net_connections("tcp")
        if connection.raddr and connection.raddr.port == port
    ]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def secure(authority: Authority, repository: Path) -> Iterator[Server]:
    with serve_with_tls(repository, authority) as server:
        yield server


def test_two_generators_over_tls_with_a_token_that_no_command_line_shows(
    secure: Server, authority: Authority, click_log: Path, short: pytest.MonkeyPatch
) -> None:
    short.setenv("CLICKBERT_TOKEN", "t0p-secret")
    seen: list[tuple[list[str], str | None]] = []

    def look() -> None:
        eventually(lambda: len(locusts()) == 2)
        seen.extend((each.cmdline(), each.environ().get("CLICKBERT_TOKEN")) for each in locusts())

    looking = threading.Thread(target=look)
    looking.start()
    url = f"grpcs://{secure.addresses.grpc}"
    given = ("--url", url, "--ca-file", authority.file, "--data", click_log)
    with kept_samples(short) as recorded:
        said = command("load", *given, "--rate", 60.5, "--processes", 2, "--duration", 2, "--candidates", 3)
    looking.join()
    assert said.code == 0, said.err
    figures = json.loads(said.out.splitlines()[-1])
    assert (figures["url"], figures["errors"], figures["generator"]["processes"]) == (url, 0, 2)

    assert [token for _, token in seen] == ["t0p-secret"] * 2
    assert "t0p-secret" not in f"{[words for words, _ in seen]} {said.out} {said.err}"

    # Each generator has its half of the rate and moments of its own; the figures are of both, on one clock.
    one, other = recorded
    begin = max(one["started"], other["started"])
    moments = [[planned + each["started"] - begin for planned, *_ in each["samples"]] for each in recorded]
    inside = [sum(1 <= moment < 3 for moment in each) for each in moments]
    assert figures["requests"] == sum(inside)
    assert all(each == pytest.approx(60.5, abs=4 * 60.5**0.5) for each in inside)
    assert np.diff(moments[0])[:20] != pytest.approx(np.diff(moments[1])[:20], abs=1e-3)
    ended = [
        moment + sample[2]
        for each, run in zip(moments, recorded, strict=True)
        for moment, sample in zip(each, run["samples"], strict=True)
    ]
    answered = sum(1 <= moment < 3 for moment in ended)
    assert figures["requests_per_s"] == pytest.approx(answered / 2)
    assert figures["pairs_per_s"] == pytest.approx(3 * answered / 2)
    assert figures["generator"]["busy"] == max(one["busy"], other["busy"])
    assert figures["generator"]["cores"] == pytest.approx(one["cores"] + other["cores"])
