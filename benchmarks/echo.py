"""What a ranking costs beside the model: the client's own time, with a real server on a model that only echoes.

    python -m benchmarks echo
    python -m benchmarks echo --repository model_repository --data my-clicks.jsonl.gz

The server has the published tokenizer and, in place of the click model, a graph with the same inputs whose logits are
the pairs' lengths. One ranking of 20 candidates at a time, its parts timed in the client, the server's own time as
Triton counts it: queue and computation. All the rest is the client's overhead, Triton's handling of gRPC included.
With the stand-in backend that count runs on for a moment after the answer has left, which makes the overhead look
smaller; so there is a second way to it: an empty gRPC call, plus the parts that are the client's alone.

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
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tritonclient.grpc as triton
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2

from benchmarks.load_gen.workload import Request, newest_version, read_requests
from benchmarks.measure.stats import machine
from clickbert import AsyncRanker, Ranker
from clickbert.protocol import DEFAULT_MODEL, LENGTHS, LOGITS, TOKENIZER_MODEL, InferRequest, InferResponse
from clickbert.transport import GrpcTransport, infer_message, read_answer
from serving.server import Addresses, Server

CANDIDATES = 20
WARM_UP, CALLS = 100, 1000
IN_FLIGHT = 64
TIMEOUT = 60.0  # seconds: how long a call takes on a busy machine is a figure, no error

TOTAL, SERVER, OVERHEAD, EMPTY = "total", "server's own", "client's overhead", "empty gRPC call"
PARTS = ("tokenize and pack", "build the request", "gRPC round trip", "unpack and rank")


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
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="with a published version")
    parser.add_argument("--data", type=Path, default=Path("data/sample/test.jsonl"), help="click log (.jsonl[.gz])")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints a table and returns the figures.

    Raises:
        ClickLogError: the click log cannot be used.
        WorkloadError: the repository has no published tokenizer.
        ServingError: the server could not be started.
    """
    requests = read_requests(options.data, CANDIDATES)
    with tempfile.TemporaryDirectory(prefix="clickbert-echo-") as folder:
        echo, log_file = Path(folder) / "repository", Path(folder) / "triton.log"
        make_repository(options.repository, echo)
        with log_file.open("wb") as log, Server(echo, Addresses.free(), log=log) as server:
            figures = measure_calls(server.addresses.grpc, requests)
            together = asyncio.run(measure_together(server.addresses.grpc, requests))
    print(table(figures["ms"]))
    print(f"a request's message: {figures['message_bytes']:.0f} bytes, {figures['tensor_bytes']:.0f} of them tensors")
    print(
        f"{IN_FLIGHT} calls in flight: {together['calls_per_s']:.0f} calls/s, "
        f"{together['client_cpu_ms']:.2f} ms of the client's CPU each"
    )
    return {"candidates": CANDIDATES, **figures, "in_flight": {str(IN_FLIGHT): together}, "machine": machine()}


def make_repository(source: Path, target: Path) -> None:
    """Makes a model repository of the newest tokenizer in `source`, and of an echo under the click model's name.

    Raises:
        WorkloadError: no tokenizer is published.
    """
    published = newest_version(source, TOKENIZER_MODEL)
    for model in (TOKENIZER_MODEL, DEFAULT_MODEL):
        shutil.copytree(source / model, target / model, ignore=shutil.ignore_patterns("[0-9]*"))
    shutil.copytree(published, target / TOKENIZER_MODEL / published.name)
    config_file = target / DEFAULT_MODEL / "config.pbtxt"
    config = text_format.Parse(config_file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    (target / DEFAULT_MODEL / published.name).mkdir()
    onnx.save(echo_graph(config), target / DEFAULT_MODEL / published.name / "model.onnx")


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


def measure_calls(url: str, requests: Sequence[Request]) -> dict[str, Any]:
    """Ranks one request after another, WARM_UP and then CALLS of them, with the server to itself.

    Returns:
        "ms": milliseconds of TOTAL, its PARTS, SERVER, OVERHEAD (TOTAL less SERVER) and EMPTY, each "median", "p99" and
        "mean"; "message_bytes" and "tensor_bytes": the means of a request's message, and of the tensors in it.
    """
    watch = Stopwatch(url)
    names = (TOTAL, *PARTS, SERVER, OVERHEAD, EMPTY)
    seconds: list[tuple[float, ...]] = []
    sizes: list[tuple[int, int]] = []
    turns = itertools.islice(itertools.cycle(requests), WARM_UP + CALLS)
    with Ranker(url, timeout=TIMEOUT, transport=watch) as ranker, triton.InferenceServerClient(url) as statistics:
        for request in turns:
            count, before = counted(statistics)
            began = time.perf_counter()
            ranker.rank(request.query, request.documents)
            ended = time.perf_counter()
            answered = count
            while answered == count:  # Triton counts a request behind its answer
                answered, after = counted(statistics)
            own = after - before
            clock = (began, *watch.marks, ended)
            parts = [end - begin for begin, end in itertools.pairwise(clock)]
            empty = time.perf_counter()
            statistics.is_server_live()
            empty = time.perf_counter() - empty
            seconds.append((ended - began, *parts, own, ended - began - own, empty))
            sizes.append((watch.message.ByteSize(), sum(map(len, watch.message.raw_input_contents))))
    ms = 1000 * np.array(seconds[WARM_UP:])
    message_bytes, tensor_bytes = np.mean(sizes[WARM_UP:], axis=0).tolist()
    return {
        "ms": {name: spread(column) for name, column in zip(names, ms.T, strict=True)},
        "message_bytes": message_bytes,
        "tensor_bytes": tensor_bytes,
    }


def spread(values: np.ndarray[Any, Any]) -> dict[str, float]:
    """Median, 99th percentile and mean."""
    median, p99 = np.percentile(values, [50, 99])
    return {"median": float(median), "p99": float(p99), "mean": float(values.mean())}


def counted(statistics: Any) -> tuple[int, float]:
    """How many of the click model's requests Triton has counted, and their seconds: in the queue, and computing."""
    stats = statistics.get_inference_statistics(DEFAULT_MODEL).model_stats[0].inference_stats
    steps = (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)
    return stats.success.count, sum(step.ns for step in steps) / 1e9


async def measure_together(url: str, requests: Sequence[Request]) -> dict[str, float]:
    """Ranks CALLS requests with IN_FLIGHT of them at once, from one process.

    Returns:
        "calls_per_s", and "client_cpu_ms": this process's CPU time for each call.
    """
    turns = itertools.islice(itertools.cycle(requests), CALLS)
    async with AsyncRanker(url, timeout=TIMEOUT) as ranker:

        async def work() -> None:
            for request in turns:
                await ranker.rank(request.query, request.documents)

        await ranker.rank(requests[0].query, requests[0].documents)
        began, began_cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
        took, took_cpu = time.perf_counter() - began, time.process_time() - began_cpu
    return {"calls_per_s": CALLS / took, "client_cpu_ms": 1000 * took_cpu / CALLS}


def table(figures: dict[str, dict[str, float]]) -> str:
    """A line for each part of a call."""
    lines = [f"{f'{CANDIDATES} candidates':<20}{'median ms':>12}{'p99 ms':>12}"]
    lines += [f"{name:<20}{part['median']:>12.2f}{part['p99']:>12.2f}" for name, part in figures.items()]
    return "\n".join(lines)
