"""`make benchmark`: every served click model up to saturation, with the engine's own ceiling beside it.

For each model: a closed loop of more and more users up to saturation; saturation, in rounds in which the models take
turns, between rounds of the ceiling (the same graph in process, on the same requests); then an open loop at shares of
what saturation gave. Shown on the screen, kept as benchmarks/results/TIME.json and, with plots, as
benchmarks/results/report.html.

    python -m benchmarks saturate
    python -m benchmarks saturate --model clickbert_onnx_int8 --slo p99=300ms
    python -m benchmarks saturate --compare benchmarks/results/2026-11-25T02-30-00.json
    python -m benchmarks saturate --url grpcs://ranking.example:8001 --ca-file ca.pem

--slo also finds the highest rate whose latency holds. --compare ends with 1 where a figure is worse than that result's
beyond what chance explains. A server elsewhere has no ceiling here. The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.load import add_requests
from benchmarks.load_gen import target, workload
from benchmarks.load_gen.pool import ROOT, Load
from benchmarks.load_gen.target import LoadError
from benchmarks.measure.ceiling import pairs
from benchmarks.measure.compare import SCHEMA, check_workload, compare, read_result, verdicts
from benchmarks.measure.schedule import DISTINCT, MOST_USERS, climb, search
from benchmarks.measure.stats import aligned, beside, by_size, load_name, machine, slo_outcome, table, versions
from benchmarks.report.page import write_page
from clickbert.tokenization import PackedPairs
from release.files import write_whole

RESULTS = Path("benchmarks/results")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `climb`."""
    target.add_arguments(parser)
    add_requests(parser)
    parser.add_argument("--model", action="append", metavar="NAME", help="only this model; may be repeated")
    parser.add_argument("--slo", type=slo, metavar="p99=50ms", help="find the highest rate whose p50, p95 or p99 holds")
    parser.add_argument("--compare", type=Path, metavar="RESULT.json", help="end with 1 where that one was better")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"where to write (default {RESULTS})")


def slo(text: str) -> tuple[str, float]:
    """A percentile and its milliseconds."""
    match = re.fullmatch(r"(p50|p95|p99)=(\d+(?:\.\d+)?)ms", text)
    if not match or not float(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no such aim as p99=50ms (p50, p95 or p99)")
    return match[1], float(match[2])


def run(options: argparse.Namespace) -> int:
    """Measures, prints and writes. Returns the exit code: 1 for a regression.

    Raises:
        LoadError, WorkloadError, ServingError, ClickBertError, ClickLogError: there are no figures.
        OSError: the result cannot be written.
    """
    former = read_result(options.compare) if options.compare else None
    load = Load(options.data, options.candidates, options.texts, processes=options.processes)
    requests = workload.read_requests(load.data, load.candidates, load.texts)
    options.results.mkdir(parents=True, exist_ok=True)
    with target.logs() as folder, target.opened(options, folder) as server:
        models = choose(server.click_models(), options.model, server.url)
        result: dict[str, Any] = {
            "schema": SCHEMA,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "machine": machine(),
            "versions": versions(),
            "server": server.name() | {"url": server.url, "started_here": server.repository is not None},
            "workload": {"data": str(load.data), "candidates": load.candidates, "texts": load.texts},
            "complete": False,
            "models": {},
        }
        some: list[PackedPairs] = []
        if server.repository:
            tokenizer = workload.published_tokenizer(server.repository)
            packed = workload.pack(tokenizer, requests)
            some = workload.pack(tokenizer, workload.few(requests, DISTINCT))
            result["workload"] |= {
                "requests": len(packed),
                "pairs": pairs(packed),
                "in_closed_loops": {"requests": len(some), "pairs": pairs(some)},
                "tokens": workload.tokens(packed, tokenizer.max_length),
            }
        if former:
            check_workload(former, result)  # before minutes are spent
            if options.model:
                former["models"] = {name: found for name, found in former["models"].items() if name in models}
                if not former["models"]:
                    raise LoadError(f"{options.compare} has none of {', '.join(models)}; give another --model")
        path = options.results / f"{result['time'][:19].replace(':', '-')}.json"

        def keep() -> None:  # Ctrl-C does not cost what was measured
            write_whole(path, json.dumps(result).encode())

        for model in models:
            server.try_out(model, requests[0])
        for found in climb(server, models, load, some, folder):
            result["models"] = {model: {"version": version, **found[model]} for model, version in models.items()}
            keep()
        if options.slo:
            for model, each in result["models"].items():
                each["slo"] = search(server, model, load, each["saturated"]["requests_per_s"], options.slo, folder)
                keep()
        result["complete"] = True
        keep()
    for model, each in result["models"].items():
        print(f"{model} version {each['version']}\n{show(each)}\n")
    page = options.results / "report.html"
    write_page(page, result)
    say(f"{path} has the figures, {page} the plots")
    worse = False
    if former:
        lines, worse = verdicts(compare(former, result))
        print("\n".join(lines))
    print(
        json.dumps(
            {"result": str(path), "models": {name: found["saturated"] for name, found in result["models"].items()}}
        )
    )
    return 1 if worse else 0


def choose(served: dict[str, str], wanted: Sequence[str] | None, url: str) -> dict[str, str]:
    """The models to measure. Raises LoadError if one is not served, or none is."""
    if missing := set(wanted or ()) - set(served):
        raise LoadError(f"{url} does not serve {', '.join(sorted(missing))}, only {', '.join(served) or 'nothing'}")
    if not served:
        raise LoadError(f"{url} serves no click model; publish one with `python -m export`")
    return {name: version for name, version in sorted(served.items()) if not wanted or name in wanted}


def show(found: dict[str, Any]) -> str:
    """One model's table."""
    lines = [table([*found["closed"], *found["open"]])]
    saturated, ceiling, rounds = found["saturated"], found["ceiling"], found["rounds"]
    each = ", ".join("-" if step["generator"]["limit"] else f"{step['pairs_per_s']:.0f}" for step in rounds)
    lines.append(f"saturated: {saturated['pairs_per_s']:.0f} pairs/s at {saturated['users']} users (in rounds: {each})")
    if saturated["users"] == MOST_USERS or found["closed"][-1]["generator"]["limit"]:
        lines[-1] += ", the most that can be told: more users, or more --processes, may show more"
    if ceiling:
        each = ", ".join(f"{speed:.0f}" for speed in ceiling["rounds"])
        lines += [
            f"ceiling: {ceiling['pairs_per_second']:.0f} pairs/s in process, {ceiling['layout']} (around them: {each})",
            f"served: {saturated['of_ceiling']:.0%} of what the generators leave of it"
            + " (so that this is within what machine and method vary by)" * (saturated["of_ceiling"] > 1),
        ]
    if found["beside"]:
        lines.append(beside(found["beside"]))
    lines.append(f"latency by the size of a request, p50 / p95 / p99 ms:\n{aligned(*by_size(found))}")
    if "slo" in found:
        lines.append(slo_outcome(found["slo"]))
        lines += [
            f"    {load_name(step)}: {'holds' if step['holds'] else 'does not hold'}" for step in found["slo"]["steps"]
        ]
    return "\n".join(lines)


def commit() -> str | None:
    """The commit that is measured, with "+" behind it where files differ from it; None outside a git checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def say(line: str) -> None:
    """Progress, on stderr: stdout carries the result."""
    print(f"saturate: {line}", file=sys.stderr, flush=True)
