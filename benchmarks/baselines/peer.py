"""A rerank server of somebody else, in an environment of its own, serving the same checkpoint: Infinity.

It is installed into .peers/ where it is asked for, from pinned packages, and never into this project's environment.
It runs as it comes: its own defaults (batches of 32, nothing compiled, no cache of results), its torch engine, FP32.

Not known here: what is asked of it, and when.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.load_gen.workload import Request
from serving.server import LOOPBACK, Addresses

PEERS = Path(__file__).resolve().parent.parent.parent / ".peers"
NAME = "infinity"
# What its speed depends on, and what its own limits leave open. It needs Transformers before 5 and numpy before 2, so
# this project's own environment cannot run it.
REQUIREMENTS = (
    "infinity-emb[torch,server]==0.0.78", "torch==2.13.0", "transformers==4.57.6", "sentence-transformers==3.4.1",
    "tokenizers==0.22.2", "safetensors==0.8.0", "huggingface-hub==0.36.2", "numpy==1.26.4", "scikit-learn==1.9.1",
    "fastapi==0.165.0", "starlette==1.10.0", "uvicorn==0.32.1", "uvloop==0.23.0", "httptools==0.9.0", "orjson==3.13.0",
    "pydantic==2.14.4", "typer==0.12.5", "click==8.1.8", "prometheus-fastapi-instrumentator==8.1.0", "posthog==7.91.1",
)  # fmt: skip
READY, ANSWER, END = 120, 120, 10  # seconds; it measures its model's speed before it is ready
NEWEST = (3, 12)  # Python, of numpy 1.26's wheels


class PeerError(RuntimeError):
    """The peer cannot be measured; the message says what failed, and where its log is."""


def python() -> Path:
    """The interpreter of the peer's environment, whether it is installed or not."""
    return PEERS / NAME / "bin" / "python"


def is_installed() -> bool:
    """Whether the environment is there, whole, and of these very packages."""
    stamp = PEERS / NAME / "requirements.txt"
    return stamp.exists() and stamp.read_text(encoding="utf-8") == "\n".join(REQUIREMENTS)


def install() -> None:
    """Makes the peer's environment, unless it is there.

    Raises:
        PeerError: a step failed.
    """
    if is_installed():
        return
    if sys.version_info[:2] > NEWEST:
        raise PeerError(
            f"{REQUIREMENTS[0]} needs numpy before 2, which pip has ready for Python {'.'.join(map(str, NEWEST))} at "
            "most; for this comparison: make clean-venv install PYTHON=python3.12"
        )
    folder, log = PEERS / NAME, PEERS / f"{NAME}-install.log"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sys.stderr.write(f"baselines: install {REQUIREMENTS[0]} into {folder}, some minutes; its log: {log}\n")
    commands = (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python()), "-m", "pip", "install", "--no-input", *REQUIREMENTS],
    )
    with log.open("wb") as output:
        for command in commands:
            ran = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False)
            if ran.returncode:
                raise PeerError(f"`{' '.join(command[:4])} ...` ended with code {ran.returncode}; its log: {log}")
    (folder / "requirements.txt").write_text("\n".join(REQUIREMENTS), encoding="utf-8")


@contextlib.contextmanager
def serve(checkpoint: Path) -> Iterator[Peer]:
    """The peer's server on a free port of loopback, ready; it is gone behind the block.

    Args:
        checkpoint: Hugging Face folder, of one label.

    Raises:
        PeerError: it ended before it was ready, or was not ready in time.
    """
    port, log = Addresses.free().http_port, PEERS / f"{NAME}.log"
    command = [str(PEERS / NAME / "bin" / "infinity_emb"), "v2", "--model-id", str(checkpoint.resolve())]
    command += ["--served-model-name", NAME, "--engine", "torch", "--device", "cpu", "--dtype", "float32"]
    command += ["--host", LOOPBACK, "--port", str(port)]
    # It takes options from such variables, too; and it must neither report home nor ask the hub.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("INFINITY_")}
    variables |= {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches this process alone, which then ends all of the peer's.
        server = subprocess.Popen(
            command, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            peer = Peer(port, log)
            wait_until_ready(server, peer)
            yield peer
        finally:
            end(server)


def wait_until_ready(server: subprocess.Popen[bytes], peer: Peer) -> None:
    """Returns when the peer answers.

    Raises:
        PeerError: it ended, or did not answer within READY seconds.
    """
    deadline = time.monotonic() + READY
    while not peer.is_ready():
        if (code := server.poll()) is not None:
            raise PeerError(f"{NAME} ended with code {code} before it was ready; its log says why: {peer.log}")
        if time.monotonic() > deadline:
            raise PeerError(f"{NAME} was not ready within {READY} s; its log: {peer.log}")
        time.sleep(0.2)


def end(server: subprocess.Popen[bytes]) -> None:
    """Lets it end by itself, so that its own helpers do, and then ends what is left."""
    server.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(END)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


class Peer:
    """A running peer, asked over HTTP by any number of threads.

    Each request has a connection of its own, since the peer closes what is idle between two turns; to open one on
    loopback takes less than a thousandth of a request.
    """

    def __init__(self, port: int, log: Path) -> None:
        self.port, self.log = port, log

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            return self.ask("GET", "/health")[0] == http.HTTPStatus.OK
        except OSError:
            return False

    def score(self, request: Request) -> list[float]:
        """The click probabilities of a request's candidates, in their order.

        Raises:
            PeerError: it answers with an error, or not at all.
        """
        body = json.dumps({"model": NAME, "query": request.query, "documents": request.documents})
        try:
            status, content = self.ask("POST", "/rerank", body)
        except (OSError, http.client.HTTPException) as exc:
            raise PeerError(f"{NAME} did not answer: {exc}; its log: {self.log}") from exc
        if status != http.HTTPStatus.OK:
            raise PeerError(f"{NAME} answered {status}: {content[:200]!r}; its log: {self.log}")
        results = sorted(json.loads(content)["results"], key=lambda result: result["index"])
        return [result["relevance_score"] for result in results]

    def ask(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        """One HTTP request: its status and content. Raises OSError, HTTPException."""
        with contextlib.closing(http.client.HTTPConnection(LOOPBACK, self.port, timeout=ANSWER)) as connection:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
