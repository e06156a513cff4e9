"""Runs two Tritons, the gateway in front of them and Prometheus on this machine, without containers, until Ctrl-C.

It is what deploy/compose runs in containers, for a laptop and for tests: all on loopback, with TLS and a token at the
gateway. When it is up it prints where everything is, and a command that ranks. If a part dies it says which, and the
others go on: a good way to see what an alert does. A Triton that only crashes is started again by `python -m serving`.

    python -m deploy stack
    python -m deploy stack --repository model_repository --folder .stack
    python -m deploy stack --port prometheus=9091 --port triton-0=0       another port; 0 is any that is free

FOLDER holds the logs, the certificates and the token, Prometheus's configuration and its data.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shlex
import shutil
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deploy.gateway.run import note_signals
from release.lock import LockError, locked
from serving.addresses import LOOPBACK, Addresses, free_ports
from serving.asking import why_not_ready
from serving.checks import check_ports
from serving.server import open_directly
from serving.triton import ServingError

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
PORTS = {
    "gateway": 8443,
    "gateway-metrics": 9902,
    "gateway-admin": 9901,
    "prometheus": 9090,
    "triton-0": 8001,
    "triton-0-metrics": 8002,
    "triton-1": 8003,
    "triton-1-metrics": 8004,
}
TRITONS = ("triton-0", "triton-1")
READY = 300.0  # seconds, for models of any size on a busy machine
END = 60.0  # seconds that a part may take to end: a Triton drains for 30 s, the gateway for 35 s


class StackError(RuntimeError):
    """Something that the stack needs is missing, taken or broken. The message says what, and what to do."""


@dataclass
class Part:
    """One process of the stack: how it is started, where its log is, and who answers that it is ready."""

    name: str
    command: list[str]
    log: Path
    is_ready: Callable[[], bool]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, in a session of its own: Ctrl-C at the terminal reaches this process alone. Raises OSError."""
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def ended_with(self) -> int | None:
        """The exit code; None while it runs, or where it was not started."""
        return None if self.process is None else self.process.poll()


