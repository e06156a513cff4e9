"""Finds a model's serving settings for this machine, under a stated load, and writes them into its config.pbtxt.

Swept one after another, each with the best of those before. Of a model for CPUs: how many chunks are computed at a time
(as many as cores; one core left to others; as many, but not bound to the cores), and how many tokens a chunk has. Of a
TensorRT plan: how many requests are merged, up to what the plan was built for, and how long they wait for company.
Every trial is a server of its own on a copy of the repository, so nothing changes before you agree to the diff. At the
end the found settings and the config's own take turns; only what is then still faster is proposed.

    python -m benchmarks tune --model clickbert_onnx_int8
    python -m benchmarks tune --model clickbert_onnx_int8 --users 32 --candidates 20 --write

The table is kept in benchmarks/results. The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from google.protobuf import text_format
from tqdm import tqdm
from tritonclient.grpc import model_config_pb2

from benchmarks import BenchmarkError
from benchmarks.load_gen import target, workload
from benchmarks.load_gen.pool import TIMING, Load, Timing, open_pool
from benchmarks.load_gen.target import copy_model, published_version
from benchmarks.measure.environment import find_environment
from benchmarks.measure.schema import Environment, Latency, Step, dump, percentile_names, write
from benchmarks.measure.stats import LIMITS, ClientLimits
from benchmarks.options import RESULTS
from benchmarks.report.tables import make_table, percentile_columns
from clickbert.wire.protocol import TOKENIZER_MODEL
from release.files import write_whole
from release.names import CONFIG_FILE
from serving.backends.packed_cpu.cores import usable_cores
from serving.triton import ServingError

GAIN = 0.03  # what must be gained to count; less is noise
TURNS = 2  # of the found settings and the config's own, at the end
AUTOMATIC = 0  # threads: as many as cores, bound to them
EXPECTED = target.EXPECTED


@dataclass(frozen=True)
class Settings:
    """What is tuned; None: the config has no such setting, or it does nothing to such a model. It stays as it is.

    The first two are for models that packed_cpu cuts into chunks, the others for those whose requests Triton merges.
    """

    threads: int | None = None
    chunk_elements: int | None = None
    max_batch_size: int | None = None
    queue_delay_us: int | None = None

    def given(self) -> dict[str, int]:
        """Those that are there, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.given().items())


# Where each stands in the text of a config.pbtxt: comments and order stay as they are.
PLACES = {
    name: rf"(?m)^([^#\n]*{place})\d+"
    for name, place in {
        "threads": r'key: "intra_op_thread_count" value \{ string_value: "',
        "chunk_elements": r'key: "chunk_elements" value \{ string_value: "',
        "max_batch_size": "max_batch_size: ",
        "queue_delay_us": "max_queue_delay_microseconds: ",
    }.items()
}


@dataclass(frozen=True)
class Trial:
    """One measured run."""

    settings: Settings
    pairs_per_second: float
    latency: Latency
    errors: int


@dataclass(frozen=True)
class TuneResult:
    """The JSON document, and the file. `failed` are settings that could not be measured, with the reason."""

    model: str
    users: int
    environment: Environment
    trials: tuple[Trial, ...]
    failed: tuple[str, ...]
    chosen: Settings | None = None
    written: bool = False


Measure = Callable[[Settings], Trial | None]


def run(
    options: argparse.Namespace,
    seconds: int = 5,
    results: Path = RESULTS,
    timing: Timing = TIMING,
    limits: ClientLimits = LIMITS,
) -> int:
    """Sweeps in trials of this many seconds, shows the diff, asks, then writes. Prints what was tried and chosen.

    Raises:
        EXPECTED: the config cannot be read or changed, or its own settings cannot be measured.
        OSError: the disk.
    """
    published_version(options.repository, options.model)  # fails here, before a server is started in vain
    file = options.repository / options.model / CONFIG_FILE
    text = file.read_text(encoding="utf-8")
    own = read_settings(text, file)
    load = Load(workload.from_arguments(options), options.processes, timing=timing, limits=limits)
    found = TuneResult(options.model, options.users, find_environment(), (), ())
    results.mkdir(parents=True, exist_ok=True)
    kept = results / f"tune-{options.model}-{found.environment.time[:19].replace(':', '-')}.json"
    most = 1 + sum(map(len, candidates(own))) + 2 * TURNS
    with tqdm(total=most, desc="tune", unit="trial", leave=False, disable=None) as progress:

        def measure(settings: Settings) -> Trial | None:
            nonlocal found
            trial = None
            try:
                trial = make_trial(settings, try_config(options, change(text, settings, file), load, seconds))
                found = replace(found, trials=(*found.trials, trial))
            except (BenchmarkError, ServingError) as exc:
                if not found.trials:  # then nothing works, and there is nothing to keep
                    raise
                found = replace(found, failed=(*found.failed, f"{settings}: {exc}"))  # the others go on
            progress.update()
            write(kept, found)  # neither Ctrl-C nor a failure costs what was measured
            return trial

        best = sweep(own, measure)
        chosen = best if is_confirmed(own, best, measure) else own
    print(f"{options.users} users, {len(found.trials)} trials of {seconds} s\n{show_trials(found.trials)}")
    print("".join(f"failed: {each}\n" for each in found.failed), end="")
    changed = change(text, chosen, file)
    difference = "".join(
        difflib.unified_diff(text.splitlines(True), changed.splitlines(True), str(file), f"{file} (tuned)")
    )
    print(difference or f"{file} stays as it is: nothing that was measured was faster by more than {GAIN:.0%}")
    written = bool(difference) and may_write(options)
    if written:
        write_whole(file, changed.encode())
        print(f"{file} is written; a running server takes it with the next load of {options.model}", file=sys.stderr)
    found = replace(found, chosen=chosen, written=written)
    write(kept, found)
    print(dump(found))
    return 0


