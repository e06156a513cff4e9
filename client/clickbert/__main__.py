"""Rank the lines of a file for a query, from the command line.

clickbert rank --query "coffee near me" --documents candidates.txt
cat candidates.txt | clickbert rank --query "coffee near me" --documents - --top-k 5 --json
clickbert rank --url triton:8001 --model clickbert_trt_fp16 --query "coffee near me" --documents candidates.txt
clickbert rank --query "coffee near me" --documents articles.txt --long-documents passages
CLICKBERT_TOKEN=... clickbert rank --url grpcs://gateway:443 --query "coffee near me" --documents candidates.txt

A server or gateway that wants a token gets the one in the environment variable CLICKBERT_TOKEN. There is no option for
it: everyone on the machine can read a command's options.

Exit status: 0 done, 1 the ranking failed (the reason is on stderr), 2 wrong usage, 130 Ctrl-C.
"""

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from clickbert.calls.arguments import LONG_DOCUMENTS, TRUNCATE
from clickbert.calls.session import RankedDocument
from clickbert.connection import Connection
from clickbert.errors import ClickBertError, InvalidInputError
from clickbert.ranker import Ranker
from clickbert.wire.protocol import DEFAULT_MODEL

_TEXT_WIDTH = 80


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # as the documents are, whatever the locale says
    try:
        documents = _read_documents(arguments.documents)
        connection = Connection.from_arguments(arguments)
        with Ranker(connection, arguments.model, timeout=arguments.timeout) as ranker:
            ranked = ranker.rank(arguments.query, documents, arguments.top_k, long_documents=arguments.long_documents)
        print(_as_json(arguments, ranked) if arguments.json else _as_table(ranked), flush=True)
    except OSError as exc:
        if isinstance(exc, BrokenPipeError):  # the reader has seen enough; Python must not flush into it at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        parser.error(f"cannot read {arguments.documents}: {exc.strerror}")
    except ClickBertError as exc:
        print(f"clickbert: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "clickbert", description="Rank documents with a click model on Triton.", allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    rank = commands.add_parser("rank", help="rank documents for a query", allow_abbrev=False)
    rank.add_argument("--model", default=DEFAULT_MODEL, metavar="NAME", help="the click model (%(default)s)")
    rank.add_argument("--query", required=True, metavar="TEXT", help="the user's text")
    rank.add_argument(
        "--documents", required=True, metavar="FILE", help="one document a line, UTF-8, empty lines skipped; - is stdin"
    )
    rank.add_argument("--top-k", type=_whole_number, metavar="N", help="only the N best")
    rank.add_argument(
        "--long-documents",
        choices=LONG_DOCUMENTS,
        default=TRUNCATE,
        help="read a document beyond the model's limit cut off, or in passages (%(default)s)",
    )
    rank.add_argument("--timeout", type=_seconds, default=10.0, metavar="SECONDS", help="for the whole call (10)")
    rank.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    Connection.add_arguments(rank)
    return parser


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


def _whole_number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
