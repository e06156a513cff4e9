"""`clickbert serve`: rerank over HTTP."""

import argparse
import os
import sys

from clickbert.commands.options import seconds, whole_number
from clickbert.connection import Connection
from clickbert.wire.protocol import DEFAULT_MODEL

HELP = "answer rerank requests over HTTP"
_PORT = 8080


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options. One that is left out is what the environment says (`clickbert.http.settings`)."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="the address to listen on (%(default)s)")
    add("--port", type=_port, default=_PORT, metavar="PORT", help="0 takes a free one (%(default)s)")
    add(
        "--model",
        action="append",
        metavar="NAME",
        help=f"a model to serve; may be given several times, the first answers if a body names none ({DEFAULT_MODEL})",
    )
    add(
        "--timeout",
        type=seconds,
        metavar="SECONDS",
        help="for a call, and the most that X-Request-Timeout gets (10)",
    )
    add("--max-documents", type=whole_number, metavar="N", help="documents of a call (1000)")
    add("--max-bytes", type=whole_number, metavar="N", help="bytes of a body (2000000)")
    add(
        "--cors-origin",
        action="append",
        metavar="ORIGIN",
        help="let web pages of this origin call (https://shop.example; * is any); may be given several times",
    )
    parser.add_argument_group("callers", "from the environment: CLICKBERT_HTTP_TOKEN, the token that callers must send")
    Connection.add_arguments(parser, default_url=None)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C; what was accepted before is answered."""
    try:
        from clickbert.http.serving import serve  # noqa: PLC0415 (of an extra)
        from clickbert.http.settings import Settings  # noqa: PLC0415
    except ImportError as exc:
        print(f"clickbert: {exc}", file=sys.stderr)
        return 1
    return serve(Settings.from_environment({**os.environ, **_variables(arguments)}), arguments.host, arguments.port)


def _variables(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the options that were given, by the names that they have in the environment."""
    given = {
        **{name.upper(): getattr(arguments, name) for name in Connection.option_names()},
        "MODELS": ",".join(arguments.model or ()),
        "TIMEOUT": arguments.timeout,
        "MAX_DOCUMENTS": arguments.max_documents,
        "MAX_BYTES": arguments.max_bytes,
        "CORS_ORIGINS": ",".join(arguments.cors_origin or ()),
    }
    return {f"CLICKBERT_{name}": str(value) for name, value in given.items() if value}


def _port(text: str) -> int:
    if not text.isdecimal() or len(text) > 5 or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)
