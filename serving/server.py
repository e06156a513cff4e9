"""Runs one tritonserver: starts it, waits until its models are ready, passes signals on, drains and ends it.

What this module does not know: what the models compute. It speaks to Triton by its command line and its health URL.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shlex
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from release.names import CONFIG_FILE, VARIANTS
from serving.addresses import LOOPBACK, Addresses
from serving.backends.packed_cpu.presence import find_dead
from serving.checks import check_ports, check_triton, config_file, published_models, read_backend
from serving.runtime import RuntimeFolder
from serving.triton import ServingError, Triton, environment, find_triton, lay_out_backends

__all__ = ["LOOPBACK", "Addresses", "Server", "open_directly", "why_not_ready"]

DRAIN = 30  # seconds in which Triton answers what it has accepted; then it ends all the same
LOOK = 0.1  # seconds between two looks at the backends' processes
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class BackendDiedError(RuntimeError):
    """A process of the server's backends died; the message says which one. The server must be started anew."""


class Server:
    """A tritonserver. As a context manager it is ready inside the block, and gone after it.

    Args:
        repository: the model repository. Models without a published version are not served.
        addresses: where to listen.
        flags: further flags of tritonserver, as it spells them.
        log: where its log goes; None for this process's stderr.
        config: the name of a config variant, which models are served by that have it (MODEL/configs/NAME.pbtxt).

    Raises:
        ServingError: something that it needs is missing (checked before the start), or it ended before it was ready.
    """

    def __init__(
        self,
        repository: Path,
        addresses: Addresses | None = None,
        flags: tuple[str, ...] = (),
        log: IO[bytes] | None = None,
        config: str = "",
    ) -> None:
        self.addresses = addresses or Addresses()
        self.repository = Path(os.path.realpath(repository))
        self.flags = flags
        self.log = log
        self.config = config
        self.triton = find_triton()
        backends = find_models(self.repository, self.triton, config)
        self.models = list(backends)
        self.needs_python = any(self.triton.runs_in_python(backend) for backend in backends.values())
        check_triton(self.triton, self.needs_python)
        self.process: subprocess.Popen[bytes] | None = None
        self.folder: RuntimeFolder | None = None
        self.ready_since = 0.0
        refuse_flags(flags, self.own_flags(self.repository, self.triton.backends))

    def own_flags(self, repository: Path, backends: Path) -> list[str]:
        """The flags that follow from this server's own settings, and that nobody else may set."""
        return [
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            *self.addresses.flags,
            # Triton loads what is published now, and a new version when it is asked to, not when files appear.
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in self.models),
            *([f"--model-config-name={self.config}"] if self.config else []),
        ]

    def prepare(self) -> list[str]:
        """Makes the runtime folder if a model runs in Python; returns the command line that starts tritonserver."""
        repository, backends = self.repository, self.triton.backends
        others = [f"--exit-timeout-secs={DRAIN}"]
        if self.needs_python:
            self.folder = RuntimeFolder(lambda folder: lay_out_backends(self.triton, folder / "backends"))
            backends = self.folder.path / "backends"
            if shlex.quote(str(repository)) != str(repository):
                # The Python backend puts the path into a shell's command line, unquoted.
                repository = self.folder.path / "repository"
                repository.symlink_to(self.repository)
            others.append(f"--backend-config=python,shm-region-prefix-name={self.folder.path.name}-")
        if self.triton.is_wheel:  # it computes on the CPU alone, and would only complain about the missing driver
            others.append("--allow-gpu-metrics=false")
        return [str(self.triton.binary), *self.own_flags(repository, backends), *others, *self.flags]

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
        command = self.prepare()
        try:
            # A session of its own: Ctrl-C at the terminal reaches this process alone, which then lets Triton drain.
            self.process = subprocess.Popen(
                command,
                env=environment(self.triton, self.needs_python),
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                start_new_session=True,
                pass_fds=[self.folder.lock] if self.folder and self.folder.lock is not None else [],
            )
        except OSError as exc:
            raise ServingError(
                f"{self.triton.binary} cannot be executed ({exc.strerror}); install it where that is allowed"
            ) from exc

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
        self.ready_since = time.monotonic()

    def is_ready(self) -> bool:
        """Whether the server answers that all its models are ready."""
        return why_not_ready(self.addresses) is None

    def get(self, path: str) -> Any:
        """Asks the HTTP endpoint; a response to be closed. Raises OSError."""
        return open_directly(f"{self.addresses.http}{path}")

    def metrics(self) -> str:
        """The text of the metrics endpoint. Raises OSError."""
        with open_directly(self.addresses.metrics) as answer:
            return str(answer.read(), "utf-8")

    def running(self) -> subprocess.Popen[bytes]:
        """The process.

        Raises:
            ServingError: it was not started.
        """
        if self.process is None:
            raise ServingError("the server was not started; call start() first")
        return self.process

    def watch(self) -> int:
        """Waits until the server ends, and returns its exit code.

        Raises:
            BackendDiedError: a process of its backends died; the server is broken, and does not say so.
        """
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.running().wait(timeout=LOOK)
            if self.folder and (dead := find_dead(self.folder.path / "backends")):
                raise BackendDiedError(f"the process of {', '.join(dead)} died")

    def where_the_log_is(self) -> str:
        """Says where the log is."""
        name = getattr(self.log, "name", None)
        return f"its log says why: {name}" if isinstance(name, str) else "its log above says why"

    def stop(self) -> int:
        """Lets the server answer what it has accepted, ends it, and returns its exit code."""
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
        """Ends the server without draining, and removes what a crash left of it."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if self.folder is not None:
            self.folder.remove()

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


def open_directly(url: str, method: str = "GET", timeout: float = 4) -> Any:
    """Opens a URL of a server past any proxy of the environment; a response to be closed. Raises OSError."""
    return DIRECTLY.open(urllib.request.Request(url, method=method), timeout=timeout)


def why_not_ready(addresses: Addresses) -> str | None:
    """Why the server there is not ready to answer for all its models; None if it is."""
    try:
        with open_directly(f"{addresses.http}/v2/health/ready"):
            return None
    except urllib.error.HTTPError as exc:
        return f"it answers {exc.code}"
    except (OSError, http.client.HTTPException) as exc:  # not listening yet; something else than an HTTP server
        return str(getattr(exc, "reason", exc))


def find_models(repository: Path, triton: Triton, config: str) -> dict[str, str]:
    """The models to serve, with their backends.

    Raises:
        ServingError: the repository is none, or cannot be read, or `published_models` refuses it; no model has a config
            of that name.
    """
    advice = "give --repository a folder that `python -m export` publishes to"
    try:
        next(repository.iterdir(), None)
        models = published_models(repository, triton, config)
    except OSError as exc:
        raise ServingError(f"{exc.filename or repository} cannot be read ({exc.strerror}); {advice}") from exc
    configs = {model: config_file(repository / model, config) for model in models}
    if config and all(file.name == CONFIG_FILE for file in configs.values()):
        there_are = sorted({file.stem for file in repository.glob(f"*/{VARIANTS}/*.pbtxt")})
        raise ServingError(
            f"--config {config!r}: no model to serve has a {VARIANTS}/{config}.pbtxt; {repository} has "
            f"{', '.join(there_are) or 'none of any name; copy those of model_repository in git'}"
        )
    backends = {model: read_backend(file) for model, file in configs.items()}
    for model, backend in backends.items():
        if triton.runs_in_python(backend) and not re.fullmatch(r"[\w.-]+", model, re.ASCII):
            raise ServingError(
                f"{model!r} cannot be served: Triton's Python backend passes a model's name through a shell; rename "
                f"{repository / model} to letters, digits, `_`, `-` and `.`"
            )
    return backends


def refuse_flags(flags: tuple[str, ...], own: list[str]) -> None:
    """Raises ServingError where a flag of the user's would contradict one of the server's own."""
    # --model-store is another name of --model-repository.
    names = {flag.split("=")[0] for flag in own} | {"--model-store", "--model-config-name"}
    if refused := names & {flag.split("=")[0] for flag in flags}:
        raise ServingError(
            f"{', '.join(sorted(refused))} cannot be passed on: `python -m serving` sets it by its own options, and "
            "waits for the server where they say"
        )
