"""`clickbert rank`: rank the lines of a file for a query."""

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from clickbert.calls.session import RankedDocument
from clickbert.commands.options import add_ranker_options, read_mask, whole_number
from clickbert.connection import Connection
from clickbert.errors import InvalidInputError
from clickbert.ranker import Ranker

HELP = "rank documents for a query"
_TEXT_WIDTH = 80


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    add("--query", required=True, metavar="TEXT", help="the user's text")
    add(
        "--documents", required=True, metavar="FILE", help="one document a line, UTF-8, empty lines skipped; - is stdin"
    )
    add("--top-k", type=whole_number, metavar="N", help="only the N best")
    add_ranker_options(parser)
    add("--json", action="store_true", help="print one JSON document instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Rank, and print the ranking. Raises OSError with the file's name if the documents cannot be read."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # as the documents are, whatever the locale says
    documents = _read_documents(arguments.documents)
    connection = Connection.from_arguments(arguments)
    with Ranker(connection, arguments.model, timeout=arguments.timeout, mask=read_mask(arguments)) as ranker:
        ranked = ranker.rank(
            arguments.query,
            documents,
            arguments.top_k,
            long_documents=arguments.long_documents,
            truncate=arguments.truncate,
            raw_scores=arguments.raw_scores,
        )
    try:
        print(_as_json(arguments, ranked) if arguments.json else _as_table(ranked), flush=True)
    except BrokenPipeError:  # the reader has seen enough; Python must not flush into it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _read_documents(name: str) -> list[str]:
    content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = content.count(b"\n", 0, exc.start) + 1
        raise InvalidInputError(f"{name}, line {line}: not UTF-8 ({exc.reason}); convert the file") from exc
    # Not str.splitlines: it also splits at characters that a document may hold, like U+2028.
    lines = (line.strip() for line in io.StringIO(text, newline=None))
    return [line for line in lines if line]


def _as_table(ranked: Sequence[RankedDocument]) -> str:
    rows = [f"{rank:>4}  {item.score:.4f}  {_shortened(item.text)}" for rank, item in enumerate(ranked, start=1)]
    return "\n".join(["rank   score  text", *rows])


def _shortened(text: str) -> str:
    # A document must not steer the terminal: control characters are shown as spaces.
    shown = "".join(char if char.isprintable() else " " for char in text[: _TEXT_WIDTH + 1])
    return shown if len(shown) <= _TEXT_WIDTH else shown[: _TEXT_WIDTH - 1] + "…"


def _as_json(arguments: argparse.Namespace, ranked: Sequence[RankedDocument]) -> str:
    results = [
        {"rank": rank, "index": item.index, "score": item.score, "text": item.text}
        for rank, item in enumerate(ranked, start=1)
    ]
    document = {"url": arguments.url, "model": arguments.model, "query": arguments.query, "results": results}
    return json.dumps(document, ensure_ascii=False)
