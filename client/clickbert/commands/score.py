"""`clickbert score`: score the rows of a file, into another file."""

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import Any

from clickbert.async_ranker import AsyncRanker
from clickbert.bulk.job import FORMATS, Files, Job
from clickbert.bulk.progress import duration
from clickbert.bulk.rows import BATCH_PAIRS, SCORE, Columns, JobError
from clickbert.bulk.sending import VersionObserver
from clickbert.calls.arguments import MAX_TIMEOUT
from clickbert.commands.options import add_ranker_options, read_mask, seconds
from clickbert.connection import Connection
from clickbert.wire.protocol import DEFAULT_MODEL

HELP = "score the rows of a click log or table"
_SERVERS = ("model", *(name for name in Connection.option_names() if name != "url"))  # options that say which one
_SOME_BAD = 3


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    add("input", metavar="INPUT", help="JSON lines, CSV with a header, or Parquet; .gz is unpacked; - is stdin")
    add("--output", required=True, metavar="OUTPUT", help=f"the same rows with their {SCORE!r}; - is stdout")
    add("--format", choices=FORMATS, help="the input's, if its name does not say it")
    add("--query-column", default="query", metavar="NAME", help="the user's texts (%(default)s)")
    add("--document-column", default="document", metavar="NAME", help="the documents (%(default)s)")
    add(
        "--patience",
        type=seconds,
        default=600.0,
        metavar="SECONDS",
        help="stop when nothing was answered for so long (600)",
    )
    add("--mixed-versions", action="store_true", help="go on with another version of the model than the job began with")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--in-process",
        metavar="PATH",
        help="without a server, and without --timeout: a published version, or a checkpoint's folder",
    )
    add_ranker_options(parser, timeout=60.0, default_model=None, url_group=where)
    parser.set_defaults(refuse=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """Score, and say on stderr what came of it: 0, or 3 if there are bad rows.

    Raises `JobError`, OSError with the file's name if the input cannot be opened, and KeyboardInterrupt.
    """
    _refuse_what_is_not_used(arguments)
    files = Files(
        arguments.input, arguments.output, Columns(arguments.query_column, arguments.document_column), arguments.format
    )
    files.find_format()
    options = {name: getattr(arguments, name) for name in ("long_documents", "truncate", "raw_scores")}
    settings = {name: getattr(arguments, name) for name in ("mask", "mask_pattern")} | options | _model(arguments)
    job = Job(files, options, settings, arguments.patience, arguments.mixed_versions)

    async def score() -> Any:
        async with _open_ranker(arguments) as ranker:
            return await job.run(ranker)

    began = time.monotonic()
    try:
        done = asyncio.run(score())
    except ImportError as exc:
        raise JobError(str(exc)) from exc
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    say = [f"{done.scored:,} rows scored to {arguments.output} (this run took {duration(time.monotonic() - began)})"]
    if done.bad:
        say.append(f"{done.bad:,} bad rows are not in it" + ("" if arguments.output == "-" else f": {files.bad_file}"))
        if not done.scored:
            say.append(f"no row could be scored; {done.first_bad}")
    if len(done.versions) > 1:
        shares = ", ".join(f"{version}: {rows:,} rows" for version, rows in done.versions.items())
        say.append(f"warning: scores of several versions of the model are in it ({shares})")
    print(*(f"clickbert: {line}" for line in say), sep="\n", file=sys.stderr)
    return _SOME_BAD if done.bad else 0


def _refuse_what_is_not_used(arguments: argparse.Namespace) -> None:
    given = [name for name in _SERVERS if getattr(arguments, name) is not None]
    if given and arguments.in_process is not None:
        arguments.refuse(f"argument --{given[0].replace('_', '-')}: not allowed with argument --in-process")


def _model(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what tells the model from another."""
    if arguments.in_process is None:
        return {"model": DEFAULT_MODEL if arguments.model is None else arguments.model, "in_process": None}
    from clickbert.in_process.files import identify  # noqa: PLC0415 (an extra's)

    folder = Path(arguments.in_process).resolve()
    return {"in_process": str(folder), "content of the model": identify(folder)}


def _open_ranker(arguments: argparse.Namespace) -> AsyncRanker:
    settings: dict[str, Any] = {
        # In this process nobody else waits: what a call that ran out of time had computed would be computed again.
        "timeout": arguments.timeout if arguments.in_process is None else MAX_TIMEOUT,
        "max_documents": BATCH_PAIRS,
        "mask": read_mask(arguments),
        "observers": [VersionObserver()],
    }
    if arguments.in_process is None:
        return AsyncRanker(Connection.from_arguments(arguments), _model(arguments)["model"], **settings)
    from clickbert.in_process import async_ranker  # noqa: PLC0415 (an extra's)

    ranker: AsyncRanker = async_ranker(arguments.in_process, **settings)
    return ranker
