"""Serves the model repository with a real Triton Inference Server, until Ctrl-C or SIGTERM.

It finds tritonserver (the one on PATH, as in NVIDIA's container, or the nvidia-pytriton wheel's), checks what that
needs, verifies the models' files, starts it, waits until all models are ready, and prints the addresses. On a signal,
Triton answers what it has accepted and ends; a second signal ends it at once. If it crashes, or a process of a backend
dies, it is started anew. Flags after `--` go to tritonserver unchanged.

    python -m serving
    python -m serving --repository model_repository --grpc-port 9001
    python -m serving --address ::                     IPv6; 0.0.0.0 for all IPv4 addresses
    python -m serving --secure certs                   TLS, with server.pem and server.key of that folder; with ca.pem,
                                                       mutual TLS; with token, callers need it (`make certs`)
    python -m serving --health                         is the server ready, and what does it serve? (exit code 0 or 1)
    python -m serving --health --model clickbert_onnx  and does it answer for that model?
    python -m serving --check                          can Triton, with packed_cpu, run on this machine?
    python -m serving --config onnxruntime             models by their configs/onnxruntime.pbtxt, if they have one
    python -m serving -- --log-verbose=1

A new version that `python -m export` published is loaded without a restart, and so is an older one:

    python -m serving load clickbert_onnx
    python -m serving load clickbert_onnx --version 7

docs/runbook.md has the rest.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from tritonclient.utils import InferenceServerException

from serving.access import admin
from serving.access.security import Security, read_security
from serving.addresses import LOOPBACK, Addresses, find_address
from serving.asking import ask_versions, asking, why_not_ready
from serving.checks import check_triton
from serving.console import lose_what_cannot_be_written
from serving.repository.loading import load
from serving.server import FilesChangedError, Server, ServerDiedError
from serving.triton import ServingError, find_triton

LEAST_LIFE = 60.0  # seconds that a server is ready; one whose backend dies sooner a second time would go on like that


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0 drained or ready, 1 not started or not ready, 2 usage, else Triton's."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        return run_load(given[1:]) if given[:1] == ["load"] else run_server(given)
    except ServingError as exc:
        print(f"serving: {exc}", file=sys.stderr)
        return 1


def run_server(given: list[str]) -> int:
    """`python -m serving`. Returns the exit code. Raises ServingError."""
    own, flags = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
        usage="%(prog)s [options] [-- tritonserver flags]\n       %(prog)s load MODEL [--version N] [options]",
    )
    add_options(parser)
    add = parser.add_argument
    add("--http-port", type=port, metavar="PORT", help="open HTTP, too, without TLS (default: closed)")
    add("--metrics-port", type=port, default=8002, metavar="PORT", help="default %(default)s")
    add("--config", default="", metavar="NAME", help="serve models by their configs/NAME.pbtxt, if they have one")
    add("--check", action="store_true", help="check what tritonserver and packed_cpu need on this machine, and exit")
    add("--health", action="store_true", help="ask the server at this address whether it is ready, and exit")
    add("--model", action="append", default=[], metavar="NAME", help="with --health: and this model (repeat it)")
    options = parser.parse_args(own)
    if options.model and not options.health:
        parser.error("--model goes with --health: every published model is served")
    if options.check:
        triton = find_triton()
        check_triton(triton, needs_python=triton.has_python)
        without = "" if triton.has_python else "out"
        print(f"serving: {triton.binary} can run here, with{without} packed_cpu")
        return 0
    if options.secure and options.http_port:
        parser.error("--http-port opens HTTP without TLS and without the callers' token: leave it out with --secure")
    address = find_address(options.address)
    addresses = Addresses(address, options.grpc_port, options.metrics_port, options.http_port)
    if options.health:
        return report_health(addresses, read_security(options.secure) if options.secure else None, options.model)
    return serve(Server(options.repository, addresses, tuple(flags), config=options.config, secure=options.secure))


def run_load(given: list[str]) -> int:
    """`python -m serving load`. Returns the exit code. Raises ServingError."""
    parser = argparse.ArgumentParser(
        prog="python -m serving load",
        description="Load a published version into the running server, the tokenizer first. Callers notice nothing.",
        allow_abbrev=False,
    )
    parser.add_argument("model", help="for example clickbert_onnx")
    parser.add_argument(
        "--version", type=int, metavar="N", help="this one, and withdraw newer ones (default: the newest)"
    )
    add_options(parser)
    options = parser.parse_args(given)
    addresses = Addresses(find_address(options.address), options.grpc_port)
    security = read_security(options.secure) if options.secure else None
    number = load(options.repository, addresses, security, options.model, options.version)
    print(f"serving: {options.model} version {number} is served")
    return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Where the models are, where the server is, and how it is spoken to."""
    add = parser.add_argument
    add("--repository", type=Path, default=Path("model_repository"), help="model repository (default %(default)s)")
    add("--address", default=LOOPBACK, help="where the server listens: an address or a host name (default %(default)s)")
    add("--grpc-port", type=port, default=8001, metavar="PORT", help="default %(default)s")
    add("--secure", type=Path, metavar="DIR", help="folder with the server's certificate and key (`make certs`)")


