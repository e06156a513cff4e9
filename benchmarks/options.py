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
    arrivals.add_argument("--rate", type=above_zero, help="open loop: requests to start a second, at random moments")
    parser.add_argument("--duration", type=whole_number, default=30, help="seconds that are measured (default 30)")


def scheduling(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `scheduling`."""
    Connection.add_arguments(parser, default_url=None)
    add_repository(parser, f"without --url: start a server on it; its tokenizer packs (default {REPOSITORY})")
    add_workload_options(parser)
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"the model's name (default {DEFAULT_MODEL})")


def soak(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `soak`."""
    add_repository(parser, f"that a server is started on (default {REPOSITORY})")
    add_workload_options(parser)
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"the model's name (default {DEFAULT_MODEL})")
    parser.add_argument("--minutes", type=above_zero, default=60.0, help="how long (default 60)")


def tune(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `tune`."""
    add_load(parser)
    add_repository(parser, "whose config is tuned")
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"the model to tune (default {DEFAULT_MODEL})")
    parser.add_argument("--users", type=whole_number, default=USERS, help=f"requests in flight (default {USERS})")
    parser.add_argument("--write", action="store_true", help="write without asking")


def plan(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `plan`."""
    parser.add_argument("--rate", type=above_zero, required=True, help="requests a second, of all callers together")
    parser.add_argument("--slo", type=slo, required=True, metavar="p99=50ms", help="the objective")
    parser.add_argument("--results", type=Path, required=True, metavar="FILE", help="what `saturate` measured on one")
    parser.add_argument("--model", metavar="NAME", help="which of the file's models (default: the only one)")
    parser.add_argument(
        "--spare", type=not_negative, default=1, help="replicas that may be down while the objective holds (default 1)"
    )


def capacity(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `capacity`."""
    add_repository(parser, f"that the replicas are started on (default {REPOSITORY})")
    add_workload_options(parser)
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"the model's name (default {DEFAULT_MODEL})")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"where to write (default {RESULTS})")


def baselines(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `baselines`."""
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="Hugging Face folder")
    add_repository(parser, "with fp32 and INT8 of it")
    parser.add_argument("--data", type=Path, default=DATA, help="click log (.jsonl[.gz])")
    parser.add_argument("--peer-url", metavar="URL", help="also measure this running rerank server (see above)")


def echo(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `echo` and of `http`."""
    add_repository(parser, "with a published version")
    parser.add_argument("--data", type=Path, default=DATA, help="click log (.jsonl[.gz])")


def bulk(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `bulk`."""
    add_target(parser)
    add_load(parser)
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"the model's name (default {DEFAULT_MODEL})")
    parser.add_argument("--users", type=whole_number, default=USERS, help=f"requests in flight (default {USERS})")
    parser.add_argument("--duration", type=whole_number, default=20, help="seconds of each part (default 20)")
    parser.add_argument("--rounds", type=whole_number, default=4, help="of both parts (default 4)")


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


def not_negative(text: str) -> int:
    """A whole number from 0 up."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 up")
    return int(text)


def above_zero(text: str) -> float:
    """A number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number
