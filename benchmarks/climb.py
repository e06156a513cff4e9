"""`make benchmark`: every served click model up to saturation, with the engine's own ceiling beside it.

For each model: the ceiling (the same graph in process, on the same requests), a closed loop of more and more users up
to saturation, then an open loop at shares of what saturation gave. Shown on the screen, kept as
benchmarks/results/TIME.json and, with plots, as benchmarks/results/report.html.

    python -m benchmarks climb
    python -m benchmarks climb --model clickbert_onnx_int8 --slo p99=300ms
    python -m benchmarks climb --compare benchmarks/results/2026-11-25T02-30-00.json
    python -m benchmarks climb --url grpcs://ranking.example:8001 --ca-file ca.pem

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
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import target, workload
from benchmarks.ceiling import measure_ceiling
from benchmarks.compare import SCHEMA, check_workload, compare, read_result, verdicts
from benchmarks.figures import (
    aligned,
    by_size,
    left_of_ceiling,
    load_name,
    machine,
    slo_outcome,
    table,
    versions,
)
from benchmarks.generator import ROOT, Load
from benchmarks.load import add_requests, measure
from benchmarks.report import write_page
from benchmarks.target import LoadError, Target
from clickbert.tokenization import PackedPairs
from export.files import write_whole
from export.names import CONFIG_FILE

RESULTS = Path("benchmarks/results")
USERS = (1, 4, 8)  # and twice as many each time while that brings more
GAIN, MOST_USERS = 0.05, 128  # more is noise; the config's queue takes as many
CLOSED_SECONDS, SEARCH_SECONDS = 8, 12
# Shares of the saturated load, and the seconds that each is measured: where the tail is looked at, it needs requests.
SHARES = {0.3: 8, 0.5: 10, 0.7: 16, 0.9: 10}
DRIFT = 0.2  # of the machine's speed during a climb, beyond which a share of the ceiling means nothing
SEARCHES = 6  # for the highest rate that holds an SLO: 1/64 of the saturated load


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
            "models": {},
        }
        packed: list[PackedPairs] = []
        if server.repository:
            tokenizer = workload.published_tokenizer(server.repository)
            packed = workload.pack(tokenizer, requests)
            result["workload"] |= {
                "requests": len(packed),
                "pairs": sum(len(each.lengths) for each in packed),
                "tokens": workload.tokens(packed, tokenizer.max_length),
            }
        if former:
            check_workload(former, result)  # before minutes are spent
            if options.model:
                former["models"] = {name: found for name, found in former["models"].items() if name in models}
        path = options.results / f"{result['time'][:19].replace(':', '-')}.json"
        for model, version in models.items():
            server.try_out(model, requests[0])
            found = climb(server, model, load, packed, folder)
            if options.slo:
                found["slo"] = search(server, model, load, found["saturated"]["requests_per_s"], options.slo, folder)
            result["models"][model] = {"version": version, **found}
            write_whole(path, json.dumps(result).encode())  # Ctrl-C does not cost the models that are done
            print(f"{model} version {version}\n{show(found)}\n", flush=True)
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


def climb(server: Target, model: str, load: Load, packed: Sequence[PackedPairs], folder: Path) -> dict[str, Any]:
    """One model: ceiling, closed loop, open loop.

    Returns:
        config (its text), ceiling (None for a server elsewhere), closed and open (steps), saturated: the best closed
        step's users, requests_per_s, pairs_per_s and of_ceiling.

    Raises:
        LoadError: there are no figures, or the generator was the limit of every closed step.
    """
    with tqdm(total=1 + len(USERS) + len(SHARES), desc=model, unit="step", leave=False, disable=None) as progress:
        engine = server.repository and workload.newest_version(server.repository, model)
        ceiling = measure_ceiling(engine, packed) if engine else None
        progress.update()
        closed: list[dict[str, Any]] = []
        opened: list[dict[str, Any]] = []
        coming = [*USERS]
        while coming:
            users = coming.pop(0)
            step = replace(load, users=users, duration=CLOSED_SECONDS, processes=min(users, load.processes))
            closed.append(measure(server, model, step, folder))
            progress.update()
            if not coming and rises(closed) and 2 * users <= MOST_USERS:
                coming.append(2 * users)
                progress.total += 1
        if engine and ceiling:  # before and after the load that it is held against: the machine's speed drifts
            ceiling = ceiling.joined(measure_ceiling(engine, packed, ceiling.layout))
        if not (sound := sound_steps(closed)):
            raise LoadError(
                f"{model}: {closed[-1]['generator']['limit'] or 'nothing was answered'}; give more --processes"
            )
        best = max(sound, key=lambda step: step["pairs_per_s"])
        for share, seconds in SHARES.items():
            step = replace(load, rate=share * best["requests_per_s"], duration=seconds)
            opened.append(measure(server, model, step, folder) | {"share": share})
            progress.update()
    limit = ceiling.facts() if ceiling else None
    saturated = {name: best[name] for name in ("users", "requests_per_s", "pairs_per_s")}
    return {
        "config": None if server.repository is None else (server.repository / model / CONFIG_FILE).read_text(),
        "ceiling": limit,
        "closed": closed,
        "open": opened,
        "saturated": saturated | {"of_ceiling": of_ceiling(best, limit)},
    }


def sound_steps(closed: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps that have figures of the server."""
    return [step for step in closed if step["generator"]["limit"] is None and step["requests_per_s"]]


