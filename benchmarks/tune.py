"""Finds a model's serving settings for this machine, under a stated load, and writes them into its config.pbtxt.

Swept one after another, each with the best of those before: instances x threads, chunk size, batch limit, queue delay.
Every trial is a server of its own on a copy of the repository, so nothing is changed before you agree to the diff. At
the end the found settings and the config's own take turns; only what is then still faster is proposed.

    python -m benchmarks tune --model clickbert_onnx_int8
    python -m benchmarks tune --model clickbert_onnx_int8 --users 32 --candidates 20 --write

The table is kept in benchmarks/results. The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from google.protobuf import text_format
from tqdm import tqdm
from tritonclient.grpc import model_config_pb2

from benchmarks.load import USERS, add_requests, whole_number
from benchmarks.load_gen import target, workload
from benchmarks.load_gen.pool import Load, run_load
from benchmarks.load_gen.target import LoadError
from benchmarks.measure.stats import machine
from benchmarks.saturate import RESULTS
from clickbert.protocol import DEFAULT_MODEL, TOKENIZER_MODEL
from release.files import write_whole
from release.names import CONFIG_FILE
from serving.backends.onnxruntime.workers import usable_cores
from serving.triton import ServingError

SECONDS = 5  # measured of a trial
# What must be gained to count; less is noise.
GAIN = 0.03
TURNS = 2  # of the found settings and the config's own, at the end
AUTOMATIC = 0  # threads: as many as cores


@dataclass(frozen=True)
class Settings:
    """What is tuned; None: the config has no such setting, and keeps none."""

    instances: int
    threads: int | None
    chunk_elements: int | None
    max_batch_size: int
    queue_delay_us: int | None

    def __str__(self) -> str:
        return ", ".join(f"{field.name} {getattr(self, field.name)}" for field in fields(self))


# Where each stands in the text of a config.pbtxt: comments and order stay as they are.
PLACES = {
    name: rf"(?m)^([^#\n]*{place})\d+"
    for name, place in {
        "instances": r"instance_group \[\s*\{\s*count: ",
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
    pairs_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int

    def beats(self, other: Trial) -> bool:
        """Whether it is faster by more than noise, or as fast with a shorter tail."""
        if self.errors > other.errors:
            return False
        return better(self.pairs_per_s / other.pairs_per_s, self.p99_ms / other.p99_ms)


def better(gain: float, tail: float) -> bool:
    """Whether a speed and a p99, new / former, are an improvement beyond noise."""
    return gain > 1 + GAIN or (gain > 1 - GAIN and tail < 1 - 3 * GAIN)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `tune`."""
    add_requests(parser)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="whose config is tuned")
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"which one (default {DEFAULT_MODEL})")
    parser.add_argument("--users", type=whole_number, default=USERS, help=f"requests in flight (default {USERS})")
    parser.add_argument("--write", action="store_true", help="write without asking")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Sweeps, shows the diff, writes if that is wanted. Returns the trials and what was chosen.

    Raises:
        LoadError, ServingError: the config cannot be read or changed, or its own settings cannot be measured.
        WorkloadError: the model is not published.
        OSError: the disk.
    """
    file = options.repository / options.model / CONFIG_FILE
    text = read_text(file)
    own = read_settings(text, file)
    workload.newest_version(options.repository, options.model)
    processes = min(options.processes, options.users)
    load = Load(options.data, options.candidates, options.texts, options.users, None, SECONDS, processes)
    trials: list[Trial] = []
    failed: list[str] = []
    found = {"model": options.model, "users": options.users, "machine": machine(), "failed": failed}
    RESULTS.mkdir(parents=True, exist_ok=True)
    kept = RESULTS / f"tune-{options.model}-{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}.json"

    def keep(**more: Any) -> dict[str, Any]:
        document = found | more | {"trials": [asdict(trial) for trial in trials]}
        write_whole(kept, json.dumps(document, indent=1).encode())
        return document

    most = 1 + sum(len(values) for _, values in candidates(own)) + 2 * TURNS
    with tqdm(total=most, desc="tune", unit="trial", leave=False, disable=None) as progress:

        def measure(settings: Settings) -> Trial | None:
            config = change(text, settings, file)
            try:
                trials.append(try_settings(options.repository, options.model, config, settings, load))
            except (LoadError, ServingError) as exc:
                if not trials:  # nothing works, then
                    raise
                failed.append(f"{settings}: {exc}")  # too much for this machine, for example; the others go on
                return None
            finally:
                progress.update()
                keep()  # neither Ctrl-C nor a failure costs what was measured
            return trials[-1]

        best = sweep(own, measure)
        chosen = best if confirmed(own, best, measure) else own
    changed = change(text, chosen, file)
    print(f"{options.users} users, {len(trials)} trials of {SECONDS} s\n{table(trials)}")
    print("".join(f"failed: {each}\n" for each in failed), end="")
    difference = "".join(
        difflib.unified_diff(text.splitlines(True), changed.splitlines(True), str(file), f"{file} (tuned)")
    )
    print(difference or f"{file} stays as it is: nothing that was measured was faster by more than {GAIN:.0%}")
    written = bool(difference) and agreed(options)
    if written:
        write_whole(file, changed.encode())
        print(f"{file} is written; a running server takes it with the next load of {options.model}", file=sys.stderr)
    return keep(chosen=asdict(chosen), written=written)


def sweep(own: Settings, measure: Callable[[Settings], Trial | None]) -> Settings:
    """The best settings, each swept with the best of those before."""
    best = measure(own)
    assert best, "the first trial raises if it fails"
    tried = {own}
    for name, values in candidates(own):
        for value in values:
            settings = replace(best.settings, **dict(zip(name, value, strict=True)))
            if settings not in tried:
                tried.add(settings)
                trial = measure(settings)
                best = trial if trial and trial.beats(best) else best
    return best.settings


def candidates(own: Settings) -> Iterator[tuple[tuple[str, ...], Sequence[tuple[int, ...]]]]:
    """What is swept: the settings' names, and their values. What the config does not have is left out."""
    cores = usable_cores()
    if own.threads is None:
        yield ("instances",), [(1,), (2,), (3,)]
    else:
        layouts = [(1, AUTOMATIC), (2, AUTOMATIC), (3, AUTOMATIC), (cores, 1)]
        yield ("instances", "threads"), list(dict.fromkeys(layouts))
    if own.chunk_elements is not None:
        yield ("chunk_elements",), [(128,), (256,), (512,), (1024,)]
    yield ("max_batch_size",), [(1,), (2,), (4,), (8,), (16,)]
    if own.queue_delay_us is not None:
        yield ("queue_delay_us",), [(0,), (500,), (2000,)]


