"""`clickbert serve`, as a process of its own."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from serving.addresses import LOOPBACK, free_ports
from tests.reach.environment import running_until_ready


class HttpServer(NamedTuple):
    """Where it listens, what its callers must send as a token, its default model and one more."""

    url: str
    token: str
    model: str
    other_model: str


@contextmanager
def serve_http(triton: str, log: Path) -> Iterator[HttpServer]:
    """One in front of the Triton at this address, ready."""
    (port,) = free_ports(1)
    server = HttpServer(f"http://{LOOPBACK}:{port}", "a-token-of-the-tests", "clickbert_onnx", "clickbert_onnx_int8")
    command = [sys.executable, "-m", "clickbert", "serve", "--url", triton, "--host", LOOPBACK, "--port", str(port)]
    command += ["--model", server.model, "--model", server.other_model]
    variables = os.environ | {"CLICKBERT_HTTP_TOKEN": server.token}
    with running_until_ready(command, variables, log, lambda: _is_ready(server.url)):
        yield server


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/health", timeout=10):
            return True
    except urllib.error.URLError:
        return False
