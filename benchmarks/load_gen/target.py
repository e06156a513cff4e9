"""The server that a benchmark measures: one that runs already, or one that is started for it."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from benchmarks import BenchmarkError
from benchmarks.load_gen.metrics import total
from benchmarks.load_gen.workload import Request
from benchmarks.measure.schema import ServerInfo, Step, TimeSplit
from clickbert import ClickBertError, Ranker
from clickbert.connection import Connection
from finetune.data.clicklog import ClickLogError
from release import versions
from release.names import TOKENIZER_MODEL
from serving.backends.packed_cpu import figures
from serving.server import Addresses, Server
from serving.triton import PACKED_CPU, ServingError

PREFIX = "clickbert_"
TIMEOUT = 10.0  # seconds, for a question
FIRST_TIMEOUT = 60.0  # seconds, for the first ranking of a slow model
SETTLED = 1.2 * figures.PERIOD  # seconds in which the backend publishes its figures at least once
PATIENCE = 3.0  # seconds, for figures that do not come to rest
EXPECTED = (BenchmarkError, ServingError, ClickBertError, ClickLogError)  # what a load on a server may raise


@dataclass(frozen=True)
class Counts:
    """What was counted of a model's requests since it was loaded; times in seconds, of all of them together.

    `queue` and `compute` as in `TimeSplit`. Either there are executions, by Triton, or chunks with tokens in them.
    """

    requests: float = 0
    queue: float = 0
    compute: float = 0
    executions: float = 0
    chunks: float = 0
    tokens: float = 0

    def __sub__(self, earlier: Counts) -> Counts:
        return Counts(*(now - then for now, then in zip(astuple(self), astuple(earlier), strict=True)))


@dataclass(frozen=True)
class Target:
    """A running server; `repository` and `server` are there if it was started here."""

    connection: Connection
    repository: Path | None = None
    server: Server | None = None

    def ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a method of tritonclient's client. Raises BenchmarkError."""
        try:
            with triton.InferenceServerClient(**self.connection.tritonclient_arguments) as client:
                return question(client, *arguments, headers=self.connection.headers, client_timeout=TIMEOUT)
        except InferenceServerException as exc:
            if exc.status() == "StatusCode.PERMISSION_DENIED":
                raise BenchmarkError(
                    f"{self.connection.url} does not tell what is measured, as a gateway does not: give a server's own "
                    f"address ({exc})"
                ) from exc
            raise BenchmarkError(f"{self.connection.url} does not answer: {exc}") from exc

    def info(self) -> ServerInfo:
        """What it says of itself."""
        answer = self.ask(triton.InferenceServerClient.get_server_metadata)
        return ServerInfo(answer.name, answer.version, self.connection.url, self.repository is not None)

    def models(self) -> dict[str, str]:
        """The click models that it serves, with the newest version of each."""
        # (The repository's index would say it, too, but it is closed to callers.)
        statistics = self.ask(triton.InferenceServerClient.get_inference_statistics)
        found: dict[str, str] = {}
        for entry in statistics.model_stats:
            if entry.name.startswith(PREFIX) and entry.name != TOKENIZER_MODEL:
                found[entry.name] = max(entry.version, found.get(entry.name, "0"), key=int)
        return found

    def counts(self, model: str) -> Counts | None:
        """What was counted of a model's requests.

        None: it is cut into chunks by a server elsewhere. The figures of its backend are not at hand, and Triton's own
        durations end when the backend has taken a request over.
        """
        config = self.ask(triton.InferenceServerClient.get_model_config, model).config
        if not is_chunked(config):
            return self.count_executions(model)
        text = self.metrics()
        return None if text is None else count_chunks(text, model)

    def count_executions(self, model: str) -> Counts:
        """Triton's statistics of a model's requests."""
        answer = self.ask(triton.InferenceServerClient.get_inference_statistics, model)
        newest = max(answer.model_stats, key=lambda each: int(each.version))
        stats = newest.inference_stats
        compute = stats.compute_input.ns + stats.compute_infer.ns + stats.compute_output.ns
        return Counts(stats.success.count, stats.queue.ns / 1e9, compute / 1e9, newest.execution_count)

    def settled_counts(self, model: str) -> Counts | None:
        """What was counted, once no more comes of requests that were answered: figures are published now and then."""
        found, end = self.counts(model), time.monotonic() + PATIENCE
        while found and not found.executions and time.monotonic() < end:  # Triton's own counts are there at once
            time.sleep(SETTLED)
            former, found = found, self.counts(model)
            if found == former:
                break
        return found

    def metrics(self) -> str | None:
        """The text of its metrics endpoint; None of a server elsewhere, whose address for that is not known."""
        return None if self.server is None else self.server.metrics()

    def with_counts(self, model: str, send: Callable[[], Step]) -> Step:
        """A step, with what was counted meanwhile. Raises BenchmarkError if the server has ended."""
        before = self.counts(model)
        step = send()
        self.check_alive()
        after = self.settled_counts(model)
        if before is None or after is None:
            return step
        counted = after - before
        return replace(
            step,
            time_split=split_time(counted, step.latency.mean if step.latency else None),
            requests_per_execution=counted.requests / counted.executions if counted.executions else None,
            tokens_per_chunk=counted.tokens / counted.chunks if counted.chunks else None,
        )

    def try_out(self, model: str, request: Request) -> None:
        """Ranks once, so that a wrong address or model fails before anything is measured. Raises ClickBertError."""
        with Ranker(self.connection, model, timeout=FIRST_TIMEOUT) as ranker:
            ranker.rank(request.query, request.documents)

    def check_alive(self) -> None:
        """Raises BenchmarkError if the server was started here and has ended."""
        if self.server and (code := self.server.running().poll()) is not None:
            raise BenchmarkError(
                f"tritonserver ended with code {code} during the run; {self.server.where_the_log_is()}"
            )