def confirmed(own: Settings, found: Settings, measure: Callable[[Settings], Trial | None]) -> bool:
    """Whether found settings are still better when they and the config's own take turns."""
    if found == own:
        return False
    turns = [(measure(own), measure(found)) for _ in range(TURNS)]
    sound = [(old, new) for old, new in turns if old and new]
    if len(sound) < TURNS or sum(new.errors - old.errors for old, new in sound) > 0:
        return False
    gain = median(new.pairs_per_s / old.pairs_per_s for old, new in sound)
    tail = median(new.p99_ms / old.p99_ms for old, new in sound)
    return better(gain, tail)


def try_settings(repository: Path, model: str, config: str, settings: Settings, load: Load) -> Trial:
    """One trial: a server on a copy of the repository with another config."""
    with target.logs() as folder, tempfile.TemporaryDirectory(prefix="clickbert-tune-") as scratch:
        copy = Path(scratch) / "repository"
        for name in (model, TOKENIZER_MODEL):
            shutil.copytree(repository / name, copy / name, ignore=shutil.ignore_patterns("[0-9]*"))
            version = workload.newest_version(repository, name)
            shutil.copytree(version, copy / name / version.name)
        (copy / model / CONFIG_FILE).write_text(config, encoding="utf-8")
        with target.started(copy, folder) as server:
            figures = run_load(server, model, load, folder)
            server.check_alive()
    latency = figures["latency_ms"]
    if latency is None or not figures["pairs_per_s"] or figures["generator"]["limit"]:
        raise LoadError(f"no figures with {settings}: {figures['generator']['limit'] or figures['error_kinds']}")
    return Trial(settings, figures["pairs_per_s"], latency["p50"], latency["p99"], figures["errors"])


def read_text(file: Path) -> str:
    """A config's text. Raises LoadError."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError as exc:
        raise LoadError(f"{file} cannot be read ({exc.strerror}); name a model of the repository with --model") from exc


def read_settings(text: str, file: Path) -> Settings:
    """The settings that a config's text says, by Triton's own schema. Raises LoadError."""
    try:
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as exc:
        raise LoadError(f"{file}: {exc}") from exc
    parameters = {name: value.string_value for name, value in config.parameters.items()}
    threads, chunk = (parameters.get(name) for name in ("intra_op_thread_count", "chunk_elements"))
    return Settings(
        sum(group.count for group in config.instance_group) or 1,
        None if threads is None else int(threads),
        None if chunk is None else int(chunk),
        config.max_batch_size,
        config.dynamic_batching.max_queue_delay_microseconds if config.HasField("dynamic_batching") else None,
    )


def change(text: str, settings: Settings, file: Path) -> str:
    """The text with other settings, all else as it is. Raises LoadError where a setting is not found in it."""
    for name, pattern in PLACES.items():
        value = getattr(settings, name)
        if value is not None:
            text = re.sub(pattern, rf"\g<1>{value}", text)
    if read_settings(text, file) != settings:
        raise LoadError(f"{file} is laid out in a way that cannot be changed here; write it by hand: {settings}")
    return text


def agreed(options: argparse.Namespace) -> bool:
    """Whether to write: by --write, or by asking at a terminal."""
    if options.write or not sys.stdin.isatty():
        return bool(options.write)
    return input("write it? [y/N] ").strip().lower() == "y"


def table(trials: Sequence[Trial]) -> str:
    """A line for each trial, in order."""
    names = [field.name for field in fields(Settings)]
    lines = ["  ".join([*names, f"{'pairs/s':>8}", f"{'p50 ms':>7}", f"{'p99 ms':>7}", "errors"])]
    for trial in trials:
        cells = [str(getattr(trial.settings, name)).rjust(len(name)) for name in names]
        figures = [f"{trial.pairs_per_s:>8.0f}", f"{trial.p50_ms:>7.0f}", f"{trial.p99_ms:>7.0f}", f"{trial.errors:>6}"]
        lines.append("  ".join([*cells, *figures]))
    return "\n".join(lines)