def port(text: str) -> int:
    """A port number."""
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is none; a port is a number from 1 to 65535")
    return int(text)


def report_health(addresses: Addresses, security: Security | None, models: Sequence[str] = ()) -> int:
    """Says whether the server is ready, and each of these models; returns the exit code.

    Who has the admin token is told what it serves, too.
    """
    reason = why_not_ready(addresses, security, models)
    print(f"serving: {addresses.grpc} is {f'not ready: {reason}' if reason else 'ready'}")
    if not reason and (token := admin.find_token(addresses)):
        try:
            with asking(addresses, security) as client:
                for version in ask_versions(client, admin.headers(token)):
                    print(f"serving: {version}")
        except InferenceServerException:  # the token of a server that was here before
            pass
    return 1 if reason else 0


def serve(server: Server) -> int:
    """Runs the server until it ends or a signal asks for it."""
    stopping: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        stopping.append(number)
        if len(stopping) == 1:
            raise KeyboardInterrupt
        if len(stopping) == 2:
            server.kill()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # SIGHUP: the terminal was closed
        # A signal that is ignored stays ignored: nohup wants the server to live on, a shell without job control keeps
        # Ctrl-C for others.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        again = False
        while True:
            try:
                return run(server)
            except FilesChangedError as exc:
                print(f"serving: {exc}; the server was drained and is started with them", file=sys.stderr, flush=True)
            except ServerDiedError as exc:
                print(f"serving: {exc}; the server's log above may say why", file=sys.stderr, flush=True)
                if again and time.monotonic() - server.ready_since < LEAST_LIFE:
                    print(
                        "serving: that was soon after the last time: the server is not started again", file=sys.stderr
                    )
                    return 1
                print("serving: the server is started again", file=sys.stderr, flush=True)
                again = True
    except KeyboardInterrupt:
        code = server.running().returncode if server.process else 0
        print(f"serving: ended on {signal.Signals(stopping[0]).name}", file=sys.stderr)
        # Triton ends with 0 when it has drained. A negative code means that it had to be killed.
        return 0 if code == 0 else 1


def run(server: Server) -> int:
    """Starts the server, and waits until it ends by itself. Returns the exit code.

    Raises:
        ServerDiedError, FilesChangedError: it was ended, and must be started anew.
    """
    with server:
        print(f"serving: {', '.join(server.models)} ready\nserving: {server.addresses}", flush=True)
        try:
            code = server.watch()
        except ServerDiedError:
            server.kill()  # what a backend's process had taken nobody can answer; this tells the callers so at once
            raise
        print(f"serving: tritonserver ended by itself with code {code}; its log above says why", file=sys.stderr)
        return code or 1


if __name__ == "__main__":
    lose_what_cannot_be_written()  # a full disk must not keep it from looking after the server
    code = main()
    # Python's end takes its handlers away first; a further signal would then put its exit code in place of this one.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    sys.exit(code)
