"""A server, and a client, that run out of something: shared memory, room for the log, file descriptors.

/dev/shm is made small in a mount namespace of the server's own, which needs root.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from clickbert import ClickBertError, Ranker, ServerError
from clickbert.wire.protocol import InferRequest
from clickbert.wire.transport import GrpcTransport
from release.names import LOGITS, ONNX_MODEL, REQUEST_INPUTS
from serving.server import Addresses, Server
from tests.figures import Figures
from tests.integration.scores import PATIENCE
from tests.processes import children
from tests.reliability.faults import clients
from tests.serving.command import options
from tests.waiting import eventually

DOCKERS = 64  # MB of /dev/shm
CALLERS = 32
LARGEST = 65_536  # elements of an input that a request may have: 0.25 MB
DOCUMENTS = [f"w{number} w2 w3" for number in range(32)]
DESCRIPTORS = 128  # of tritonserver, which has some 70 before anybody connects
FULL = Path("/dev/full")


def can_mount() -> bool:
    """Whether this user may make a mount namespace with a small /dev/shm."""
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


needs_mounts = pytest.mark.skipif(not can_mount(), reason="this user may not mount: /dev/shm cannot be made small")


@contextlib.contextmanager
def command(repository: Path, log: Path, *before: str) -> Iterator[tuple[Addresses, subprocess.Popen[str]]]:
    """`python -m serving`, ready, started by another command; its log goes to a file."""
    addresses = Addresses.free()
    words = [*before, sys.executable, "-m", "serving", *options(repository, addresses)]
    with log.open("w") as file, subprocess.Popen(words, stdout=subprocess.PIPE, stderr=file, text=True) as process:
        try:
            assert process.stdout
            assert "ready" in process.stdout.readline()
            process.stdout.readline()
            yield addresses, process
        finally:
            while process.poll() is None:  # the second signal ends it at once
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.3)


@contextlib.contextmanager
def command_with_small_memory(repository: Path, log: Path) -> Iterator[tuple[Addresses, Path]]:
    """The same, with a /dev/shm as Docker's; yields where that is seen from outside."""
    script = f'mount -t tmpfs -o size={DOCKERS}m tmpfs /dev/shm && exec "$@"'
    with command(repository, log, "unshare", "--mount", "sh", "-c", script, "sh") as (addresses, process):
        yield addresses, Path(f"/proc/{process.pid}/root/dev/shm")


def used(folder: Path) -> float:
    """MB of a file system that are taken."""
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize / 1e6


@pytest.mark.reliability
@needs_mounts
def test_dockers_shared_memory_is_enough(published_repository: Path, tmp_path: Path, figures: Figures) -> None:
    with command_with_small_memory(published_repository, tmp_path / "log") as (addresses, memory):
        with Ranker(addresses.grpc, timeout=PATIENCE) as ranker, ThreadPoolExecutor(CALLERS) as pool:
            expected = ranker.score_pairs([("w1", document) for document in DOCUMENTS])

            def call(_: int) -> bool:
                with contextlib.suppress(ServerError):
                    scores = ranker.score_pairs([("w1", document) for document in DOCUMENTS])
                    return bool(np.allclose(scores, expected, atol=1e-5))
                return False

            answered = sum(pool.map(call, range(2000)))
        figures.exactly(28, "of 2,000 calls with a /dev/shm of 64 MB, right answers", answered, 2000, "calls")
        figures.at_most(28, "of it taken", used(memory), DOCKERS, "MB")


