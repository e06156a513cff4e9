"""Runs one tritonserver: starts it, waits until its models are ready, passes signals on, drains and ends it.

What this module does not know: what the models compute. It speaks to Triton by its command line and by gRPC.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from serving.access import admin
from serving.access.security import Rotation, Security, read_security
from serving.addresses import LOOPBACK, Addresses
from serving.asking import why_not_ready
from serving.backends.packed_cpu.presence import find_dead
from serving.checks import check_ports, check_triton
from serving.flags import CONDUCT, refuse_flags
from serving.repository.loading import bring_back, withdraw_latest, withdraw_refused
from serving.repository.models import find_models
from serving.repository.verification import loaded_versions, verify_models
from serving.runtime import RuntimeFolder
from serving.triton import ServingError, environment, find_triton, hide_words, lay_out_backends

__all__ = ["LOOPBACK", "Addresses", "Server", "open_directly", "why_not_ready"]

STDERR = 2  # this process's, as a descriptor
DRAIN = 30  # seconds in which Triton answers what it has accepted; then it ends all the same
PATIENCE = 4  # seconds, for the metrics
LOOK = 0.1  # seconds between two looks at the backends' processes
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerDiedError(RuntimeError):
    """Triton crashed, or a process of its backends died; the message says which. The server must be started anew."""


class FilesChangedError(RuntimeError):
    """The files of `--secure` were changed; the message says which folder. The server must be started anew."""


class Server:
    """A tritonserver. As a context manager it is ready inside the block, and gone after it.

    Args:
        repository: the model repository. Models without a published version are not served.
        addresses: where to listen.
        flags: further flags of tritonserver, as it spells them.
        log: where its log goes; None for this process's stderr.
        config: the name of a config variant, which models are served by that have it (MODEL/configs/NAME.pbtxt).
        secure: the folder of certificates and the callers' token; None: plaintext, and everybody may call.

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
        secure: Path | None = None,
    ) -> None:
        self.addresses = addresses or Addresses()
        self.repository = Path(os.path.realpath(repository))
        self.flags = flags
        self.log = log
        self.config = config
        self.secure = secure
        self.security: Security | None = None  # as Triton has read it
        self.admin_token = admin.make_token()
        self.triton = find_triton()
        self.find_models()
        self.loaded: dict[str, list[str]] = {}  # the models, and their versions' numbers, as of the last start
        self.process: subprocess.Popen[bytes] | None = None
        self.folder: RuntimeFolder | None = None
        self.ready_since = 0.0
        refuse_flags(flags, self.own_flags(self.repository, self.triton.backends))

    def find_models(self) -> None:
        """Finds the models to serve, and checks that they can run here. Raises ServingError."""
        backends = find_models(self.repository, self.triton, self.config)
        needs_python = any(self.triton.runs_in_python(backend) for backend in backends.values())
        check_triton(self.triton, needs_python)
        self.models, self.needs_python = list(backends), needs_python

    def find_models_anew(self) -> None:
        """The same for a server that ran: what was published since, and cannot be served, does not end the service."""
        former = self.models, self.needs_python
        withdraw_refused(self.repository, self.loaded, self.config)
        try:
            self.find_models()
            verify_models(self.repository, [model for model in self.models if model not in self.loaded], self.config)
        except ServingError as exc:
            print(f"serving: the former models are served alone: {exc}", file=sys.stderr, flush=True)
            self.models, self.needs_python = former

    def own_flags(self, repository: Path, backends: Path) -> list[str]:
        """The flags that follow from this server's own settings, and that nobody else may set."""
        return [
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            *self.addresses.flags,
            *admin.restriction(self.admin_token, http=self.addresses.http_port is not None),
            *(self.security.flags(self.folder.path) if self.security and self.folder else []),
            # Triton loads what is published now, and a new version when it is asked to, not when files appear.
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in self.models),
            *([f"--model-config-name={self.config}"] if self.config else []),
        ]

    def read_security(self) -> None:
        """Reads the files of `--secure`. Raises ServingError if they are no good, and the server did not run before."""
        if self.secure:
            try:
                self.security = read_security(self.secure, former=self.security)
            except ServingError as exc:
                if self.security is None:
                    raise
                print(f"serving: the former files stay in use: {exc}", file=sys.stderr, flush=True)

    def prepare(self) -> list[str]:
        """Makes the runtime folder; returns the command line that starts tritonserver."""
        repository, backends = self.repository, self.triton.backends
        self.folder = RuntimeFolder(self.fill)
        others = [*CONDUCT, f"--exit-timeout-secs={DRAIN}"]
        if self.needs_python:
            backends = self.folder.path / "backends"
            if shlex.quote(str(repository)) != str(repository):
                # The Python backend puts the path into a shell's command line, unquoted.
                repository = self.folder.path / "repository"
                repository.symlink_to(self.repository)
            others.append(f"--backend-config=python,shm-region-prefix-name={self.folder.path.name}-")
        if self.triton.is_wheel:  # it computes on the CPU alone, and would only complain about the missing driver
            others.append("--allow-gpu-metrics=false")
        return [str(self.triton.binary), *self.own_flags(repository, backends), *others, *self.flags]

    def fill(self, folder: Path) -> None:
        """Puts into the runtime folder what the server and its admin need. Raises OSError."""
        admin.keep_token(self.admin_token, self.addresses, folder)
        if self.security:
            self.security.write(folder)
        if self.needs_python:
            lay_out_backends(self.triton, folder / "backends")

    def start(self) -> None:
        """Verifies the models and starts tritonserver; returns when its process runs."""
        check_ports(self.addresses.address, self.addresses.ports)
        if self.ready_since:
            self.find_models_anew()
        verify_models(self.repository, self.models, self.config)
        self.loaded = {
            model: [version.name for version in loaded_versions(self.repository / model, self.config)]
            for model in self.models
        }
        self.read_security()
        command = self.prepare()
        log = self.log or STDERR
        try:
            # A session of its own: Ctrl-C at the terminal reaches this process alone, which then lets Triton drain.
            self.process = subprocess.Popen(
                command,
                env=environment(self.triton, self.needs_python),
                stdin=subprocess.DEVNULL,
                stdout=log,  # Triton says there alone which signal it got; our own stdout is for our own lines
                stderr=log,
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
        self.hide_tokens()

    def hide_tokens(self) -> None:
        """Takes the tokens out of what `ps` shows of the server, which by now has read its flags."""
        tokens = [self.admin_token, self.security.token if self.security else None]
        try:
            hide_words(self.running().pid, [token for token in tokens if token])
        except OSError as exc:
            print(
                "serving: everybody on this machine can see the tokens by `ps`, among the server's flags: they cannot "
                f"be overwritten there ({exc.strerror})",
                file=sys.stderr,
                flush=True,
            )

    def is_ready(self) -> bool:
        """Whether the server answers that all its models are ready."""
        return why_not_ready(self.addresses, self.security, self.models) is None

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
            ServerDiedError: it crashed; or a process of its backends died, and it is broken and does not say so.
            FilesChangedError: there are new certificates, or a new token, which Triton reads at its start alone.
        """
        rotation = Rotation(self.security) if self.security else None
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self.running().wait(timeout=LOOK)
                if code < 0:
                    raise ServerDiedError(f"tritonserver died of {signal.Signals(-code).name}")
                return code
            if self.folder and (dead := find_dead(self.folder.path / "backends")):
                raise ServerDiedError(f"the process of {', '.join(dead)} died")
            try:
                if rotation and rotation.is_due():
                    raise FilesChangedError(f"the files in {self.secure} were changed")
            except ServingError as exc:
                print(f"serving: the former files stay in use: {exc}", file=sys.stderr, flush=True)

    def where_the_log_is(self) -> str:
        """Says where the log is."""
        name = getattr(self.log, "name", None)
        return f"its log says why: {name}" if isinstance(name, str) else "its log above says why"

    def stop(self) -> int:
        """Lets the server answer what it has accepted, ends it, and returns its exit code."""
        if self.process is None:
            return 0
        deadline = time.monotonic() + DRAIN + 10
        try:
            self.process.terminate()
            try:
                return self.process.wait(timeout=DRAIN + 10)
            except KeyboardInterrupt:  # the first signal, while it drains for new certificates: it drains all the same
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(timeout=max(deadline - time.monotonic(), 0))
                raise
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
            self.come_up()
        except BaseException:
            self.kill()
            raise
        return self

    def come_up(self) -> None:
        """Starts the server, and waits until it is ready.

        If it ran before, and ends now, what came since may be the reason: it is tried with one version less each time.

        Raises:
            ServingError: it cannot be started.
        """
        former, withdrawn = self.loaded if self.ready_since else None, list[Path]()
        while True:
            self.start()
            try:
                self.wait_until_ready()
                return
            except ServingError as exc:
                if former is None or self.running().poll() is None:
                    raise
                latest = withdraw_latest(self.repository, former, self.loaded, str(exc))
                if latest is None:  # without all of them it ended, too
                    bring_back(withdrawn)
                    raise
            withdrawn.append(latest)
            self.kill()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def open_directly(url: str | urllib.request.Request) -> Any:
    """Opens a URL of a server past any proxy of the environment; a response to be closed. Raises OSError."""
    return DIRECTLY.open(url, timeout=PATIENCE)
