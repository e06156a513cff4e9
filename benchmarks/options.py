"""The options of every command. Nothing here imports what a command needs to run, so `--help` answers at once."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from benchmarks.load_gen.workload import DATA, add_workload_options, whole_number
from benchmarks.measure.schema import Slo
from clickbert.connection import Connection
from clickbert.wire.protocol import DEFAULT_MODEL

REPOSITORY = Path("model_repository")
CHECKPOINT = Path("checkpoints/demo")
RESULTS = Path("benchmarks/results")
USERS = 8


def demo(_: argparse.ArgumentParser) -> None:
    """The demo has no options."""


def saturate(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `saturate`."""
    add_target(parser)
    add_load(parser)
    parser.add_argument("--model", action="append", metavar="NAME", help="only this model; may be repeated")
    parser.add_argument("--slo", type=slo, metavar="p99=50ms", help="find the highest rate that meets this objective")
    parser.add_argument("--compare", type=Path, metavar="RESULT.json", help="end with 1 if that result was better")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"where to write (default {RESULTS})")


def load(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `load`."""
    add_target(parser)
    add_load(parser)
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"the model's name (default {DEFAULT_MODEL})")
    arrivals = parser.add_mutually_exclusive_group()
    arrivals.add_argument("--users", type=whole_number, help=f"closed loop: requests in flight (default {USERS})")
    arrivals.add_argument("--rate", type=rate, help="open loop: requests to start a second, at random moments")
    parser.add_argument("--duration", type=whole_number, default=30, help="seconds that are measured (default 30)")


def scheduling(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `scheduling`."""
    Connection.add_arguments(parser, default_url=None)
    add_repository(parser, f"without --url: start a server on it; its tokenizer packs (default {REPOSITORY})")
    add_workload_options(parser)
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"the model's name (default {DEFAULT_MODEL})")


def tune(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `tune`."""
    add_load(parser)
    add_repository(parser, "whose config is tuned")
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"the model to tune (default {DEFAULT_MODEL})")
    parser.add_argument("--users", type=whole_number, default=USERS, help=f"requests in flight (default {USERS})")
    parser.add_argument("--write", action="store_true", help="write without asking")


def baselines(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `baselines`."""
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="Hugging Face folder")
    add_repository(parser, "with fp32 and INT8 of it")
    parser.add_argument("--data", type=Path, default=DATA, help="click log (.jsonl[.gz])")
    parser.add_argument("--peer-url", metavar="URL", help="also measure this running rerank server (see above)")


def echo(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `echo`."""
    add_repository(parser, "with a published version")
    parser.add_argument("--data", type=Path, default=DATA, help="click log (.jsonl[.gz])")


def heads(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `heads`."""
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="Hugging Face folder")
    parser.add_argument("--data", type=Path, default=DATA, help="click log (.jsonl[.gz])")


def gpu(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `gpu`."""
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="Hugging Face folder")
    add_repository(parser, "with its plans")
    parser.add_argument("--evaluation", type=Path, default=DATA, help="click log")


def add_target(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which server is measured."""
    server = parser.add_mutually_exclusive_group()
    Connection.add_arguments(parser, default_url=None, url_group=server)
    add_repository(server, f"without --url: start a server on this repository (default {REPOSITORY})")


def add_repository(parser: argparse._ActionsContainer, text: str) -> None:
    """Adds the option for the model repository."""
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help=text)


def add_load(parser: argparse.ArgumentParser) -> None:
    """Adds the options for the requests and the processes that send them."""
    add_workload_options(parser)
    parser.add_argument("--processes", type=whole_number, default=1, help="Locust processes (default 1)")


def slo(text: str) -> Slo:
    """An objective, for argparse."""
    try:
        return Slo.parse(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def rate(text: str) -> float:
    """Requests a second."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of requests a second above 0")
    return number
