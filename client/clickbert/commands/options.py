"""Options that several commands have."""

import argparse
from typing import Any

from clickbert.calls.arguments import LONG_DOCUMENTS, LONGEST, TRUNCATE, TRUNCATES
from clickbert.connection import Connection
from clickbert.masking import Masking
from clickbert.wire.protocol import DEFAULT_MODEL


def add_ranker_options(
    parser: argparse.ArgumentParser,
    *,
    timeout: float = 10.0,
    default_model: str | None = DEFAULT_MODEL,
    url_group: Any = None,
) -> None:
    """Add the model, how texts are read, masks, the timeout (its default), and the connection.

    `default_model` may be None for a command that must know whether one was given. `url_group` is that of
    `Connection.add_arguments`.
    """
    add = parser.add_argument
    add("--model", default=default_model, metavar="NAME", help=f"the click model ({DEFAULT_MODEL})")
    add(
        "--long-documents",
        choices=LONG_DOCUMENTS,
        default=TRUNCATE,
        help="read a document beyond the model's limit cut off, or in passages (%(default)s)",
    )
    add(
        "--truncate",
        choices=TRUNCATES,
        default=LONGEST,
        help="where a pair is cut: its longer text, then both; or the document alone (%(default)s)",
    )
    add("--raw-scores", action="store_true", help="log-odds of the click (the logit), not its probability")
    add("--mask", action="store_true", help="the model does not see e-mail addresses, phone numbers and card numbers")
    add(
        "--mask-pattern",
        action="append",
        default=[],
        metavar="REGEX",
        help="nor what this regular expression matches; may be given several times, also without --mask",
    )
    add("--timeout", type=seconds, default=timeout, metavar="SECONDS", help="for a whole call (%(default)g)")
    Connection.add_arguments(parser, url_group=url_group)


def read_mask(arguments: argparse.Namespace) -> Masking | None:
    """Return the mask that the options ask for."""
    wanted, patterns = arguments.mask, arguments.mask_pattern
    return Masking(emails=wanted, phones=wanted, cards=wanted, patterns=patterns) if wanted or patterns else None


def whole_number(text: str) -> int:
    """Read a whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def seconds(text: str) -> float:
    """Read a number of seconds above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return number
