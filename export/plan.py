"""Builds the TensorRT plans of the newest published versions, on the GPU that will run them, and proves them.

A plan fits one kind of GPU, driver and TensorRT only. A plan that fits stays. Otherwise a new one is built, must pass
the gate that its version was published with, and is put in place. A plan that fails leaves the former one in place.

    python -m export plan
    python -m export plan --repository /models --model clickbert_trt_fp16
    python -m export plan --repository /models -- COMMAND ...

It needs no PyTorch: it runs inside the serving container, before the server starts. The last line of the output is one
JSON document: {"plans": {model: {"version", "plan": "built" or "fits"}}}. When all plans fit, this process becomes the
COMMAND, if one is given; a signal before that ends the build.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export.cli import say
from export.engines import find_gates
from export.tensorrt.build import Run, read_limits, rebuild
from export.tensorrt.runtime import load_tensorrt
from release.lock import LockError, held
from release.names import CONFIG_FILE
from release.stamp import PlanError, find_machine, misfit
from release.versions import newest

BACKEND = "tensorrt"


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0 all plans fit, 1 one could not be built (says why), 2 usage, 130."""
    given = sys.argv[1:] if arguments is None else arguments
    if "--" in given:
        end = given.index("--")
        return build_and_become(given[:end], given[end + 1 :])
    parser = argparse.ArgumentParser(
        prog="python -m export plan",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
        usage="%(prog)s [options] [-- COMMAND ...]",
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="Triton model repository")
    parser.add_argument("--model", nargs="+", metavar="NAME", help="these models only (default: all for TensorRT)")
    options = parser.parse_args(given)
    try:
        plans = rebuild_all(options.repository, options.model, run_gate, say)
    except (PlanError, LockError, OSError) as exc:
        print(f"export: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("export: interrupted; no plan was left half written", file=sys.stderr)
        return 130
    print(json.dumps({"plans": plans}))
    return 0


def build_and_become(options: list[str], command: list[str]) -> int:
    """Builds, and then becomes the command, which so gets the signals of a container: this is its process 1.

    The build is a process of its own, because TensorRT would let this one see a signal only minutes later.

    Args:
        options: of `python -m export plan`.
        command: the program, and its arguments.

    Returns:
        The exit code, if it does not come to the command: the build's, 127 (there is no such program), or 2.
    """
    if not command:
        print("export: there is no command behind `--`; name one, or leave `--` out", file=sys.stderr)
        return 2

    def end(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    with subprocess.Popen([sys.executable, "-m", "export", "plan", *options]) as build:
        try:
            code = build.wait()
        finally:
            build.terminate()
    if code:
        return code if code > 0 else 128 - code
    try:
        os.execvp(command[0], command)
    except OSError as exc:
        print(f"export: {command[0]} cannot be executed ({exc.strerror}); check its name and PATH", file=sys.stderr)
        return 127


def rebuild_all(
    repository: Path, models: list[str] | None, gate: Callable[[Path, Run], None], say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Builds what does not fit this machine.

    Args:
        repository: the model repository.
        models: names; None for all that Triton's tensorrt backend serves.
        gate: is given a version's folder and its plan as a function; raises if the plan is not good enough.
        say: reports each step.

    Returns:
        By model, its newest version and whether its plan was "built" or "fits".

    Raises:
        PlanError: there is no GPU, no TensorRT or no such model, or a build or a gate failed.
        LockError: another build or a load is at work with that version.
    """
    versions = newest_versions(repository, models)
    if not versions:
        say(f"{repository} holds no published model for TensorRT; there is nothing to build")
        return {}
    trt = load_tensorrt()
    machine = find_machine(str(trt.__version__))
    plans = {}
    for model, version in versions.items():
        built = "fits"
        if reason := misfit(version, [machine.gpu], machine.tensorrt, read_limits(version).shapes()):
            why = f"a load of {version}, or another build of its plan, is at work; wait for it, then run again"
            with held(version, why):
                say(f"{model} version {version.name}: {reason}; building it takes minutes")
                rebuild(trt, version, machine, partial(gate, version))
            built = "built"
        say(f"{model} version {version.name}: its plan fits {machine}")
        plans[model] = {"version": int(version.name), "plan": built}
    return plans


def newest_versions(repository: Path, models: list[str] | None) -> dict[str, Path]:
    """The newest published version of each model for TensorRT, by the model's name.

    Raises:
        PlanError: the repository is missing, has no such model, or has a config that cannot be read.
    """
    if not repository.is_dir():  # a typo must not pass for a repository without such models
        raise PlanError(f"{repository} is not a folder; give the model repository with --repository")
    found = {}
    for config_file in sorted(repository.glob(f"*/{CONFIG_FILE}")):
        try:
            config = text_format.Parse(config_file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
        except (text_format.ParseError, UnicodeDecodeError) as exc:
            raise PlanError(
                f"{config_file} is not a valid model configuration: {exc}; correct it, then run again"
            ) from exc
        version = newest(repository, config_file.parent.name)
        if config.backend == BACKEND and version:
            found[version.parent.name] = version
    for model in models or ():
        if model not in found:
            raise PlanError(
                f"{repository} holds no published model {model!r} for TensorRT (it has {', '.join(found) or 'none'}); "
                "publish it with `python -m export`, or give --repository"
            )
    return {model: found[model] for model in models or found}


def run_gate(version: Path, run: Run) -> None:
    """The gate of a published version."""
    from export.verify.saved_gate import gate  # noqa: PLC0415 (it imports scikit-learn, which `--help` does not need)

    most = read_limits(version)
    gate(version, run, find_gates(), most.requests, most.pairs_of_any_length)
