"""What others do to a server must not hurt its callers: connections that never end, and messages far too large."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from clickbert import Ranker
from release.names import ONNX_MODEL
from serving.server import Server
from tests.figures import Figures
from tests.integration.scores import PATIENCE
from tests.reliability.hostile import slow_clients
from tests.tiny import WORDS

EACH = 40  # connections of each kind
TURNS, SECONDS = 6, 2.0
DOCUMENTS = [" ".join(WORDS[first : first + 20]) for first in range(8)]
OVERSIZE = 128_000_000  # bytes; a request may have 65,536 tokens, 0.5 MB


@contextmanager
def held_connections(server: Server) -> Iterator[subprocess.Popen[str]]:
    """Within the block they are there; all of them at its end still."""
    command = [sys.executable, slow_clients.__file__, str(server.addresses.grpc_port), str(EACH)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdin
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield process
            print(file=process.stdin, flush=True)
            assert int(process.stdout.readline()) == EACH * len(slow_clients.KINDS)
        finally:
            process.kill()


def latencies(ranker: Ranker) -> list[float]:
    """Milliseconds of one call after another, for a turn."""
    found, end = [], time.perf_counter() + SECONDS
    while (began := time.perf_counter()) < end:
        ranker.rank("w1 w2", DOCUMENTS)
        found.append(1000 * (time.perf_counter() - began))
    return found


@pytest.mark.reliability
def test_slow_and_half_open_clients_cost_the_others_nothing(published_server: Server, figures: Figures) -> None:
    """In turns with and without them, since other work on the machine moves the p99."""
    alone, beside = [], []
    with Ranker(published_server.addresses.grpc, timeout=PATIENCE) as ranker:
        latencies(ranker)
        for _ in range(TURNS):
            alone.append(latencies(ranker))
            with held_connections(published_server):
                beside.append(latencies(ranker))
    without, with_them = (median(np.percentile(turn, 99) for turn in turns) for turns in (alone, beside))
    figures.only_told(11, "connections that never end", EACH * len(slow_clients.KINDS), "connections")
    figures.only_told(11, "p99 of others without them", without, "ms")
    figures.at_most(11, "p99 of others with them, by that without", with_them / without, 1.5, "times")


def test_a_message_far_too_large_is_refused_and_the_next_call_is_answered(
    published_server: Server, figures: Figures
) -> None:
    """Straight at Triton, which takes 2 GB: gRPC's length field ends there, and no flag says less."""
    unlimited = [("grpc.max_send_message_length", -1)]
    message = service_pb2.ModelInferRequest(model_name=ONNX_MODEL)
    for name, elements in (("input_ids", OVERSIZE // 4), ("token_type_ids", 5), ("lengths", 1)):
        message.inputs.add(name=name, datatype="INT32", shape=[1, elements])
        message.raw_input_contents.append(np.full(elements, 5, np.int32).tobytes())
    with (
        Ranker(published_server.addresses.grpc, timeout=PATIENCE) as ranker,
        grpc.insecure_channel(published_server.addresses.grpc, unlimited) as channel,
    ):
        expected = ranker.rank("w1", DOCUMENTS)
        with pytest.raises(grpc.RpcError) as caught:
            service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=PATIENCE)
        began = time.monotonic()
        assert ranker.rank("w1", DOCUMENTS) == expected
        seconds = time.monotonic() - began
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"input 'input_ids' has {OVERSIZE // 4} elements, at most 65536 are allowed; split it" in str(caught.value)
    figures.only_told(12, "bytes of the message", OVERSIZE, "bytes")
    figures.at_most(12, "the next call's answer takes", seconds, 2, "s")
