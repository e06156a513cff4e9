"""The server that a benchmark measures: one that runs already, or one that is started for it.

Not known here: what is sent to it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from benchmarks.load_gen.workload import Request
from clickbert import Connection, Ranker
from clickbert.protocol import TOKENIZER_MODEL
from serving.server import Addresses, Server
from serving.triton import ServingError

TOKEN_VARIABLE = "CLICKBERT_TOKEN"
PREFIX = "clickbert_"
TIMEOUT = 10.0  # seconds, for a question
PARTS = ("queue", "compute_input", "compute_infer", "compute_output")


class LoadError(RuntimeError):
    """The run has no figures; the message says what to do."""


@dataclass(frozen=True)
class Target:
    """A running server.

    Attributes:
        url: host:port of its gRPC endpoint, with grpcs:// in front for TLS.
        ca_file: PEM file of the authority that signed its certificate.
        token: sent with every call.
        repository: what it serves, if it was started here.
        server: the process, if it was started here.
    """

    url: str
    ca_file: Path | None = None
    token: str | None = field(default=None, repr=False)
    repository: Path | None = None
    server: Server | None = None

    def ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a method of tritonclient's client. Raises LoadError."""
        connection = Connection(self.url, self.ca_file, self.token)
        try:
            with triton.InferenceServerClient(**connection.tritonclient_arguments) as client:
                return question(client, *arguments, headers=connection.headers, client_timeout=TIMEOUT)
        except InferenceServerException as exc:
            raise LoadError(f"{self.url} does not answer: {exc}") from exc

    def name(self) -> dict[str, str]:
        """The server's name and version."""
        answer = self.ask(triton.InferenceServerClient.get_server_metadata)
        return {"name": answer.name, "version": answer.version}

    def models(self) -> dict[str, str]:
        """The models that it serves, with the newest version of each."""
        index = self.ask(triton.InferenceServerClient.get_model_repository_index)
        found: dict[str, str] = {}
        for entry in index.models:
            if entry.state == "READY":
                found[entry.name] = max(entry.version, found.get(entry.name, "0"), key=int)
        return found

    def click_models(self) -> dict[str, str]:
        """The click models that it serves, likewise."""
        return {
            name: version
            for name, version in self.models().items()
            if name.startswith(PREFIX) and name != TOKENIZER_MODEL
        }

    def statistics(self, model: str) -> dict[str, int]:
        """Triton's counts of a model's requests since it was loaded.

        Returns:
            requests, executions, and in nanoseconds success, queue, compute_input, compute_infer, compute_output.
        """
        answer = self.ask(triton.InferenceServerClient.get_inference_statistics, model)
        stats = max(answer.model_stats, key=lambda each: int(each.version))
        times = {part: getattr(stats.inference_stats, part).ns for part in ("success", *PARTS)}
        return {"requests": stats.inference_stats.success.count, "executions": stats.execution_count, **times}

    def try_out(self, model: str, request: Request) -> None:
        """Ranks once, so that a wrong address or model fails before anything is measured. Raises ClickBertError."""
        with Ranker(Connection(self.url, self.ca_file, self.token), model) as ranker:
            ranker.rank(request.query, request.documents)

    def check_alive(self) -> None:
        """Raises LoadError if the server was started here and has ended."""
        if self.server and (code := self.server.running().poll()) is not None:
            raise LoadError(f"tritonserver ended with code {code} during the run; {self.server.where_the_log_is()}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which server is measured."""
    server = parser.add_mutually_exclusive_group()
    server.add_argument(
        "--url",
        metavar="HOST:PORT",
        help="a running server's gRPC address, grpcs://HOST:PORT for TLS (default: start one)",
    )
    server.add_argument("--repository", type=Path, default=Path("model_repository"), help="what to start a server on")
    parser.add_argument(
        "--ca-file", type=Path, metavar="FILE",
        help=f"PEM file of the authority that signed its certificate (its token: {TOKEN_VARIABLE} in the environment)",
    )  # fmt: skip


@contextlib.contextmanager
def opened(options: argparse.Namespace, folder: Path) -> Iterator[Target]:
    """The server that the options name; one that was started here ends behind the block."""
    if options.url:
        token = os.environ.get(TOKEN_VARIABLE) or None
        yield Target(Connection(options.url, options.ca_file, token).url, options.ca_file, token)
        return
    with started(options.repository, folder) as target:
        yield target


@contextlib.contextmanager
def started(repository: Path, folder: Path) -> Iterator[Target]:
    """A server of its own on free ports, its log in `folder`. Raises ServingError."""
    with (folder / "triton.log").open("ab") as log, Server(repository, Addresses.free(), log=log) as server:
        yield Target(server.addresses.grpc, repository=repository, server=server)


@contextlib.contextmanager
def logs() -> Iterator[Path]:
    """A folder for logs and samples. It is removed, unless the run failed and the logs say why."""
    folder = Path(tempfile.mkdtemp(prefix="clickbert-load-"))
    keep = False
    try:
        yield folder
    except LoadError:
        keep = True
        raise
    except ServingError:  # before tritonserver was started its log is empty
        keep = any(path.stat().st_size for path in folder.iterdir())
        raise
    finally:
        if not keep:
            shutil.rmtree(folder)