@pytest.mark.reliability
@needs_mounts
def test_a_full_shared_memory_refuses_large_requests_until_there_is_room(
    published_repository: Path, tmp_path: Path, figures: Figures
) -> None:
    """Small requests have room in what the server holds; nothing crashes."""
    values = {name: np.full((1, LARGEST), 7, np.int32) for name in REQUEST_INPUTS[:2]}
    values[REQUEST_INPUTS[2]] = np.full((1, 1), 7, np.int32)  # they do not add up: refused, once it has been read
    request = InferRequest(ONNX_MODEL, "", values, (LOGITS,))
    with command_with_small_memory(published_repository, tmp_path / "log") as (addresses, memory):
        with Ranker(addresses.grpc, timeout=PATIENCE) as ranker:
            expected = ranker.score_pairs([("w1", document) for document in DOCUMENTS])
            transport = GrpcTransport(addresses.grpc)

            def send(_: int) -> str:
                try:
                    transport.infer(request, timeout=PATIENCE)
                except ClickBertError as exc:
                    return "no room" if "Failed to increase the shared memory" in str(exc) else type(exc).__name__
                return "answered"

            with ThreadPoolExecutor(2 * CALLERS) as pool:
                with (memory / "filler").open("wb") as filler, contextlib.suppress(OSError):
                    while filler.write(bytes(65_536)):
                        filler.flush()
                full = Counter(pool.map(send, range(400)))
                during = ranker.score_pairs([("w1", document) for document in DOCUMENTS])
                (memory / "filler").unlink()
                after = Counter(pool.map(send, range(400)))
            transport.close()
            assert np.allclose(during, expected, atol=1e-5)
            assert np.allclose(ranker.score_pairs([("w1", document) for document in DOCUMENTS]), expected, atol=1e-5)
    figures.only_told(28, "of 400 large requests with /dev/shm full, refused as such", full["no room"], "calls")
    figures.exactly(28, "of 400 once there is room", after["no room"], 0, "calls")
    others = (full + after).keys() - {"no room", "ProtocolError"}
    figures.exactly(28, "large requests that ended otherwise", len(others), 0)


@pytest.mark.reliability
@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_a_full_disk_for_the_log_stops_nothing(
    published_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    """/dev/full answers every write as a full disk does. A backend that dies is started again all the same."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    answered = 0
    with command(published_repository, FULL) as (addresses, process):
        with Ranker(addresses.grpc, timeout=PATIENCE) as ranker:
            expected = ranker.score_pairs([("w1", document) for document in DOCUMENTS])
            for _ in range(200):
                answered += ranker.score_pairs([("w1", document) for document in DOCUMENTS]) == expected
            figures.exactly(28, "of 200 calls with a full disk for the log, answered", answered, 200, "calls")
            (server,) = children(process.pid)
            os.kill(children(server)[0], signal.SIGKILL)
            assert process.stdout
            assert "ready" in process.stdout.readline()  # a second time
            assert ranker.score_pairs([("w1", document) for document in DOCUMENTS]) == pytest.approx(expected)
        process.terminate()
        assert process.wait(timeout=60) == 0


@pytest.mark.reliability
def test_connections_over_the_limit_wait_and_the_server_recovers(
    published_repository: Path, tmp_path: Path, figures: Figures
) -> None:
    limited = command(published_repository, tmp_path / "log", "prlimit", f"--nofile={DESCRIPTORS}")
    with limited as (addresses, process), contextlib.ExitStack() as held:
        (server,) = children(process.pid)
        with Ranker(addresses.grpc, timeout=PATIENCE) as ranker:
            expected = ranker.rank("w1", DOCUMENTS)
            for _ in range(DESCRIPTORS):
                held.enter_context(socket.create_connection((addresses.address, addresses.grpc_port), timeout=10))
            eventually(lambda: len(list(Path(f"/proc/{server}/fd").iterdir())) == DESCRIPTORS)
            assert ranker.rank("w1", DOCUMENTS) == expected, "who was connected is served"
        refused = newcomer(addresses.grpc, timeout=3)
        held.close()
        began = time.monotonic()
        eventually(lambda: newcomer(addresses.grpc, timeout=3) == "answered")
        figures.at_most(30, "from the end of the others to a newcomer's answer", time.monotonic() - began, 10, "s")
    assert refused in ("ServerTimeoutError", "ConnectionFailedError")


def newcomer(url: str, timeout: float) -> str:
    """How a call of another process ends, with a connection of its own."""
    program = (
        "import sys\nfrom tests.reliability.faults.clients import outcome\nfrom clickbert import Ranker\n"
        "print(outcome(Ranker(sys.argv[1], timeout=float(sys.argv[2]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, url, str(timeout)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("free", range(0, 12, 3))
def test_a_client_without_descriptors_gets_an_error_and_goes_on_when_there_are_some(
    published_server: Server, free: int, figures: Figures
) -> None:
    """gRPC itself would abort the process."""
    words = [sys.executable, clients.__file__, published_server.addresses.grpc, "descriptors", str(free)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.stdout.split() == ["ConnectionFailedError", "answered"], done.stderr
    figures.exactly(30, f"exit code of a client with {free} descriptors left", done.returncode, 0)
