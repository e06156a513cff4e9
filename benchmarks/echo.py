"""What a ranking costs beside the model: the client's own time, with a real server on a model that only echoes.

    python -m benchmarks echo
    python -m benchmarks echo --repository model_repository --data my-clicks.jsonl.gz

The server has the published tokenizer and, in place of the click model, a graph with the same inputs whose logits are
the pairs' lengths. Rankings of 20 candidates, one at a time: the parts are timed in the client, the server's own time
(queue and computation) is Triton's count. The rest is the client's overhead and Triton's handling of gRPC. With the
stand-in backend Triton's count runs on for a moment after the answer has left, which makes the overhead look smaller;
the second way to it is an empty gRPC call plus the parts that are the client's alone.

Then as many rankings as one process can do, 64 in flight. The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tritonclient.grpc as triton
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2

from benchmarks.load_gen import target
from benchmarks.load_gen.target import REPOSITORY, newest_version, start_target
from benchmarks.load_gen.workload import DATA, Request, Selection
from benchmarks.measure.environment import find_environment
from benchmarks.measure.schema import Environment, dump
from benchmarks.report.tables import make_table
from clickbert import AsyncRanker, Ranker
from clickbert.connection import Connection
from clickbert.protocol import DEFAULT_MODEL, LENGTHS, LOGITS, TOKENIZER_MODEL, InferRequest, InferResponse
from clickbert.transport import GrpcTransport, infer_message, read_answer

CANDIDATES = 20
IN_FLIGHT = 64
TIMEOUT = 60.0  # seconds: how long a call takes on a busy machine is a figure, not an error
EXPECTED = target.EXPECTED

TOTAL, SERVER, OVERHEAD, EMPTY = "total", "server's own", "client's overhead", "empty gRPC call"
PARTS = ("tokenize and pack", "build the request", "gRPC round trip", "unpack and rank")


@dataclass(frozen=True)
class PartTime:
    """Milliseconds of a part of a call."""

    median: float
    p99: float
    mean: float


@dataclass(frozen=True)
class AloneResult:
    """Rankings one after another.

    Attributes:
        ms: by name: TOTAL, its PARTS, SERVER, OVERHEAD (TOTAL less SERVER) and EMPTY.
        message_bytes, tensor_bytes: the means of a request's message, and of the tensors in it.
    """

    ms: dict[str, PartTime]
    message_bytes: float
    tensor_bytes: float


@dataclass(frozen=True)
class TogetherResult:
    """Rankings in flight at once, from one process, and the client's CPU time for each."""

    in_flight: int
    calls_per_second: float
    client_cpu_ms: float


@dataclass(frozen=True)
class EchoResult:
    """The JSON document."""

    candidates: int
    alone: AloneResult
    together: TogetherResult
    environment: Environment


class Stopwatch(GrpcTransport):
    """A connection that notes when the steps of the last request were done, and the message that it sent."""

    marks: tuple[float, float, float]  # before the message was built, after that, when the answer was there
    message: Any

    def infer(self, request: InferRequest, *, timeout: float) -> InferResponse:
        """Send one request and return its answer."""
        began = time.perf_counter()
        self.message = infer_message(request, timeout)
        built = time.perf_counter()
        answer = self.send(self.message, timeout)
        self.marks = began, built, time.perf_counter()
        return read_answer(answer)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="with a published version")
    parser.add_argument("--data", type=Path, default=DATA, help="click log (.jsonl[.gz])")


def run(options: argparse.Namespace, calls: int = 1000, warm_up: int = 100) -> int:
    """Measures so many calls after the warm-up, and prints the figures.

    Raises:
        EXPECTED: the click log or the repository cannot be used, or the server could not be started.
    """
    requests = Selection(options.data, CANDIDATES).read()
    with tempfile.TemporaryDirectory(prefix="clickbert-echo-") as scratch:
        repository = Path(scratch) / "repository"
        make_repository(options.repository, repository)
        with start_target(repository, Path(scratch)) as server:
            alone = measure_alone(server.connection, requests, calls, warm_up)
            together = asyncio.run(measure_together(server.connection, requests, calls))
    print(show_parts(alone))
    print(f"a request's message: {alone.message_bytes:.0f} bytes, {alone.tensor_bytes:.0f} of them tensors")
    print(
        f"{together.in_flight} calls in flight: {together.calls_per_second:.0f} calls/s, "
        f"{together.client_cpu_ms:.2f} ms of the client's CPU each"
    )
    print(dump(EchoResult(CANDIDATES, alone, together, find_environment())))
    return 0


