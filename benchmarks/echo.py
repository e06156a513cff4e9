"""What a ranking costs apart from the model: the client's own time, with a real server on a model that only echoes.

    python -m benchmarks echo
    python -m benchmarks echo --repository model_repository --data my-clicks.jsonl.gz

The server has the published tokenizer and, in place of the click model, a graph with the same inputs whose logits are
the pairs' lengths, computed whole: of chunks Triton would not know the time. Rankings of 20 candidates, one at a time:
the parts are timed in the client, the server's own time (queue and computation) is Triton's count. The rest is the
client's overhead and Triton's handling of gRPC. Triton's count runs on for a moment after the answer has left, which
makes the overhead look smaller; the second way to it is an empty gRPC call plus the parts that are the client's alone.

Then as many rankings as one process can do, 64 in flight. The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import onnx.parser
import tritonclient.grpc as triton
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from benchmarks.load_gen import target
from benchmarks.load_gen.target import Target, copy_model, log_folder, start_target
from benchmarks.load_gen.workload import Request, Selection
from benchmarks.measure.environment import find_environment
from benchmarks.measure.schema import Environment, Latency, dump
from benchmarks.measure.stats import summarize_latency
from benchmarks.report.tables import make_table, percentile_columns
from clickbert import AsyncRanker, Ranker
from clickbert.connection import Connection
from clickbert.wire.protocol import DEFAULT_MODEL, LENGTHS, LOGITS, TOKENIZER_MODEL, InferRequest, InferResponse
from clickbert.wire.transport import NO_HEADERS, GrpcTransport, infer_message, read_answer
from release.manifest import read_manifest, write_manifest
from release.names import CONFIG_FILE, MODEL_FILE

CANDIDATES = 20
IN_FLIGHT = 64
TIMEOUT = 60.0  # seconds: how long a call takes on a busy machine is a figure, not an error
EXPECTED = target.EXPECTED

TOTAL, SERVER, OVERHEAD, EMPTY = "total", "server's own", "client's overhead", "empty gRPC call"
PARTS = ("tokenize and pack", "build the request", "gRPC round trip", "unpack and rank")
NAMES = (TOTAL, *PARTS, SERVER, OVERHEAD, EMPTY)


@dataclass(frozen=True)
class EchoResult:
    """The JSON document. The first three are means of rankings one after another, the others of many at once."""

    candidates: int
    parts: dict[str, Latency]  # by NAMES; OVERHEAD is TOTAL less SERVER
    message_bytes: float
    tensor_bytes: float
    in_flight: int
    calls_per_second: float  # of one client process
    client_cpu_ms: float  # of a call
    environment: Environment


class Stopwatch(GrpcTransport):
    """A connection that notes when the steps of the last request were done, and the message that it sent."""

    marks: tuple[float, float, float]  # before the message was built, after that, when the answer was there
    message: Any

    def infer(self, request: InferRequest, *, timeout: float, headers: Mapping[str, str] = NO_HEADERS) -> InferResponse:
        """Send one request and return its answer."""
        began = time.perf_counter()
        self.message = infer_message(request, timeout)
        built = time.perf_counter()
        answer = self.send(self.message, timeout, headers)
        self.marks = began, built, time.perf_counter()
        return read_answer(answer)


def run(options: argparse.Namespace, calls: int = 1000, warm_up: int = 100) -> int:
    """Measures this many calls after the warm-up, and prints the figures.

    Raises:
        EXPECTED: the click log or the repository cannot be used, or the server could not be started.
    """
    requests = Selection(options.data, CANDIDATES).read()
    with log_folder() as scratch:
        make_repository(options.repository, scratch / "repository")
        with start_target(scratch / "repository", scratch) as server:
            parts, message_bytes, tensor_bytes = measure_alone(server, requests, calls, warm_up)
            per_second, cpu_ms = asyncio.run(measure_together(server.connection, requests, calls))
    columns: dict[str, Callable[[str], str]] = {
        f"{CANDIDATES} candidates": str,
        **percentile_columns(lambda name: parts[name], digits=2),
    }
    print(make_table(columns, NAMES).text())
    print(f"a request's message: {message_bytes:.0f} bytes, {tensor_bytes:.0f} of them tensors")
    print(f"{IN_FLIGHT} calls in flight: {per_second:.0f} calls/s, {cpu_ms:.2f} ms of the client's CPU each")
    environment = find_environment()
    print(dump(EchoResult(CANDIDATES, parts, message_bytes, tensor_bytes, IN_FLIGHT, per_second, cpu_ms, environment)))
    return 0


def make_repository(source: Path, copy: Path) -> None:
    """Makes a model repository of the newest tokenizer, and of an echo under the click model's name."""
    version = copy_model(source, TOKENIZER_MODEL, copy)
    folder = copy_model(source, DEFAULT_MODEL, copy)
    config = text_format.Parse(
        (folder.parent / CONFIG_FILE).read_text(encoding="utf-8"), model_config_pb2.ModelConfig()
    )
    shutil.rmtree(folder)  # its config and warm-up stay
    # Requests are computed whole, before the backend returns: Triton counts their time.
    for name in ("chunk_by", "prefix_lengths", "prefix_shares"):
        if name in config.parameters:
            del config.parameters[name]
    (folder.parent / CONFIG_FILE).write_text(text_format.MessageToString(config), encoding="utf-8")
    graph = folder.parent / version.name / MODEL_FILE  # in the tokenizer's version, as the client expects
    graph.parent.mkdir()
    onnx.save(echo_graph(config), graph)
    write_manifest(graph.parent, replace(read_manifest(version), model=DEFAULT_MODEL))


