"""The web services of examples/, each run as its head says, on a free port."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from serving.addresses import LOOPBACK, free_ports
from tests.reach.environment import ROOT, environment, reach_python, running_until_ready

EXAMPLES = str(ROOT / "examples")
GUNICORN = ("gunicorn", "--chdir", EXAMPLES, "--no-control-socket", "--bind", "{address}")
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "fastapi": ("uvicorn", "--app-dir", EXAMPLES, "fastapi_service:app", "--host", LOOPBACK, "--port", "{port}"),
    "flask": (*GUNICORN, "--preload", "--workers", "2", "--threads", "16", "flask_service:app"),
    "gevent": (*GUNICORN, "--worker-class", "gevent", "gevent_service:app"),
    "gevent preloaded": (*GUNICORN, "--preload", "--worker-class", "gevent", "--workers", "2", "gevent_service:app"),
}


class Service(NamedTuple):
    """A service that runs: the address, its first process, and the file with all that it says."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    def search(self, body: object, timeout: float = 120) -> tuple[int, Any, Mapping[str, str]]:
        """Post a body (bytes as they are, anything else as JSON): the status, the answer and its headers."""
        return _search(self.address, body, timeout)

    def said(self, words: str) -> bool:
        return words in self.log.read_text(encoding="utf-8")


@contextmanager
def running(kind: str, triton: str, folder: Path) -> Iterator[Service]:
    """One that asks the Triton at this address, ready."""
    (port,) = free_ports(1)
    address = f"{LOOPBACK}:{port}"
    command = [reach_python(), "-m", *(part.format(address=address, port=port) for part in COMMANDS[kind])]
    log = folder / f"{kind}.log"
    with running_until_ready(command, environment(CLICKBERT_URL=triton), log, lambda: _answers(address)) as process:
        yield Service(address, process, log)


def _search(address: str, body: object, timeout: float) -> tuple[int, Any, Mapping[str, str]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://{address}/search", data, {"Content-Type": "application/json", "Connection": "close"}
    )
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout) as answer:
            return answer.status, json.load(answer), answer.headers
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read(), refused.headers


def _answers(address: str) -> bool:
    try:
        return _search(address, {}, timeout=10)[0] >= 400
    except OSError:
        return False