def split_time(counted: Counts, mean_ms: float | None) -> TimeSplit | None:
    """Where a request's time went on average, by what was counted during a load and the callers' mean latency."""
    if not counted.requests or mean_ms is None:
        return None
    queue, compute = (1000 * seconds / counted.requests for seconds in (counted.queue, counted.compute))
    return TimeSplit(queue, compute, max(0.0, mean_ms - queue - compute))


def is_chunked(config: Any) -> bool:
    """Whether packed_cpu cuts a model's requests into chunks, by its config: Triton's batching does nothing then."""
    return config.backend == PACKED_CPU and "chunk_by" in config.parameters


def count_chunks(metrics: str, model: str, **labels: str) -> Counts:
    """packed_cpu's figures of a model's answered requests, in the text of a metrics endpoint.

    `labels` choose among them; chunks and tokens have none of a request's, and are 0 then.
    """

    def sum_of(name: str) -> float:
        return total(metrics, name, model=model, **labels)

    waiting = sum_of(f"{figures.WAITING}_sum")
    return Counts(
        requests=sum_of(f"{figures.TOTAL}_count"),
        queue=waiting,
        compute=sum_of(f"{figures.TOTAL}_sum") - waiting,
        chunks=sum_of(figures.CHUNKS),
        tokens=sum_of(figures.ELEMENTS),
    )


@contextlib.contextmanager
def open_target(options: argparse.Namespace, folder: Path) -> Iterator[Target]:
    """The server that the options name. One that is started here has its log in `folder` and ends with the block."""
    if options.url:
        yield Target(Connection.from_arguments(options))
        return
    with start_target(options.repository, folder) as target:
        yield target


@contextlib.contextmanager
def start_target(repository: Path, folder: Path) -> Iterator[Target]:
    """A server on free ports, its log in `folder`; it ends with the block. Raises ServingError."""
    with (folder / "triton.log").open("ab") as log, Server(repository, Addresses.free(), log=log) as server:
        yield Target(Connection(server.addresses.grpc), repository, server)


@contextlib.contextmanager
def log_folder() -> Iterator[Path]:
    """A folder for logs and recordings. It is removed, unless the run failed and the logs say why."""
    folder = Path(tempfile.mkdtemp(prefix="clickbert-load-"))
    keep = False
    try:
        yield folder
    except BenchmarkError:
        keep = True
        raise
    except ServingError:  # before tritonserver was started its log is empty
        keep = any(path.is_file() and path.stat().st_size for path in folder.iterdir())
        raise
    finally:
        if not keep:
            shutil.rmtree(folder)


def published_version(repository: Path, model: str) -> Path:
    """The folder of a model's newest published version. Raises BenchmarkError if there is none."""
    version = versions.newest(repository, model)
    if version is None:
        raise BenchmarkError(f"{repository / model} has no published version; publish one with `python -m export`")
    return version


def copy_model(repository: Path, model: str, copy: Path) -> Path:
    """Copies a model's config and newest version to another repository; returns the version's folder there."""
    version = published_version(repository, model)
    shutil.copytree(repository / model, copy / model, ignore=shutil.ignore_patterns("[0-9]*"))
    return Path(shutil.copytree(version, copy / model / version.name))
