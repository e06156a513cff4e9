"""`python -m serving`, as tests call it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

from serving.server import Addresses
from tests.processes import children

# Nothing listens there: whatever asks loopback by a proxy fails.
PROXIES = {f"{kind}_proxy": "http://127.0.0.1:1" for kind in ("http", "https", "all", "grpc")}
# Undoes what nohup or a shell's background job, should the tests run in one, would hand on: ignored signals. (Not by
# preexec_fn: with it Python forks, and gRPC, which other tests of this process use, may abort the child.)
LISTENING = ("env", "--default-signal=HUP,INT,TERM")


def options(repository: Path, addresses: Addresses) -> list[str]:
    """The options that serve a repository at these addresses."""
    return [
        f"--repository={repository}",
        f"--grpc-port={addresses.grpc_port}",
        f"--metrics-port={addresses.metrics_port}",
    ]


class Command:
    """`python -m serving` in a process of its own, started and ready."""

    def __init__(self, repository: Path, folder: Path, *more: str) -> None:
        self.addresses = Addresses.free()
        self.log_file = folder / "log"
        self.log = self.log_file.open("w")
        command = [*LISTENING, sys.executable, "-m", "serving", *options(repository, self.addresses), *more]
        environment = os.environ | PROXIES
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment)
        assert self.process.stdout
        self.printed = [self.process.stdout.readline() for _ in range(2)]

    def triton(self) -> int:
        """tritonserver's process id."""
        (process,) = children(self.process.pid)
        return process

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """A test that failed half-way leaves no server behind either: the second signal ends it at once."""
        while self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue
        self.log.close()
