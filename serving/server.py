"""Runs one tritonserver: starts it, waits until its models are ready, passes signals on, drains and ends it.

What this module does not know: what the models compute. It speaks to Triton by its command line and its health URL.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from serving.checks import check_ports, check_triton, published_models
from serving.triton import ServingError, environment, find_triton, lay_out_backends

LOOPBACK = "127.0.0.1"
# Triton answers what it has accepted before it ends; past this it ends all the same. Seconds.
DRAIN = 30
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def open_directly(url: str, method: str = "GET", timeout: float = 5) -> Any:
    """Opens a URL of a server past any proxy of the environment; a response to be closed. Raises OSError."""
    return DIRECTLY.open(urllib.request.Request(url, method=method), timeout=timeout)


@dataclass(frozen=True)
class Addresses:
    """Where the server listens."""

    address: str = LOOPBACK
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002

    @classmethod
    def free(cls) -> Self:
        """Three ports on loopback that nobody listens on, for a server that lives as long as one command."""
        with contextlib.ExitStack() as stack:
            probes = [stack.enter_context(socket.socket()) for _ in range(3)]
            for probe in probes:
                probe.bind((LOOPBACK, 0))
            return cls(LOOPBACK, *(probe.getsockname()[1] for probe in probes))

    @property
    def host(self) -> str:
        """The address as a URL writes it, and one that can be connected to where the server listens on all."""
        reachable = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(self.address, self.address)
        return f"[{reachable}]" if ":" in reachable else reachable

    @property
    def http(self) -> str:
        """URL of the HTTP endpoint."""
        return f"http://{self.host}:{self.http_port}"

    @property
    def grpc(self) -> str:
        """host:port of the gRPC endpoint, as `clickbert.Ranker` takes it."""
        return f"{self.host}:{self.grpc_port}"

    @property
    def metrics(self) -> str:
        """URL of the Prometheus metrics."""
        return f"http://{self.host}:{self.metrics_port}/metrics"


class Server:
    """A running tritonserver; as a context manager it is ready inside the block, and gone behind it.

    Args:
        repository: the model repository. Models without a published version are not served.
        addresses: where to listen.
        flags: further flags of tritonserver, as it spells them.
        log: where its log goes; None for this process's stderr.

    Raises:
        ServingError: something that it needs is missing (checked before the start), or it ended before it was ready.
    """

    def __init__(
        self,
        repository: Path,
        addresses: Addresses | None = None,
        flags: tuple[str, ...] = (),
        log: IO[bytes] | None = None,
    ) -> None:
        self.addresses = addresses or Addresses()
        self.repository = repository.resolve()
        self.flags = flags
        self.log = log
        self.triton = find_triton()
        check_triton(self.triton)
        self.models = published_models(self.repository, self.triton)
        self.process: subprocess.Popen[bytes] | None = None
        self.shared_memory = f"clickbert-{os.getpid()}-{id(self):x}-"
        self.links = tempfile.TemporaryDirectory(prefix="clickbert-backends-")

    def command(self) -> list[str]:
        """The command line that starts tritonserver."""
        backends = lay_out_backends(self.triton, Path(self.links.name))
        addresses = self.addresses
        own = [
            f"--model-repository={self.repository}",
            f"--backend-directory={backends}",
            f"--http-address={addresses.address}",
            f"--http-port={addresses.http_port}",
            f"--grpc-address={addresses.address}",
            f"--grpc-port={addresses.grpc_port}",
            f"--metrics-address={addresses.address}",
            f"--metrics-port={addresses.metrics_port}",
            # Only what is published is loaded; a new version is loaded when it is asked for, not when files appear.
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in self.models),
        ]
        others = [
            f"--exit-timeout-secs={DRAIN}",
            # A crash leaves its backends' shared memory behind; by its name, `kill` finds it.
            f"--backend-config=python,shm-region-prefix-name={self.shared_memory}",
        ]
        if self.triton.is_wheel:  # it computes on the CPU alone, and would only complain about the missing driver
            others += ["--allow-gpu-metrics=false"]
        if owned := {flag.split("=")[0] for flag in own} & {flag.split("=")[0] for flag in self.flags}:
            raise ServingError(
                f"{', '.join(sorted(owned))} cannot be passed on: `python -m serving` sets it by its own options, and "
                "waits for the server where they say"
            )
        return [str(self.triton.binary), *own, *others, *self.flags]

    def start(self) -> None:
        """Starts tritonserver; returns at once."""
        addresses = self.addresses
        check_ports(
            addresses.address,
            {
                "--http-port": addresses.http_port,
                "--grpc-port": addresses.grpc_port,
                "--metrics-port": addresses.metrics_port,
            },
        )
        # A session of its own: Ctrl-C at the terminal reaches this process alone, which then lets Triton drain.
        self.process = subprocess.Popen(
            self.command(),
            env=environment(self.triton),
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    def wait_until_ready(self, timeout: float = 120.0) -> None:
        """Returns when every model is ready.

        Raises:
            ServingError: the server ended, or was not ready within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while not self.is_ready():
            code = self.running().poll()
            if code is not None:
                raise ServingError(
                    f"tritonserver ended with code {code} before it was ready; {self.where_the_log_is()}"
                )
            if time.monotonic() > deadline:
                raise ServingError(f"tritonserver was not ready within {timeout:.0f} s; {self.where_the_log_is()}")
            time.sleep(0.1)

    def is_ready(self) -> bool:
        """Whether the server answers that all its models are ready."""
        try:
            with self.get("/v2/health/ready") as answer:
                return bool(answer.status == 200)
        except OSError:  # not listening yet, or not ready (400): urllib's errors are OSErrors
            return False

    def get(self, path: str) -> Any:
        """Asks the HTTP endpoint; a response to be closed. Raises OSError."""
        return open_directly(f"{self.addresses.http}{path}")

    def running(self) -> subprocess.Popen[bytes]:
        """The process.

        Raises:
            ServingError: it was not started.
        """
        if self.process is None:
            raise ServingError("the server was not started; call start() first")
        return self.process

    def where_the_log_is(self) -> str:
        """Where the reader finds out why."""
        name = getattr(self.log, "name", None)
        return f"its log says why: {name}" if isinstance(name, str) else "its log above says why"

    def stop(self) -> int:
        """Lets the server answer what it accepted, ends it, and returns its exit code."""
        if self.process is None:
            return 0
        try:
            self.process.terminate()
            return self.process.wait(timeout=DRAIN + 10)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL
        finally:
            self.kill()

    def kill(self) -> None:
        """Ends the server, and what a crash left of its backends' processes, without draining."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for region in Path("/dev/shm").glob(f"{self.shared_memory}*"):
            region.unlink(missing_ok=True)
        self.links.cleanup()

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_until_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