def make_repository(source: Path, copy: Path) -> None:
    """Makes a model repository of the newest tokenizer in `source`, and of an echo under the click model's name.

    Raises:
        BenchmarkError: no tokenizer is published.
    """
    published = newest_version(source, TOKENIZER_MODEL)
    for model in (TOKENIZER_MODEL, DEFAULT_MODEL):
        shutil.copytree(source / model, copy / model, ignore=shutil.ignore_patterns("[0-9]*"))
    shutil.copytree(published, copy / TOKENIZER_MODEL / published.name)
    config_file = copy / DEFAULT_MODEL / "config.pbtxt"
    config = text_format.Parse(config_file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    (copy / DEFAULT_MODEL / published.name).mkdir()
    onnx.save(echo_graph(config), copy / DEFAULT_MODEL / published.name / "model.onnx")


def echo_graph(config: Any) -> onnx.ModelProto:
    """A graph with the inputs and the output of a click model's config; a pair's logits are its length / 1000."""
    names = [entry.name for entry in config.input] + [entry.target_name[0] for entry in config.batch_input]
    labels = int(config.output[0].dims[-1])
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Cast", [LENGTHS], ["numbers"], to=TensorProto.FLOAT),
                helper.make_node("Reshape", ["numbers", "column"], ["rows"]),
                helper.make_node("MatMul", ["rows", "weights"], [LOGITS]),
            ],
            "echo",
            [helper.make_tensor_value_info(name, TensorProto.INT32, [f"{name}_size"]) for name in names],
            [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, [f"{LENGTHS}_size", labels])],
            [
                numpy_helper.from_array(np.array([-1, 1]), "column"),
                numpy_helper.from_array(np.full((1, labels), 0.001, np.float32), "weights"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )


def measure_alone(connection: Connection, requests: Sequence[Request], calls: int, warm_up: int) -> AloneResult:
    """Ranks one request after another, with the server to itself."""
    watch = Stopwatch(connection)
    names = (TOTAL, *PARTS, SERVER, OVERHEAD, EMPTY)
    seconds: list[tuple[float, ...]] = []
    sizes: list[tuple[int, int]] = []
    turns = itertools.islice(itertools.cycle(requests), warm_up + calls)
    with (
        Ranker(connection, timeout=TIMEOUT, transport=watch) as ranker,
        triton.InferenceServerClient(**connection.tritonclient_arguments) as statistics,
    ):
        for request in turns:
            count, before = read_counts(statistics)
            began = time.perf_counter()
            ranker.rank(request.query, request.documents)
            ended = time.perf_counter()
            answered = count
            while answered == count:  # Triton counts a request after its answer
                answered, after = read_counts(statistics)
            own = after - before
            clock = (began, *watch.marks, ended)
            parts = [end - begin for begin, end in itertools.pairwise(clock)]
            empty = time.perf_counter()
            statistics.is_server_live()
            empty = time.perf_counter() - empty
            seconds.append((ended - began, *parts, own, ended - began - own, empty))
            sizes.append((watch.message.ByteSize(), sum(map(len, watch.message.raw_input_contents))))
    ms = 1000 * np.array(seconds[warm_up:])
    message_bytes, tensor_bytes = np.mean(sizes[warm_up:], axis=0).tolist()
    medians, p99s = np.percentile(ms, [50, 99], axis=0).tolist()
    columns = zip(medians, p99s, ms.mean(axis=0).tolist(), strict=True)
    parts_by_name = {name: PartTime(*column) for name, column in zip(names, columns, strict=True)}
    return AloneResult(parts_by_name, message_bytes, tensor_bytes)


def read_counts(statistics: Any) -> tuple[int, float]:
    """How many of the click model's requests Triton has counted, and their seconds: in the queue, and computing."""
    stats = statistics.get_inference_statistics(DEFAULT_MODEL).model_stats[0].inference_stats
    steps = (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)
    return stats.success.count, sum(step.ns for step in steps) / 1e9


async def measure_together(connection: Connection, requests: Sequence[Request], calls: int) -> TogetherResult:
    """Ranks with IN_FLIGHT requests at once, from one process."""
    turns = itertools.islice(itertools.cycle(requests), calls)
    async with AsyncRanker(connection, timeout=TIMEOUT) as ranker:

        async def work() -> None:
            for request in turns:
                await ranker.rank(request.query, request.documents)

        await ranker.rank(requests[0].query, requests[0].documents)
        began, began_cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
        took, took_cpu = time.perf_counter() - began, time.process_time() - began_cpu
    return TogetherResult(IN_FLIGHT, calls / took, 1000 * took_cpu / calls)


def show_parts(alone: AloneResult) -> str:
    """A line for each part of a call."""
    return make_table(
        {
            f"{CANDIDATES} candidates": lambda part: part[0],
            "median ms": lambda part: f"{part[1].median:.2f}",
            "p99 ms": lambda part: f"{part[1].p99:.2f}",
        },
        list(alone.ms.items()),
    ).text()
