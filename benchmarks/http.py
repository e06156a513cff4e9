"""What rerank over HTTP adds to a call: `AsyncRanker` itself, and `clickbert serve` in front of the same server.

    python -m benchmarks http
    python -m benchmarks http --repository model_repository --data my-clicks.jsonl.gz

The server is that of `python -m benchmarks echo`: it computes nothing, so that what is measured is not lost in the
model's time. Rankings of 20 candidates, one at a time; each is asked both ways in turns, over loopback, on connections
that stay open, and the scores must be the same. What the app adds is the difference of the medians, and of the p99.

The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import BenchmarkError, wait_for
from benchmarks.echo import CANDIDATES, EXPECTED, TIMEOUT, make_repository
from benchmarks.load_gen.target import log_folder, start_target
from benchmarks.load_gen.workload import Request, Selection
from benchmarks.measure.environment import find_environment
from benchmarks.measure.schema import Environment, Latency, dump
from benchmarks.measure.stats import summarize_latency
from benchmarks.report.tables import make_table, percentile_columns
from clickbert import AsyncRanker
from clickbert.connection import Connection
from clickbert.wire.protocol import DEFAULT_MODEL
from serving.addresses import LOOPBACK, free_ports
from serving.server import open_directly

__all__ = ["EXPECTED", "HttpResult", "run"]

DIRECT, OVER_HTTP = "AsyncRanker", "over HTTP"
_START = 60.0  # seconds


@dataclass(frozen=True)
class HttpResult:
    """The JSON document."""

    candidates: int
    ways: dict[str, Latency]  # DIRECT and OVER_HTTP
    added_ms: dict[str, float]  # by percentile: the difference
    environment: Environment


def run(options: argparse.Namespace, calls: int = 1000, warm_up: int = 100) -> int:
    """Measures this many calls each way after the warm-up, and prints the figures.

    Raises:
        EXPECTED: the click log or the repository cannot be used, or a server could not be started.
    """
    requests = Selection(options.data, CANDIDATES).read()
    with log_folder() as scratch:
        make_repository(options.repository, scratch / "repository")
        with (
            start_target(scratch / "repository", scratch) as server,
            serve(server.connection, scratch / "serve.log") as port,
        ):
            ways = asyncio.run(measure(server.connection, port, requests, calls, warm_up))
    columns: dict[str, Callable[[str], str]] = {
        f"{CANDIDATES} candidates": str,
        **percentile_columns(lambda way: ways[way], digits=2),
    }
    print(make_table(columns, tuple(ways)).text())
    added = {name: ways[OVER_HTTP][name] - ways[DIRECT][name] for name in ways[DIRECT].percentiles}
    print(f"the app adds {added['p50']:.2f} ms at the median, {added['p99']:.2f} ms at p99")
    print(dump(HttpResult(CANDIDATES, ways, added, find_environment())))
    return 0


@contextmanager
def serve(connection: Connection, log: Path) -> Iterator[int]:
    """`clickbert serve` in front of a server; yields its port. Raises BenchmarkError if it does not start."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "clickbert", "serve", f"--port={port}", f"--timeout={TIMEOUT}"]
    command += [f"--model={DEFAULT_MODEL}", *connection.to_arguments()]
    environment = {**os.environ, **connection.to_environment(), "CLICKBERT_HTTP_TOKEN": ""}
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)

    def is_healthy() -> bool:
        try:
            with open_directly(f"http://{LOOPBACK}:{port}/health"):
                return True
        except OSError:  # another status, too
            return False

    try:
        wait_for(lambda: process.poll() is not None or is_healthy(), _START)
        if process.poll() is not None or not is_healthy():
            raise BenchmarkError(f"clickbert serve did not start: {log.read_text(errors='replace')[-2000:]}")
        yield port
    finally:
        process.terminate()
        process.wait()


async def measure(
    connection: Connection, port: int, requests: Sequence[Request], calls: int, warm_up: int
) -> dict[str, Latency]:
    """Ranks both ways in turns; the latency of each. Raises BenchmarkError if the scores differ."""
    rows: list[tuple[float, float]] = []
    with closing(http.client.HTTPConnection(LOOPBACK, port, timeout=TIMEOUT)) as asking:
        async with AsyncRanker(connection, timeout=TIMEOUT) as ranker:
            for request in itertools.islice(itertools.cycle(requests), warm_up + calls):
                began = time.perf_counter()
                ranked = await ranker.rank(request.query, request.documents)
                between = time.perf_counter()
                answer = rank_over_http(asking, request)
                rows.append((between - began, time.perf_counter() - between))
                if [(each.index, each.score) for each in ranked] != answer:
                    raise BenchmarkError("the ranking over HTTP is another one than AsyncRanker's")
    both = zip((DIRECT, OVER_HTTP), zip(*rows[warm_up:], strict=True), strict=True)
    return {way: latency for way, seconds in both if (latency := summarize_latency(seconds))}


def rank_over_http(asking: http.client.HTTPConnection, request: Request) -> list[tuple[int, float]]:
    """Each document's index and score, best first."""
    body = json.dumps({"query": request.query, "texts": list(request.documents)})
    asking.request("POST", "/rerank", body, {"content-type": "application/json"})
    answer = asking.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise BenchmarkError(f"clickbert serve answered {answer.status}: {content.decode(errors='replace')}")
    return [(each["index"], each["score"]) for each in json.loads(content)]
