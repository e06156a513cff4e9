"""One load on one served model: Locust's users rank a click log's requests, in a closed loop or in an open one.

    python -m benchmarks load
    python -m benchmarks load --users 16 --duration 60 --data my-clicks.jsonl.gz
    python -m benchmarks load --rate 20 --candidates 20
    python -m benchmarks load --url grpcs://10.0.0.1:8001 --ca-file ca.pem --model clickbert_trt_fp16

--url is a server's own address: a gateway does not tell what is measured. Without it this starts a server on free
ports, and stops it after the run. Output: a table, and one JSON document as the last line. A client-bound run shows no
figures: they would be those of the load's own processes.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

from benchmarks import BenchmarkError, say
from benchmarks.load_gen import target, workload
from benchmarks.load_gen.pool import TIMING, Load, Timing, open_pool
from benchmarks.measure.environment import find_environment
from benchmarks.measure.schema import Environment, ServerInfo, Step, dump
from benchmarks.measure.stats import LIMITS, ClientLimits
from benchmarks.options import USERS
from benchmarks.report.tables import step_table

EXPECTED = target.EXPECTED


@dataclass(frozen=True)
class LoadResult:
    """The JSON document. A client-bound step is left out; then `client_bound` says why."""

    model: str
    version: str
    server: ServerInfo
    environment: Environment
    client_bound: str | None
    step: Step | None


def run(options: argparse.Namespace, timing: Timing = TIMING, limits: ClientLimits = LIMITS) -> int:
    """Measures and prints. Returns the exit code: 0, or 1 if there are no figures or every request failed.

    Raises:
        EXPECTED: there are no figures.
    """
    users = None if options.rate else options.users or USERS
    if users and users < options.processes:
        raise BenchmarkError(f"{users} users cannot be shared by {options.processes} processes; give fewer --processes")
    load = Load(workload.from_arguments(options), options.processes, timing=timing, limits=limits)
    requests = load.selection.read()  # before a server is started in vain
    with target.log_folder() as folder, target.open_target(options, folder) as server:
        server.try_out(options.model, requests[0])
        version, seconds = server.models()[options.model], options.duration
        arrivals = f"{users} users" if users else f"{options.rate:g} requests/s, open loop,"
        say("load", f"{arrivals} for {seconds} s on {options.model} version {version} at {server.connection.url}")
        with open_pool(server, options.model, load, folder, users) as pool:
            step = server.with_counts(options.model, lambda: pool.send(seconds, users=users, rate=options.rate))
        if not step.requests:
            raise BenchmarkError(f"no request started in the {seconds} s measured; give a longer --duration")
        shown = None if step.client_bound else replace(step, latencies_ms=())  # one of each request: too many to read
        result = LoadResult(options.model, version, server.info(), find_environment(), step.client_bound, shown)
    for kind, message in step.generator.first_messages.items():
        say("load", f"{kind}, the first: {message}")
    print(f"{step_table([step]).text()}\n{dump(result)}")
    return 1 if step.client_bound or step.errors == step.requests else 0
