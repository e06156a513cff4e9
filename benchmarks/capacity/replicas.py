"""Two replicas on one machine, each with half of its cores, and the gateway in front of them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from benchmarks import BenchmarkError, wait_for
from benchmarks.load_gen.pool import ROOT
from benchmarks.load_gen.target import Target
from clickbert.connection import Connection
from serving.addresses import Addresses, free_ports
from serving.server import Server, open_directly

READY = 60.0  # seconds, for the gateway
ENDED = 30.0


def halves() -> list[list[int]]:
    """Two sets of as many cores of those that this process may use. Raises BenchmarkError if there is but one."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise BenchmarkError("two replicas need two cores, and this process may use one alone (see `taskset -p`)")
    half = len(cores) // 2
    return [cores[:half], cores[half : 2 * half]]


@contextlib.contextmanager
def on_cores(cores: Collection[int]) -> Iterator[None]:
    """What is started inside the block stays on these cores."""
    former = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, former)


SPIN = """
import os, sys
core, parent = map(int, sys.argv[1:])
os.sched_setaffinity(0, [core])
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
import numpy
matrix = numpy.ones((256, 256), numpy.float32)
print("ready", flush=True)
while os.getppid() == parent:
    matrix @ matrix
"""


@contextlib.contextmanager
def kept_busy(cores: Collection[int]) -> Iterator[list[int]]:
    """Within the block a process computes on each core whenever nothing else does; yields their numbers.

    Two cores are often threads of one. Then a replica is up to half as fast again while the other one rests, as two
    machines are not.

    Raises:
        BenchmarkError: a process cannot do so, or did not until the end.
    """
    variables = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    with contextlib.ExitStack() as stack:
        busy = {}
        for core in cores:
            words = [sys.executable, "-c", SPIN, str(core), str(os.getpid())]
            process = stack.enter_context(
                subprocess.Popen(words, env=variables, stdout=subprocess.PIPE, text=True, start_new_session=True)
            )
            stack.callback(process.kill)
            busy[core] = process
        for core, process in busy.items():
            if not process.stdout or process.stdout.readline() != "ready\n":
                raise BenchmarkError(f"core {core} cannot be kept busy; what that process said is above")
        yield [process.pid for process in busy.values()]
        for core, process in busy.items():
            if process.poll() is not None:
                raise BenchmarkError(f"core {core} was not kept busy until the end; measure again")


@contextlib.contextmanager
def start_replica(repository: Path, cores: Collection[int], log: Path) -> Iterator[Target]:
    """A server on these cores; it ends with the block. Raises ServingError."""
    with log.open("wb") as file, contextlib.ExitStack() as stack:
        with on_cores(cores):
            server = stack.enter_context(Server(repository, Addresses.free(), log=file))
        yield Target(Connection(server.addresses.grpc), server=server)


@contextlib.contextmanager
def start_gateway(replicas: Sequence[Target], model: str, folder: Path) -> Iterator[Target]:
    """`python -m deploy gateway` in front of these; it ends with the block. `folder` takes its secrets and its log.

    Raises:
        BenchmarkError: it is not ready in time, or its certificates cannot be made.
    """
    connection, words = make_secrets(folder)
    port, admin_port = free_ports(2)
    words += ["--listen", f"127.0.0.1:{port}", "--admin-port", str(admin_port), "--model", model]
    for replica in replicas:
        words += ["--triton", replica.connection.url]
    log = folder / "gateway.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy", "gateway", *words],
            stdout=file,
            stderr=file,
            cwd=ROOT,
            start_new_session=True,
        )

    def is_ready() -> bool:
        if process.poll() is not None:
            raise BenchmarkError(f"the gateway ended with code {process.returncode}; its log: {log}")
        try:
            with open_directly(
                f"http://127.0.0.1:{admin_port}/stats?filter=cluster.triton.membership_healthy"
            ) as answer:
                return re.findall(r"membership_healthy: (\d+)", answer.read().decode()) == [str(len(replicas))]
        except OSError:
            return False

    try:
        if not wait_for(is_ready, READY):
            raise BenchmarkError(f"the gateway was not ready within {READY:.0f} s; its log: {log}")
        yield Target(connection(f"grpcs://localhost:{port}"))
    finally:
        wait_for(lambda: is_ended(process), ENDED)


def make_secrets(folder: Path) -> tuple[Callable[[str], Connection], list[str]]:
    """The gateway's certificate and a token. Returns how callers reach it, and the gateway's words.

    Raises:
        BenchmarkError: there is no openssl, or it fails.
    """
    made, given = folder / "made", folder / "secrets"
    try:
        subprocess.run([ROOT / "deploy" / "make-certs.sh", made], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        raise BenchmarkError(f"deploy/make-certs.sh failed ({exc}); is openssl installed?") from exc
    given.mkdir(mode=0o700)
    for name in ("server.pem", "server.key", "tokens"):  # without ca.pem: callers need no certificate
        shutil.copy(made / name, given)
    _, token = (given / "tokens").read_text(encoding="utf-8").split()
    return lambda url: Connection(url, ca_file=made / "ca.pem", token=token), ["--secrets", str(given)]


def is_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it is, and if not, signals it once more: the first signal drains, the second one ends it."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    return process.poll() is not None
