"""Whether `clickbert score` keeps a server as busy as the load generators do, from one process.

    python -m benchmarks bulk
    python -m benchmarks bulk --model clickbert_onnx_int8 --users 16 --rounds 6
    python -m benchmarks bulk --url grpcs://ranking.example:8001 --ca-file ca.pem --data my-clicks.jsonl.gz

Rounds in turns, on one server and the same texts: Locust's users in a closed loop (`--users` that saturate it, see
`saturate`), then `clickbert score` on a file of the same requests' pairs, in the same order, over and over, for about
as long. The rate of the file counts from the first rows that its journal notes to the end: Python's start is left out,
as the generators' is. The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import BenchmarkError, say
from benchmarks.load_gen import target, workload
from benchmarks.load_gen.pool import TIMING, Load, Timing, open_pool
from benchmarks.load_gen.target import Target
from benchmarks.load_gen.workload import Request
from benchmarks.measure.environment import find_environment
from benchmarks.measure.schema import Environment, ServerInfo, dump
from benchmarks.measure.stats import LIMITS, ClientLimits
from benchmarks.report.tables import make_table

EXPECTED = target.EXPECTED


@dataclass(frozen=True)
class BulkRound:
    """Pairs a second, one after the other."""

    load: float
    bulk: float


@dataclass(frozen=True)
class BulkResult:
    """The JSON document. `ratio` is of the sums over all rounds."""

    model: str
    version: str
    server: ServerInfo
    environment: Environment
    rounds: tuple[BulkRound, ...]
    ratio: float


def run(options: argparse.Namespace, timing: Timing = TIMING, limits: ClientLimits = LIMITS) -> int:
    """Measures and prints. Returns the exit code 0.

    Raises:
        EXPECTED: there are no figures.
    """
    load = Load(workload.from_arguments(options), options.processes, timing=timing, limits=limits)
    requests = load.selection.read()
    rounds: list[BulkRound] = []
    with target.log_folder() as folder, target.open_target(options, folder) as server:
        server.try_out(options.model, requests[0])
        version = server.models()[options.model]
        with open_pool(server, options.model, load, folder, options.users) as pool:
            for number in range(options.rounds):
                step = pool.send(options.duration, users=options.users)
                if step.client_bound or not step.pairs_per_second:
                    raise BenchmarkError(f"the load has no figures: {step.client_bound or step.error_kinds}")
                pairs = max(round(step.pairs_per_second * options.duration), 2)
                rounds.append(BulkRound(step.pairs_per_second, score(server, options.model, requests, pairs, folder)))
                shown = rounds[-1]
                say("bulk", f"round {number + 1}: load {shown.load:.0f} pairs/s, bulk {shown.bulk:.0f} pairs/s")
        server.check_alive()
        info = server.info()
    ratio = sum(each.bulk for each in rounds) / sum(each.load for each in rounds)
    columns = {
        "round": lambda each: str(rounds.index(each) + 1),
        "load, pairs/s": lambda each: f"{each.load:.0f}",
        "bulk, pairs/s": lambda each: f"{each.bulk:.0f}",
        "ratio": lambda each: f"{each.bulk / each.load:.1%}",
    }
    print(make_table(columns, rounds).text())
    print(f"`clickbert score` does {ratio:.1%} of the saturated load")
    print(dump(BulkResult(options.model, version, info, find_environment(), tuple(rounds), ratio)))
    return 0


def score(server: Target, model: str, requests: Sequence[Request], pairs: int, folder: Path) -> float:
    """The pairs a second of `clickbert score` on a file with so many pairs. Raises BenchmarkError if it fails."""
    source, output = folder / "pairs.jsonl", folder / "scored.jsonl"
    journal = folder / "scored.jsonl.journal"
    every = ((request.query, text) for request in itertools.cycle(requests) for text in request.documents)
    with source.open("w", encoding="utf-8") as file:
        for query, document in itertools.islice(every, pairs):
            file.write(f"{json.dumps({'query': query, 'document': document}, ensure_ascii=False)}\n")
    words = [sys.executable, "-m", "clickbert", "score", str(source), "--output", str(output), "--model", model]
    words += server.connection.to_arguments()
    variables = {**os.environ, **server.connection.to_environment()}
    began, noted = 0.0, 0
    with (folder / "score.log").open("w+", encoding="utf-8") as log:
        with subprocess.Popen(words, env=variables, stdout=log, stderr=log) as process:
            try:
                while process.poll() is None:
                    if not noted:
                        began, noted = time.perf_counter(), rows_noted(journal)
                    time.sleep(0.01)
                ended = time.perf_counter()
            finally:
                process.kill()
        if process.returncode:
            log.seek(0)
            raise BenchmarkError(f"clickbert score ended with code {process.returncode}: {log.read().strip()[-2000:]}")
    output.unlink()
    if not 0 < noted < pairs:
        raise BenchmarkError("the file was scored before a rate could be seen; give a longer --duration")
    return (pairs - noted) / (ended - began)


def rows_noted(journal: Path) -> int:
    """The rows that a journal notes as done; 0 if there is none."""
    with contextlib.suppress(FileNotFoundError):
        return int(json.loads(journal.read_text(encoding="utf-8"))["done"]["scored"])
    return 0