def sweep(own: Settings, measure: Measure) -> Settings:
    """The best settings, each swept with the best of those before."""
    best = measure(own)
    assert best, "the first trial raises if it fails"
    tried = {own}
    for changes in candidates(own):
        for settings in [replace(best.settings, **each) for each in changes]:
            if settings not in tried:
                tried.add(settings)
                trial = measure(settings)
                best = trial if trial and is_better([(best, trial)]) else best
    return best.settings


def candidates(own: Settings) -> list[list[dict[str, int]]]:
    """What is swept, one list after another. What the config does not have is left out."""
    cores = usable_cores()
    swept = {
        "threads": [AUTOMATIC, *range(max(1, cores - 1), cores + 1)],
        "chunk_elements": [128, 256, 512, 1024],
        # A plan is built for its config's number; a larger one would be another plan.
        "max_batch_size": [size for size in (1, 2, 4, 8, 16) if size <= (own.max_batch_size or 0)],
        "queue_delay_us": [0, 500, 2000],
    }
    return [[{name: value} for value in values] for name, values in swept.items() if name in own.given()]


def is_confirmed(own: Settings, found: Settings, measure: Measure) -> bool:
    """Whether found settings are still better when they and the config's own take turns."""
    if found == own:
        return False
    turns = [(measure(own), measure(found)) for _ in range(TURNS)]
    sound = [(old, new) for old, new in turns if old and new]
    return len(sound) == TURNS and is_better(sound)


def is_better(turns: Sequence[tuple[Trial, Trial]]) -> bool:
    """Whether the second trial of each turn beats the first beyond noise: faster, or as fast with a shorter tail.

    More errors are never better.
    """
    highest = percentile_names()[-1]
    errors = sum(new.errors - old.errors for old, new in turns)
    speed = median(new.pairs_per_second / old.pairs_per_second for old, new in turns)
    tail = median(new.latency[highest] / old.latency[highest] for old, new in turns)
    return errors <= 0 and (speed > 1 + GAIN or (speed > 1 - GAIN and tail < 1 - 3 * GAIN))


def try_config(options: argparse.Namespace, config: str, load: Load, seconds: int) -> Step:
    """One trial: a load on a server on a copy of the repository with another config."""
    model = options.model
    with target.log_folder() as folder, tempfile.TemporaryDirectory(prefix="clickbert-tune-") as scratch:
        copy = Path(scratch) / "repository"
        for name in (model, TOKENIZER_MODEL):
            copy_model(options.repository, name, copy)
        (copy / model / CONFIG_FILE).write_text(config, encoding="utf-8")
        with target.start_target(copy, folder) as server, open_pool(server, model, load, folder, options.users) as pool:
            return server.with_counts(model, lambda: pool.send(seconds, users=options.users))


def make_trial(settings: Settings, step: Step) -> Trial:
    """A trial's figures. Raises BenchmarkError if there are none."""
    if step.shown_latency is None or not step.pairs_per_second:
        raise BenchmarkError(f"no figures with {settings}: {step.client_bound or step.error_kinds}")
    return Trial(settings, step.pairs_per_second, step.shown_latency, step.errors)


def read_settings(text: str, file: Path) -> Settings:
    """The settings that a config's text says, by Triton's own schema. Raises BenchmarkError."""
    try:
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as exc:
        raise BenchmarkError(f"{file}: {exc}") from exc
    parameters = {name: value.string_value for name, value in config.parameters.items()}
    if target.is_chunked(config):
        threads, chunk = (parameters.get(name) for name in ("intra_op_thread_count", "chunk_elements"))
        return Settings(None if threads is None else int(threads), None if chunk is None else int(chunk))
    delay = config.dynamic_batching.max_queue_delay_microseconds if config.HasField("dynamic_batching") else None
    return Settings(max_batch_size=config.max_batch_size, queue_delay_us=delay)


def change(text: str, settings: Settings, file: Path) -> str:
    """The text with other settings, all else as it is. Raises BenchmarkError where a setting is not found in it."""
    for name, value in settings.given().items():
        text = re.sub(PLACES[name], rf"\g<1>{value}", text)
    if read_settings(text, file) != settings:
        raise BenchmarkError(f"{file} is laid out in a way that cannot be changed here; write it by hand: {settings}")
    return text


def may_write(options: argparse.Namespace) -> bool:
    """Whether to write: by --write, or by asking at a terminal."""
    if options.write or not sys.stdin.isatty():
        return bool(options.write)
    return input("write it? [y/N] ").strip().lower() == "y"


def show_trials(trials: Sequence[Trial]) -> str:
    """A line for each trial, in order; all are of one model, and so have the same settings."""

    def setting(name: str) -> Callable[[Trial], str]:
        return lambda trial: str(getattr(trial.settings, name))

    columns: dict[str, Callable[[Trial], str]] = {
        **{name: setting(name) for name in trials[0].settings.given()},
        "pairs/s": lambda trial: f"{trial.pairs_per_second:.0f}",
        **percentile_columns(lambda trial: trial.latency, digits=0),
        "errors": lambda trial: str(trial.errors),
    }
    return make_table(columns, trials).text()
