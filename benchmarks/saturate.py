"""`make benchmark`: every served click model up to saturation, and the engine's own ceiling.

For each model: a closed loop of more and more users up to saturation; saturation, in rounds in which the models take
turns, between rounds of the ceiling (the same graph in process, on the same requests); then an open loop at shares of
what saturation gave. Shown on the screen, kept as benchmarks/results/TIME.json and, with plots, as
benchmarks/results/report.html.

    python -m benchmarks saturate
    python -m benchmarks saturate --model clickbert_onnx_int8 --slo p99=300ms
    python -m benchmarks saturate --compare benchmarks/results/2026-11-25T02-30-00.json
    python -m benchmarks saturate --url grpcs://ranking.example:8001 --ca-file ca.pem

--slo also finds the highest rate that meets the objective. --compare ends with 1 if a figure is worse than in that
result beyond what chance explains. A server elsewhere has no ceiling here. The last line of the output is one JSON
document.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import BenchmarkError, say
from benchmarks.load_gen import target, workload
from benchmarks.load_gen.pool import TIMING, Load, Timing
from benchmarks.load_gen.target import Target
from benchmarks.load_gen.workload import Request, sample_of_all_sizes
from benchmarks.measure import schema
from benchmarks.measure.compare import check_comparable, compare_results, regressed_models, show_changes
from benchmarks.measure.environment import find_environment
from benchmarks.measure.schema import ModelResult, Saturation, SaturationResult, Sent, WorkloadInfo
from benchmarks.measure.stats import LIMITS, ClientLimits
from benchmarks.report.page import write_page
from benchmarks.report.tables import every_step_table, size_table, summary_table
from benchmarks.saturation.schedule import SCHEDULE, SaturationRun, Schedule
from benchmarks.saturation.tokens import count_pairs, count_tokens, pack, published_tokenizer
from clickbert.wire.packing import Packed
from release.stamp import PlanError

EXPECTED = (*target.EXPECTED, PlanError)


@dataclass(frozen=True)
class Summary:
    """The JSON document: the file with the result, and each model's saturation."""

    result: str
    models: dict[str, Saturation | None]


def run(
    options: argparse.Namespace, schedule: Schedule = SCHEDULE, timing: Timing = TIMING, limits: ClientLimits = LIMITS
) -> int:
    """Measures, prints and writes. Returns the exit code: 1 for a regression, or a model without figures.

    Raises:
        EXPECTED: there are no figures, or nothing to compare with.
        OSError: the result cannot be written.
    """
    earlier = schema.read_result(options.compare) if options.compare else None
    load = Load(workload.from_arguments(options), options.processes, timing=timing, limits=limits)
    requests = load.selection.read()
    options.results.mkdir(parents=True, exist_ok=True)
    with target.log_folder() as folder, target.open_target(options, folder) as server:
        models = choose(server.models(), options.model, server.connection.url)
        packed, sent = pack_requests(server, requests, schedule.distinct)
        selection = load.selection
        result = SaturationResult(
            schema=schema.SCHEMA,
            environment=find_environment(),
            server=server.info(),
            workload=WorkloadInfo(str(selection.data), selection.candidates, selection.texts, sent),
            complete=False,
            models={},
        )
        if earlier:  # now, and not after minutes of measuring
            earlier = only_models(earlier, models, options.compare) if options.model else earlier
            check_comparable(earlier, result.workload, options.compare)
        path = options.results / f"{result.environment.time[:19].replace(':', '-')}.json"
        for model in models:
            server.try_out(model, requests[0])
        for found in SaturationRun(server, load, folder, schedule).saturate(models, packed, options.slo):
            result = replace(result, models=found)
            schema.write(path, result)  # Ctrl-C does not cost what was measured
        result = replace(result, complete=True)
        schema.write(path, result)
    print(show(result.models, schedule))
    page = options.results / "report.html"
    write_page(page, result)
    say("saturate", f"{path} has the figures, {page} the plots")
    changes = compare_results(earlier, result) if earlier else []
    if earlier:
        print(show_changes(earlier, result, changes))
    saturated = {model: found.saturated for model, found in result.models.items()}
    print(schema.dump(Summary(str(path), saturated)))
    return 1 if regressed_models(changes) or None in saturated.values() else 0


def choose(served: Mapping[str, str], asked: Sequence[str] | None, url: str) -> dict[str, str]:
    """The models to measure, with their versions. Raises BenchmarkError if one is not served, or none is."""
    if missing := set(asked or ()) - set(served):
        raise BenchmarkError(
            f"{url} does not serve {', '.join(sorted(missing))}, only {', '.join(served) or 'nothing'}"
        )
    if not served:
        raise BenchmarkError(f"{url} serves no click model; publish one with `python -m export`")
    return {name: version for name, version in sorted(served.items()) if not asked or name in asked}


def only_models(earlier: SaturationResult, models: Mapping[str, str], path: Path) -> SaturationResult:
    """An earlier result of these models alone. Raises BenchmarkError if it has none of them."""
    kept = {name: found for name, found in earlier.models.items() if name in models}
    if not kept:
        raise BenchmarkError(f"{path} has none of {', '.join(models)}; give another --model")
    return replace(earlier, models=kept)


def pack_requests(server: Target, requests: Sequence[Request], distinct: int) -> tuple[list[Packed], Sent | None]:
    """The requests of closed loops and ceilings, packed, and what all are; of a server elsewhere neither is known."""
    if server.repository is None:
        return [], None
    tokenizer = published_tokenizer(server.repository)
    packed, closed = pack(tokenizer, requests), pack(tokenizer, sample_of_all_sizes(requests, distinct))
    tokens = count_tokens(packed, tokenizer.max_length)
    return closed, Sent(len(packed), count_pairs(packed), len(closed), count_pairs(closed), tokens)


def show(models: Mapping[str, ModelResult], schedule: Schedule) -> str:
    """All models, for the screen: their steps, and last what they come to."""
    parts = []
    for model, found in models.items():
        sizes = f"latency by the size of a request, {' / '.join(schema.percentile_names())} in ms"
        parts += [model, every_step_table(found).text(), f"\n{sizes}", f"{size_table(found).text()}\n"]
    parts.append(summary_table(models).text())
    for model, found in models.items():
        most = found.saturated and found.saturated.users == schedule.most_users
        if most or not found.closed[-1].server_bound:
            parts.append(f"{model}: more users or more --processes may bring more")
    return "\n".join(parts)