def rises(closed: Sequence[dict[str, Any]]) -> bool:
    """Whether the last step brought more than all before it, beyond noise, without an error."""
    *before, last = (step["pairs_per_s"] for step in closed)
    return bool(sound_steps(closed[-1:]) and not closed[-1]["errors"] and last > (1 + GAIN) * max(before, default=0.0))


def of_ceiling(step: dict[str, Any], ceiling: dict[str, Any] | None) -> float | None:
    """What share of the ceiling was served, the generators' own use of the cores taken off the ceiling.

    None without a ceiling, and where its rounds before and after the load differ by more than DRIFT: ceiling and load
    were then not measured on the same machine, so to speak.
    """
    if ceiling is None or max(ceiling["rounds"]) > (1 + DRIFT) * min(ceiling["rounds"]):
        return None
    return float(step["pairs_per_s"] / left_of_ceiling(ceiling, step, machine()["cores"]))


def search(
    server: Target, model: str, load: Load, saturated: float, aim: tuple[str, float], folder: Path
) -> dict[str, Any]:
    """The highest rate of requests, in an open loop, whose latency holds an aim; by halving what is left of the range.

    Args:
        server, model, load, folder: as in `climb`.
        saturated: requests a second that the closed loop reached.
        aim: a percentile and its milliseconds.

    Returns:
        aim, requests_per_s (None if even the least rate breaks it, or the generator was the limit), steps.
    """
    percentile, limit = aim
    low, high, steps = 0.0, saturated, []
    for _ in tqdm(range(SEARCHES), desc=f"{percentile}={limit:g}ms", unit="step", leave=False, disable=None):
        rate = (low + high) / 2
        step = measure(server, model, replace(load, rate=rate, duration=SEARCH_SECONDS), folder)
        latency = step["latency_ms"]
        sound = step["generator"]["limit"] is None and not step["errors"]
        holds = bool(sound and latency and latency[percentile] <= limit)
        steps.append(step | {"holds": holds})
        if step["generator"]["limit"]:  # what the server can do was not measured; higher or lower rates cannot tell
            return {"aim": f"{percentile}={limit:g}ms", "requests_per_s": None, "steps": steps}
        low, high = (rate, high) if holds else (low, rate)
    return {"aim": f"{percentile}={limit:g}ms", "requests_per_s": low or None, "steps": steps}


def show(found: dict[str, Any]) -> str:
    """One model's table."""
    lines = [table([*found["closed"], *found["open"]])]
    saturated, ceiling = found["saturated"], found["ceiling"]
    lines.append(f"saturated: {saturated['pairs_per_s']:.0f} pairs/s at {saturated['users']} users")
    if saturated["users"] == MOST_USERS or found["closed"][-1]["generator"]["limit"]:
        lines[-1] += ", the most that can be told: more users, or more --processes, may show more"
    if ceiling:
        share = saturated["of_ceiling"]
        served = "no share is given: its rounds differ too much, the machine's speed changed"
        if share is not None:
            served = f"served: {share:.0%} of what the generators leave of it"
            served += " (so that this is within what machine and method vary by)" * (share > 1)
        lines.append(f"ceiling: {ceiling['pairs_per_second']:.0f} pairs/s in process ({ceiling['layout']}); {served}")
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
    print(f"climb: {line}", file=sys.stderr, flush=True)