def main(given: Sequence[str]) -> int:
    """The command. Returns the exit code: 0 ended by a signal, 1 not started or a part died, 2 usage."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy stack",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--repository", type=Path, default=Path("model_repository"), help="model repository (default %(default)s)")
    add("--folder", type=Path, default=Path(".stack"), help="what it writes (default %(default)s)")
    add("--port", type=named_port, action="append", default=[], metavar="NAME=N", help=f"of {', '.join(PORTS)}")
    options = parser.parse_args(given)
    ports = PORTS | dict(options.port)
    unnamed = [name for name, port in ports.items() if port == 0]
    ports |= zip(unnamed, free_ports(len(unnamed)), strict=True)
    try:
        check_ports(LOOPBACK, {f"--port {name}=": port for name, port in ports.items()})
        with locked(options.folder):
            return run(options.repository.resolve(), options.folder.resolve(), ports)
    except LockError as exc:
        another = f"another one runs in {options.folder}; end it, or give another --folder"
        print(f"stack: {another if isinstance(exc.__cause__, BlockingIOError) else exc}", file=sys.stderr)
    except (ServingError, StackError, OSError) as exc:
        print(f"stack: {exc}", file=sys.stderr)
    return 1


def named_port(text: str) -> tuple[str, int]:
    """A part's port, NAME=NUMBER."""
    name, _, number = text.partition("=")
    if name not in PORTS or not (number.isascii() and number.isdecimal() and int(number) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=NUMBER, with a name of {', '.join(PORTS)}")
    return name, int(number)


def run(repository: Path, folder: Path, ports: dict[str, int]) -> int:
    """Starts the parts, says where they are, and waits for a signal. Returns the exit code.

    Raises:
        StackError, OSError: a part cannot be started, or is not ready in time.
    """
    stopping = note_signals()
    secrets = write_secrets(folder)
    parts = make_parts(repository, folder, secrets, ports)
    try:
        watched = [part for part in parts if part.name != "prometheus"]
        for group in (watched, parts[len(watched) :]):  # so that no alert says that the others are still starting
            for part in group:
                part.start()
            for part in group:
                wait_until_ready(part, stopping)
        if not stopping:
            print(where_everything_is(parts, folder, ports), flush=True)
        died = watch(parts, stopping)
    finally:
        end(parts, stopping)
    print("stack: ended", flush=True)
    return 1 if died else 0


def write_secrets(folder: Path) -> Path:
    """Makes an authority, the gateway's certificate and a caller's token. Returns the folder for the gateway.

    It has no ca.pem: callers need the token, and no certificate.
    """
    made, secrets = folder / "certs", folder / "secrets"
    done = subprocess.run([ROOT / "deploy" / "make-certs.sh", made], capture_output=True, text=True, check=False)
    if done.returncode:
        raise StackError(f"deploy/make-certs.sh failed, it needs the command openssl: {done.stderr.strip()}")
    secrets.mkdir(mode=0o700, exist_ok=True)
    for name in ("server.pem", "server.key", "tokens"):
        if not (secrets / name).is_symlink():
            (secrets / name).symlink_to(made / name)
    return secrets


def make_parts(repository: Path, folder: Path, secrets: Path, ports: dict[str, int]) -> list[Part]:
    """The parts in the order in which they start; they end in the opposite one."""
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    parts = []
    python = [sys.executable, "-m"]
    for name in TRITONS:
        addresses = Addresses(LOOPBACK, ports[name], ports[f"{name}-metrics"])
        command = [*python, "serving", f"--repository={repository}", f"--grpc-port={addresses.grpc_port}"]
        command.append(f"--metrics-port={addresses.metrics_port}")
        parts.append(Part(name, command, logs / f"{name}.log", partial(serves, addresses)))
    command = [*python, "deploy", "gateway", f"--secrets={secrets}", f"--listen={LOOPBACK}:{ports['gateway']}"]
    command += [f"--triton={LOOPBACK}:{ports[name]}" for name in TRITONS]
    command += [f"--admin-port={ports['gateway-admin']}", f"--metrics={LOOPBACK}:{ports['gateway-metrics']}"]
    context = ssl.create_default_context(cafile=folder / "certs" / "ca.pem")
    healthz = f"https://{LOOPBACK}:{ports['gateway']}/healthz"
    parts.append(Part("gateway", command, logs / "gateway.log", partial(answers, healthz, context)))
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        print("stack: no prometheus on PATH, so nothing is watched: apt-get install prometheus", flush=True)
        return parts
    url = f"http://{LOOPBACK}:{ports['prometheus']}/-/ready"
    command = [prometheus, f"--config.file={write_prometheus(folder / 'prometheus', ports)}"]
    command += [f"--storage.tsdb.path={folder / 'prometheus' / 'data'}", "--log.level=warn"]
    command += [f"--web.listen-address={LOOPBACK}:{ports['prometheus']}"]
    return [*parts, Part("prometheus", command, logs / "prometheus.log", partial(answers, url))]


def write_prometheus(folder: Path, ports: dict[str, int]) -> Path:
    """Writes the folder of Prometheus's configuration: ours as it is, and the targets. Returns the configuration."""
    (folder / "targets").mkdir(parents=True, exist_ok=True)
    for name in ("prometheus.yaml", "rules.yaml"):
        shutil.copyfile(MONITORING / name, folder / name)
    targets = {"triton": [f"{name}-metrics" for name in TRITONS], "gateway": ["gateway-metrics"]}
    for job, names in targets.items():
        groups = [{"targets": [f"{LOOPBACK}:{ports[name]}" for name in names]}]  # JSON, which is YAML, too
        (folder / "targets" / f"{job}.yaml").write_text(json.dumps(groups), encoding="utf-8")
    return folder / "prometheus.yaml"


def serves(addresses: Addresses) -> bool:
    """Whether the Triton there is ready."""
    return why_not_ready(addresses) is None


def answers(url: str, context: ssl.SSLContext | None = None) -> bool:
    """Whether a GET there is answered with 200."""
    try:
        if context is None:
            with open_directly(url) as answer:
                return bool(answer.status == 200)
        handlers = urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        with urllib.request.build_opener(*handlers).open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def wait_until_ready(part: Part, stopping: list[int]) -> None:
    """Returns when it is ready, or a signal came. Raises StackError."""
    deadline = time.monotonic() + READY
    while not stopping and not part.is_ready():
        if (code := part.ended_with()) is not None:
            last = part.log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
            raise StackError(f"{part.name} ended with code {code} before it was ready: {last}; its log: {part.log}")
        if time.monotonic() > deadline:
            raise StackError(f"{part.name} was not ready within {READY:.0f} s; its log: {part.log}")
        time.sleep(0.2)


def watch(parts: list[Part], stopping: list[int]) -> list[Part]:
    """Waits for a signal, or until no part is left. Says which parts die meanwhile, and returns them."""
    died: list[Part] = []
    while not stopping and len(died) < len(parts):
        for part in parts:
            if part not in died and (code := part.ended_with()) is not None:
                died.append(part)
                print(
                    f"stack: {part.name} ended with code {code}, the others go on; its log: {part.log}; "
                    f"to start it again: {shlex.join(part.command)}",
                    file=sys.stderr,
                    flush=True,
                )
        time.sleep(0.2)
    return died


def end(parts: list[Part], stopping: list[int]) -> None:
    """Ends what runs, the last one first, each when the one before it is gone; the Tritons together.

    Every part drains at the first signal. A second one, of the user's, ends at once what is ending then.
    """
    tritons = [part for part in parts if part.name in TRITONS]
    others = [part for part in parts if part not in tritons]
    for group in [*([part] for part in reversed(others)), tritons]:
        running = [part.process for part in group if part.process and part.process.poll() is None]
        for process in running:
            process.terminate()
        hurried, deadline = False, time.monotonic() + END
        while any(process.poll() is None for process in running):
            if len(stopping) > 1 and not hurried:
                hurried = True
                for process in running:
                    process.terminate()
            if time.monotonic() > deadline:
                for process in running:
                    process.kill()
            time.sleep(0.1)


def where_everything_is(parts: list[Part], folder: Path, ports: dict[str, int]) -> str:
    """The lines for whoever started it."""
    certs = folder / "certs"
    url, authority = f"grpcs://{LOOPBACK}:{ports['gateway']}", certs / "ca.pem"
    lines = [f"gateway     {url}  authority {authority}  tokens {certs / 'tokens'}"]
    lines.append(f"            figures http://{LOOPBACK}:{ports['gateway-metrics']}/stats/prometheus")
    for name in TRITONS:
        lines.append(f"{name}    {Addresses(LOOPBACK, ports[name], ports[f'{name}-metrics'])}")
    if any(part.name == "prometheus" for part in parts):
        lines.append(f"prometheus  http://{LOOPBACK}:{ports['prometheus']}/alerts")
    lines.append(f"logs        {folder / 'logs'}")
    client = Path(sys.executable).with_name("clickbert")
    rank = [str(client) if client.exists() else "clickbert", "rank", "--url", url, "--ca-file", str(authority)]
    rank += ["--query", "shoes for the rain", "--documents", "-"]
    token = f"$(cut -d' ' -f2 {shlex.quote(str(certs / 'tokens'))})"
    lines.append(f"rank        printf 'a teapot\\nwaterproof boots\\n' | CLICKBERT_TOKEN={token} {shlex.join(rank)}")
    return "\n".join(f"stack: {line}" for line in [*lines, "until Ctrl-C"])