def echo_graph(config: Any) -> onnx.ModelProto:
    """A graph with the inputs and the output of a click model's config; a pair's logits are its length / 1000."""
    names = [entry.name for entry in config.input] + [entry.target_name[0] for entry in config.batch_input]
    inputs, labels = ", ".join(f"int32[{name}_size] {name}" for name in names), int(config.output[0].dims[-1])
    weights = ", ".join(["0.001"] * labels)
    return onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["": 18]>
        echo ({inputs}) => (float[{LENGTHS}_size, {labels}] {LOGITS})
        <int64[2] column = {{-1, 1}}, float[1, {labels}] weights = {{{weights}}}> {{
            numbers = Cast<to = 1>({LENGTHS})
            rows = Reshape(numbers, column)
            {LOGITS} = MatMul(rows, weights)
        }}""")


def measure_alone(
    server: Target, requests: Sequence[Request], calls: int, warm_up: int
) -> tuple[dict[str, Latency], float, float]:
    """Ranks one request after another: the times by NAMES, the mean bytes of a message and of the tensors in it."""
    watch = Stopwatch(server.connection)
    rows: list[tuple[float, ...]] = []
    with (
        Ranker(server.connection, timeout=TIMEOUT, transport=watch) as ranker,
        triton.InferenceServerClient(**server.connection.tritonclient_arguments) as client,
    ):
        for request in itertools.islice(itertools.cycle(requests), warm_up + calls):
            before = after = server.count_executions(DEFAULT_MODEL)
            began = time.perf_counter()
            ranker.rank(request.query, request.documents)
            ended = time.perf_counter()
            while after.requests == before.requests:  # Triton counts a request after its answer
                after = server.count_executions(DEFAULT_MODEL)
            own = after.queue + after.compute - before.queue - before.compute
            parts = [end - begin for begin, end in itertools.pairwise((began, *watch.marks, ended))]
            began_empty = time.perf_counter()
            client.is_server_live()
            empty = time.perf_counter() - began_empty
            sizes = watch.message.ByteSize(), sum(map(len, watch.message.raw_input_contents))
            rows.append((ended - began, *parts, own, ended - began - own, empty, *sizes))
    *columns, message_bytes, tensor_bytes = np.array(rows[warm_up:]).T.tolist()
    latencies = {name: summarize_latency(seconds) for name, seconds in zip(NAMES, columns, strict=True)}
    shown = {name: latency for name, latency in latencies.items() if latency}
    return shown, fmean(message_bytes), fmean(tensor_bytes)


async def measure_together(connection: Connection, requests: Sequence[Request], calls: int) -> tuple[float, float]:
    """Ranks with IN_FLIGHT requests at once, from one process: calls a second, and milliseconds of CPU for each."""
    turns = itertools.islice(itertools.cycle(requests), calls)
    async with AsyncRanker(connection, timeout=TIMEOUT) as ranker:

        async def work() -> None:
            for request in turns:
                await ranker.rank(request.query, request.documents)

        await ranker.rank(requests[0].query, requests[0].documents)
        began, began_cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    return calls / seconds, 1000 * cpu_seconds / calls
