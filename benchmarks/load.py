"""One load on one served model: Locust's users rank a click log's requests, in a closed loop or in an open one.

    python -m benchmarks load
    python -m benchmarks load --users 16 --duration 60 --data my-clicks.jsonl.gz
    python -m benchmarks load --rate 20 --candidates 20
    python -m benchmarks load --url grpcs://ranking.example:8001 --ca-file ca.pem --model clickbert_trt_fp16

Without --url the server is started on free ports, and stopped behind the run. Output: a table, and as the last line one
JSON document. Where the load's own processes are the limit, no figures are shown as the server's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.load_gen import target, workload
from benchmarks.load_gen.pool import WARM_UP, Load, run_load
from benchmarks.load_gen.target import LoadError, Target
from benchmarks.measure.stats import machine, table, versions
from clickbert.protocol import DEFAULT_MODEL

USERS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `load`."""
    target.add_arguments(parser)
    add_requests(parser)
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"the model's name (default {DEFAULT_MODEL})")
    arrivals = parser.add_mutually_exclusive_group()
    arrivals.add_argument("--users", type=whole_number, help=f"closed loop: requests in flight (default {USERS})")
    arrivals.add_argument("--rate", type=rate, help="open loop: requests started a second, at random moments")
    parser.add_argument("--duration", type=whole_number, default=30, help="seconds that are measured (default 30)")


def add_requests(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say what is sent."""
    data = Path("data/sample/test.jsonl")
    parser.add_argument("--data", type=Path, default=data, help=f"click log, .jsonl[.gz] (default {data})")
    parser.add_argument("--candidates", type=whole_number, help="of each request (default: as the click log has them)")
    parser.add_argument(
        "--texts", choices=(workload.ALL, workload.TITLES), default=workload.ALL,
        help=f"all candidates, or those of {workload.TITLE} characters or fewer",
    )  # fmt: skip
    parser.add_argument("--processes", type=whole_number, default=1, help="Locust processes (default 1)")


def whole_number(text: str) -> int:
    """A whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def rate(text: str) -> float:
    """Requests a second."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of requests a second above 0")
    return number


def run(options: argparse.Namespace) -> int:
    """Measures and prints. Returns the exit code: 0, or 1 if there are no figures or every request failed.

    Raises:
        LoadError: Locust or the server ended early, or nothing was recorded.
        ServingError: the server could not be started.
        ClickBertError: the model does not answer; nothing was measured.
        ClickLogError: the click log cannot be used.
        KeyboardInterrupt: Ctrl-C, or a signal that the command takes for it; Locust and the server are gone.
    """
    users = None if options.rate else options.users or USERS
    if users and users < options.processes:
        raise LoadError(f"{users} users cannot be shared by {options.processes} processes; give fewer --processes")
    load = Load(
        options.data, options.candidates, options.texts, users, options.rate, options.duration, options.processes
    )
    requests = workload.read_requests(load.data, load.candidates, load.texts)  # before a server is started for nothing
    with target.logs() as folder, target.opened(options, folder) as server:
        server.try_out(options.model, requests[0])
        name, version = server.name(), server.models()[options.model]
        say(f"{describe(load)} on {options.model} version {version} at {server.url}: {WARM_UP} s to warm up first")
        figures = run_load(server, options.model, load, folder)
        server.check_alive()
        document = {
            "model": options.model,
            "url": server.url,
            "server": name,
            **figures,
            "machine": machine(),
            "versions": versions() | {"model": version},
        }
    for kind, message in figures["generator"]["first_messages"].items():
        say(f"{kind}, the first: {message}")
    del document["latencies_ms"]
    if figures["generator"]["limit"]:  # then none of these is the server's
        for figure in ("requests_per_s", "pairs_per_s", "pairs_by_second", "latency_ms", "latency_by_size_ms"):
            document[figure] = None
    print(f"{table([figures])}\n{json.dumps(document)}")
    return 1 if figures["generator"]["limit"] or figures["errors"] == figures["requests"] else 0


def describe(load: Load) -> str:
    """A load in words."""
    who = f"{load.users} users" if load.users else f"{load.rate:g} requests/s, open loop"
    return f"{who} for {load.duration} s"


def say(line: str) -> None:
    """Progress and errors, on stderr: stdout carries the result."""
    sys.stderr.write(f"load: {line}\n")
    sys.stderr.flush()


def split_time(before: dict[str, int], after: dict[str, int], mean_ms: float | None) -> dict[str, float] | None:
    """Where a request's time went, by Triton's counts: milliseconds on average.

    Args:
        before: `Target.statistics` before the load.
        after: the same after it.
        mean_ms: what a request took on average for its caller.

    Returns:
        queue, compute (copies in and out, and the engine), rest (network, client, Triton's own); None if nothing ran.
    """
    requests = after["requests"] - before["requests"]
    if not requests or mean_ms is None:
        return None
    spent = {part: (after[part] - before[part]) / requests / 1e6 for part in target.PARTS}
    compute = sum(spent.values()) - spent["queue"]
    return {"queue": spent["queue"], "compute": compute, "rest": max(0.0, mean_ms - spent["queue"] - compute)}


def measure(server: Target, model: str, load: Load, folder: Path) -> dict[str, Any]:
    """One load, `observed`."""
    return observed(server, model, lambda: run_load(server, model, load, folder))


def observed(server: Target, model: str, send: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `send` returns of a load, with `time_ms` (`split_time`) and `requests_per_execution`, by Triton's counts."""
    before = server.statistics(model)
    figures = send()
    server.check_alive()
    after = server.statistics(model)
    mean = figures["latency_ms"]["mean"] if figures["latency_ms"] else None
    requests, executions = (after[name] - before[name] for name in ("requests", "executions"))
    return figures | {
        "time_ms": split_time(before, after, mean),
        "requests_per_execution": requests / executions if executions else None,
    }
