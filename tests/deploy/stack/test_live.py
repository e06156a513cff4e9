"""The whole topology without containers: it serves, it is watched, an alert fires and clears, and it ends whole."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy.stack.run import PORTS, ROOT
from serving.addresses import free_ports
from serving.server import open_directly
from tests.figures import Figures
from tests.gateways import TOKEN, Gateway, has_envoy
from tests.reliability.gateway.callers import Callers
from tests.serving.command import LISTENING
from tests.waiting import eventually

LONG = 600  # seconds, for what takes a minute on an idle machine
THREADS = 2
pytestmark = [
    pytest.mark.deploy,
    pytest.mark.skipif(not has_envoy(), reason="Envoy is not installed, so there is no stack"),
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="Prometheus is not installed (apt-get install prometheus), so nothing watches the stack",
    ),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl command is not installed"),
]


class Stack:
    """A running one: its process, what it said, its ports and its folder."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path, ports: dict[str, int], folder: Path) -> None:
        self.process, self.output, self.ports, self.folder = process, output, ports, folder

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8")

    def ask(self, path: str) -> Any:
        """What Prometheus's API answers."""
        with open_directly(f"http://127.0.0.1:{self.ports['prometheus']}/api/v1/{path}") as answer:
            return json.load(answer)["data"]

    def targets(self) -> dict[tuple[str, str], str]:
        """Health by job and instance."""
        found = self.ask("targets?state=active")["activeTargets"]
        return {(each["labels"]["job"], each["labels"]["instance"]): each["health"] for each in found}

    def states(self, alert: str) -> set[str]:
        """The states of the active alerts of this name."""
        return {each["state"] for each in self.ask("alerts")["alerts"] if each["labels"]["alertname"] == alert}

    def gateway(self) -> Gateway:
        """As tests call it, with the token that is there."""
        certs = self.folder / "certs"
        log = self.folder / "logs" / "gateway.log"
        found = Gateway(self.process, self.ports["gateway"], self.ports["gateway-admin"], log, certs)
        found.ca_file = certs / "ca.pem"
        return found

    def part(self, option: str) -> psutil.Process:
        """The child that was started with this option."""
        (found,) = [each for each in psutil.Process(self.process.pid).children() if option in each.cmdline()]
        return found


@contextmanager
def stack(repository: Path, folder: Path) -> Iterator[Stack]:
    """One that is up, on free ports. Whoever is left of it after the block is killed."""
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    (folder / "certs").mkdir(parents=True)
    (folder / "certs" / "tokens").write_text(f"web {TOKEN}\n", encoding="utf-8")
    command = [*LISTENING, sys.executable, "-m", "deploy", "stack"]
    command += [f"--repository={repository}", f"--folder={folder}"]
    output = folder.with_name("output")
    with output.open("wb") as file:
        command += [f"--port={name}={port}" for name, port in ports.items()]
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
    running = Stack(process, output, ports, folder)
    try:
        eventually(lambda: is_up(running), LONG)
        yield running
    finally:
        left = [*processes(process), psutil.Process(process.pid)] if process.poll() is None else []
        for each in left:
            each.kill()
        process.wait()


def is_up(running: Stack) -> bool:
    assert running.process.poll() is None, running.said()
    return "until Ctrl-C" in running.said()


def processes(stack: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """All that it has started, and what those have started."""
    return list(psutil.Process(stack.pid).children(recursive=True))


def test_it_serves_is_watched_and_ends_with_all_that_it_started(
    published_repository: Path, tmp_path: Path, figures: Figures
) -> None:
    start = time.monotonic()
    with stack(published_repository, tmp_path / "stack") as running:
        figures.only_told("stack", "until it is up", time.monotonic() - start, "s")
        (command,) = [line.split("rank        ")[1] for line in running.said().splitlines() if " rank        " in line]
        ranked = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        assert ranked.returncode == 0, ranked.stderr
        assert "a teapot" in ranked.stdout and "waterproof boots" in ranked.stdout
        instances = [("triton", "triton-0-metrics"), ("triton", "triton-1-metrics"), ("gateway", "gateway-metrics")]
        expected = {(job, f"127.0.0.1:{running.ports[name]}"): "up" for job, name in instances}
        eventually(lambda: running.targets() == expected, LONG)
        started = processes(running.process)
        assert len(started) >= 6  # Prometheus; and, each with another behind it, two Tritons and the gateway
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(timeout=LONG) == 0, running.said()
        assert [each.pid for each in started if each.is_running()] == []


def test_a_lost_triton_is_an_alert_until_it_is_back_and_no_call_fails(
    published_repository: Path, tmp_path: Path, figures: Figures
) -> None:
    with stack(published_repository, tmp_path / "stack") as running:
        eventually(lambda: set(running.targets().values()) == {"up"}, LONG)
        assert running.states("TargetDown") == set()
        callers = Callers(running.gateway(), THREADS)
        with callers.at_work():
            time.sleep(1)
            killed = time.monotonic()
            lost = running.part(f"--grpc-port={running.ports['triton-0']}")
            for each in [lost, *lost.children(recursive=True)]:  # first the one that would start it again
                each.kill()
            eventually(lambda: running.states("TargetDown") == {"pending"}, LONG)
            pending = time.monotonic() - killed
            eventually(lambda: running.states("TargetDown") == {"firing"}, LONG)
            firing = time.monotonic() - killed
            eventually(lambda: "to start it again: " in running.said())
            said = next(line for line in running.said().splitlines() if "to start it again: " in line)
            log = running.folder / "logs" / "triton-0.log"
            assert said.startswith("stack: triton-0 ended with code -9") and str(log) in said
            back = time.monotonic()
            with (tmp_path / "again.log").open("wb") as file:
                command = shlex.split(said.partition("to start it again: ")[2])
                again = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
            try:
                eventually(lambda: running.states("TargetDown") == set(), LONG)
                cleared = time.monotonic() - back
                eventually(lambda: set(running.targets().values()) == {"up"}, LONG)
                time.sleep(1)
            finally:
                running_on = running.process.poll() is None
                callers.stopping.set()
                started = processes(running.process)
                running.process.send_signal(signal.SIGTERM)
                code = running.process.wait(timeout=LONG)
                again.terminate()
                again.wait(timeout=LONG)
        figures.only_told("stack", "from the kill until the alert is pending", pending, "s")
        figures.only_told("stack", "from the kill until the alert fires", firing, "s")
        figures.only_told("stack", "from the server's start until the alert is cleared", cleared, "s")
        figures.only_told("stack", "calls meanwhile", len(callers.outcomes))
        figures.exactly("stack", "failed calls", len(callers.errors), 0)
        figures.exactly("stack", "answers to another's request, or wrong", callers.swapped, 0)
        assert running_on and code == 1  # as a part died
        assert [each.pid for each in started if each.is_running()] == []


def test_a_part_that_does_not_start_is_named_and_ends_the_others(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-m", "deploy", "stack", f"--repository={tmp_path / 'empty'}"]
    command += [f"--folder={tmp_path / 'stack'}", *(f"--port={name}=0" for name in PORTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LONG)
    assert done.returncode == 1
    assert "triton-0 ended with code 1 before it was ready" in done.stderr and "no published model" in done.stderr
    assert str(tmp_path / "stack" / "logs" / "triton-0.log") in done.stderr
    assert not [each.pid for each in psutil.process_iter() if str(tmp_path) in " ".join(cmdline(each))]


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:  # it has ended meanwhile
        return []
