"""Rank documents, score whole logs, and answer over HTTP, from the command line.

clickbert rank --query "coffee near me" --documents candidates.txt
cat candidates.txt | clickbert rank --query "coffee near me" --documents - --top-k 5 --json
clickbert rank --url triton:8001 --model clickbert_trt_fp16 --query "coffee near me" --documents candidates.txt
clickbert rank --query "coffee near me" --documents articles.txt --long-documents passages
clickbert rank --mask --mask-pattern 'customer [0-9]+' --query "coffee near me" --documents candidates.txt
CLICKBERT_TOKEN=... clickbert rank --url grpcs://gateway:443 --query "coffee near me" --documents candidates.txt
clickbert score log.jsonl.gz --output scored.jsonl.gz
clickbert serve --url triton:8001 --port 8080

A server or gateway that wants a token gets the one in the environment variable CLICKBERT_TOKEN. There is no option for
it: everyone on the machine can read a command's options.

Exit status: 0 done, 1 it failed (the reason is on stderr), 2 wrong usage, 3 done, but some rows of a log are bad,
130 Ctrl-C.
"""

import argparse
import sys
from collections.abc import Sequence

from clickbert.commands import rank, score, serve
from clickbert.errors import ClickBertError

_COMMANDS = {"rank": rank, "score": score, "serve": serve}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        "clickbert", description="Rank documents with a click model on Triton.", allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, command in _COMMANDS.items():
        command.add_options(commands.add_parser(name, help=command.HELP, allow_abbrev=False))
    arguments = parser.parse_args(argv)
    try:
        status: int = _COMMANDS[arguments.command].run(arguments)
        return status
    except OSError as exc:
        if exc.filename is not None:
            parser.error(f"cannot read {exc.filename}: {exc.strerror}")
        print(f"clickbert: cannot write the output: {exc.strerror}", file=sys.stderr)
        return 1
    except ClickBertError as exc:
        print(f"clickbert: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
