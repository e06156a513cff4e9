"""Serves the model repository with a real Triton Inference Server, until Ctrl-C or SIGTERM.

It finds tritonserver (the one on PATH, as in NVIDIA's container, or the nvidia-pytriton wheel's), checks what that
needs, starts it, waits until all models are ready, and prints the addresses. On a signal, Triton answers what it has
accepted and ends; a second signal ends it at once. If a process of a backend dies, the server is started anew. Flags
after `--` go to tritonserver unchanged.

    python -m serving
    python -m serving --repository model_repository --grpc-port 9001
    python -m serving --address ::                     IPv6; 0.0.0.0 for all IPv4 addresses
    python -m serving --health                         is the running server ready? (exit code 0 or 1)
    python -m serving --check                          can Triton, with packed_cpu, run on this machine?
    python -m serving --config onnxruntime             models by their configs/onnxruntime.pbtxt, if they have one
    python -m serving -- --log-verbose=1 --http-thread-count=4

A new version that `python -m export` published is loaded without a restart:

    curl -X POST localhost:8000/v2/repository/models/clickbert_tokenizer/load
    curl -X POST localhost:8000/v2/repository/models/clickbert_onnx/load

docs/runbook.md has the rest.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from serving.addresses import LOOPBACK, Addresses, find_address
from serving.checks import check_triton
from serving.server import BackendDiedError, Server, why_not_ready
from serving.triton import ServingError, find_triton

LEAST_LIFE = 60.0  # seconds that a server is ready; one whose backend dies sooner a second time would go on like that


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0 drained or ready, 1 not started or not ready, 2 usage, else Triton's."""
    given = sys.argv[1:] if arguments is None else arguments
    own, flags = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
        usage="%(prog)s [options] [-- tritonserver flags]",
    )
    add = parser.add_argument
    add("--repository", type=Path, default=Path("model_repository"), help="model repository (default %(default)s)")
    add(
        "--address", default=LOOPBACK, help="address or host name to listen on (default %(default)s: this machine only)"
    )
    add("--http-port", type=port, default=8000, metavar="PORT", help="default %(default)s")
    add("--grpc-port", type=port, default=8001, metavar="PORT", help="default %(default)s")
    add("--metrics-port", type=port, default=8002, metavar="PORT", help="default %(default)s")
    add("--config", default="", metavar="NAME", help="serve models by their configs/NAME.pbtxt, if they have one")
    add("--check", action="store_true", help="check what tritonserver and packed_cpu need on this machine, and exit")
    add("--health", action="store_true", help="ask the server at these addresses whether it is ready, and exit")
    options = parser.parse_args(own)
    try:
        if options.check:
            triton = find_triton()
            check_triton(triton, needs_python=triton.has_python)
            without = "" if triton.has_python else "out"
            print(f"serving: {triton.binary} can run here, with{without} packed_cpu")
            return 0
        address = find_address(options.address)
        addresses = Addresses(address, options.http_port, options.grpc_port, options.metrics_port)
        if options.health:
            return report_health(addresses)
        return serve(Server(options.repository, addresses, tuple(flags), config=options.config))
    except ServingError as exc:
        print(f"serving: {exc}", file=sys.stderr)
        return 1


def port(text: str) -> int:
    """A port number."""
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is none; a port is a number from 1 to 65535")
    return int(text)


def report_health(addresses: Addresses) -> int:
    """Says whether the server at these addresses is ready. Returns the exit code."""
    reason = why_not_ready(addresses)
    print(f"serving: {addresses.http} is {f'not ready: {reason}' if reason else 'ready'}")
    return 1 if reason else 0


def serve(server: Server) -> int:
    """Runs the server until it ends or a signal asks for it."""
    stopping: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        stopping.append(number)
        if len(stopping) > 1:
            server.kill()
        raise KeyboardInterrupt

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
            except BackendDiedError as exc:
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
    """Starts the server, and waits until it ends by itself. Returns the exit code. Raises BackendDiedError."""
    with server:
        addresses = server.addresses
        print(
            f"serving: {', '.join(server.models)} ready\n"
            f"serving: gRPC {addresses.grpc}  HTTP {addresses.http}  metrics {addresses.metrics}",
            flush=True,
        )
        try:
            code = server.watch()
        except BackendDiedError:
            server.kill()  # what the process had taken nobody can answer; this tells the callers so at once
            raise
        print(f"serving: tritonserver ended by itself with code {code}; its log above says why", file=sys.stderr)
        return code or 1


if __name__ == "__main__":
    sys.exit(main())
