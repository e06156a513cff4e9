"""One of two servers behind the gateway dies, or drains, under load: callers notice nothing but some milliseconds."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.server import Server
from tests.figures import Figures
from tests.gateways import Gateway, gateway, make_secrets
from tests.published import serve
from tests.reliability.gateway.callers import Callers
from tests.waiting import eventually

THREADS = 16
pytestmark = pytest.mark.reliability


@pytest.fixture
def pair(published_repository: Path, tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    with serve(published_repository, log=tmp_path / "first.log") as first:
        with serve(published_repository, log=tmp_path / "second.log") as second:
            yield first, second


@pytest.fixture
def guarded(pair: tuple[Server, Server], tmp_path: Path) -> Iterator[Gateway]:
    make_secrets(tmp_path)
    with gateway(tmp_path, [server.addresses.grpc for server in pair]) as running:
        yield running


def seconds_until(what: Callable[[], bool], since: float) -> float:
    eventually(what)
    return time.monotonic() - since


def test_a_killed_server_fails_no_call(
    pair: tuple[Server, Server], guarded: Gateway, published_repository: Path, tmp_path: Path, figures: Figures
) -> None:
    callers = Callers(guarded, THREADS)
    with callers.at_work():
        time.sleep(1.5)
        killed = time.monotonic()
        pair[0].kill()
        noticed = seconds_until(lambda: guarded.healthy() == 1, killed)
        time.sleep(1)
        with serve(published_repository, addresses=pair[0].addresses, log=tmp_path / "again.log"):
            back = seconds_until(lambda: guarded.healthy() == 2, time.monotonic())
            time.sleep(1)
    retries = judge(callers, guarded, figures, 7, killed)
    figures.at_most(7, "attempts a call", 1 + retries / len(callers.outcomes), 1.1)
    figures.at_most(7, "until a killed server gets no calls", noticed, 3, "s")
    figures.at_most(7, "until it gets calls again, once it is ready", back, 5, "s")


def test_a_draining_server_fails_no_call(pair: tuple[Server, Server], guarded: Gateway, figures: Figures) -> None:
    callers = Callers(guarded, THREADS)
    first = pair[0].running()
    with callers.at_work():
        time.sleep(1.5)
        drained = time.monotonic()
        first.send_signal(signal.SIGTERM)
        noticed = seconds_until(lambda: guarded.healthy() == 1, drained)
        ended = seconds_until(lambda: first.poll() is not None, drained)
        time.sleep(1)
    assert first.returncode == 0
    judge(callers, guarded, figures, 9, drained)
    figures.at_most(9, "until a draining server gets no calls", noticed, 3, "s")
    figures.only_told(9, "until it has ended", ended, "s")


def judge(callers: Callers, guarded: Gateway, figures: Figures, number: int, since: float) -> int:
    """What holds for both. Returns how many calls Envoy sent again, in the whole test."""
    asked, retries = len(callers.outcomes), guarded.count("cluster.triton.upstream_rq_retry")
    figures.only_told(number, "calls through the gateway", asked)
    figures.only_told(number, "calls that were sent to the other server", retries)
    figures.exactly(number, "failed calls", len(callers.errors), 0)
    figures.exactly(number, "calls lost: sent, and neither answered nor failed", len(callers.sent) - asked, 0)
    answers = [each.answered_as for each in callers.outcomes if each.answered_as]
    figures.exactly(number, "answers that came twice, by their identifier", len(answers) - len(set(answers)), 0)
    figures.exactly(number, "answers to another's request, or wrong", callers.swapped, 0)
    figures.at_least(number, "calls sent again: the fault met some", retries, 1)
    figures.at_most(number, "longest call from then on", callers.longest(since), 3, "s")
    return retries
