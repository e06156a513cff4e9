"""The app on a port: on uvicorn in a thread of the test's process, and as `clickbert serve`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from tests.waiting import eventually

_RUNNING = re.compile(r"running on (http://\S+)")


@contextmanager
def on_a_port(app: Any) -> Iterator[str]:
    """Serves it inside the block; yields its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started)
        (socket,) = server.servers[0].sockets
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@dataclass
class Process:
    """A server in a process of its own."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8")

    @property
    def address(self) -> str:
        eventually(lambda: bool(_RUNNING.search(self.output)) or self.process.poll() is not None)
        found = _RUNNING.search(self.output)
        assert found, self.output
        return found[1]


@contextmanager
def in_a_process(log: Path, *command: str, **environment: str) -> Iterator[Process]:
    """Runs `python -m ...` inside the block; its output goes to the log."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=file, stderr=file, env={**os.environ, **environment}
        )
    try:
        yield Process(process, log)
    finally:
        process.kill()
        process.wait()
