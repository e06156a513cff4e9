"""What the client's process does around it: forks (test 26) and proxies in the environment (test 27)."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from serving.server import Server
from tests.client.channels import forking
from tests.client.channels.test_proxies import VARIABLES
from tests.client.fakes import FakeTriton, grpc_server, rank_once
from tests.figures import Figures
from tests.integration.scores import PATIENCE


def run(url: str, scenario: str) -> list[str]:
    """The lines that a process of its own prints; it is killed if it hangs."""
    command = [sys.executable, forking.__file__, url, scenario]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.reliability
def test_rankers_work_after_a_fork(published_server: Server, figures: Figures) -> None:
    scenarios = ("unused", "idle", "idle_asyncio", "both", "grandchild", "pool")
    lines = [line for scenario in scenarios for line in run(published_server.addresses.grpc, scenario)]
    figures.exactly(26, "calls answered in children, after a fork, of 12", lines.count("child 2"), 12)
    figures.exactly(26, "calls answered in the parent after that, of 6", lines.count("parent 2"), 6)


@pytest.mark.reliability
def test_forks_in_the_middle_of_calls_lose_none(figures: Figures) -> None:
    """Of a gRPC server in this process: a fork gives calls up, and Triton 2.51 crashes by that now and then."""
    with grpc_server(FakeTriton()) as url:
        lines = [line for _ in range(5) for line in run(url, "busy")]
    answered = sum(int(found[1]) for line in lines if (found := re.match(r"calls answered (\d+) of 400", line)))
    figures.exactly(26, "calls answered in children, forked amid calls of 4 threads, of 15", lines.count("child 2"), 15)
    figures.exactly(26, "calls answered in those threads, of 2,000", answered, 2000)


def test_calls_to_this_machine_go_past_proxies(
    published_server: Server, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in VARIABLES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    port = published_server.addresses.grpc_port
    urls = [f"127.0.0.1:{port}", f"localhost:{port}", f"dns:///localhost:{port}", f"127.0.0.1:{port},localhost:{port}"]
    answers = [rank_once(url, blocking, timeout=PATIENCE) for url in urls for blocking in (True, False)]
    figures.exactly(27, "calls answered with dead proxies in the environment, of 8", sum(map(bool, answers)), 8)
