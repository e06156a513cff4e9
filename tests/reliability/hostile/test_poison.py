"""17: poison among good requests: of 10,000 each gets its own answer, while others send what is malformed all along."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
import pytest
from tritonclient.grpc import service_pb2

from benchmarks.load_gen.metrics import total
from release.names import COUNT_INPUTS, LOGITS, MODEL_FILE, ONNX_MODEL, REQUEST_INPUTS
from serving.server import Server
from tests.figures import Figures
from tests.integration.scores import PATIENCE
from tests.integration.test_scheduling import draw
from tests.reliability.hostile.raw import GOOD, SERVICE, TOLERANCE, message
from tests.reliability.hostile.test_wrong_requests import wrong_batches, wrong_tensors, wrong_values
from tests.serving.busy_cores import waiting_in_the_schedule
from tests.waiting import eventually

REQUESTS = 10_000
CALLERS, POISONERS = 100, 4
CANCELLED = 0.1  # of the requests
LENGTHS = REQUEST_INPUTS[-1]


def in_process(graph: Path, requests: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    """What the graph itself answers, of many requests at a time."""
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    answers: list[np.ndarray] = []
    for batch in (requests[first : first + 50] for first in range(0, len(requests), 50)):
        feed = {name: np.concatenate([request[name][0] for request in batch]) for name in REQUEST_INPUTS}
        for count, name in zip(COUNT_INPUTS, REQUEST_INPUTS, strict=True):
            feed[count] = np.array([request[name].size for request in batch], np.int32)
        (logits,) = session.run([LOGITS], feed)
        answers += np.split(logits, np.cumsum([request[LENGTHS].size for request in batch])[:-1])
    return answers


def answered(server: Server) -> float:
    """How many requests the backend has answered, by its own figures."""
    return total(server.metrics(), "clickbert_requests_total", model=ONNX_MODEL, outcome="answered")


async def ask_all(url: str, requests: list[bytes], patience: list[float | None]) -> list[np.ndarray | None]:
    """The logits of each request, None for one that was given up after its seconds of patience."""
    found: list[np.ndarray | None] = [None] * len(requests)
    turns = iter(range(len(requests)))
    async with grpc.aio.insecure_channel(url) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")

        async def caller() -> None:
            for number in turns:
                try:
                    async with asyncio.timeout(patience[number]):
                        answer = service_pb2.ModelInferResponse.FromString(
                            await infer(requests[number], timeout=PATIENCE)
                        )
                except TimeoutError:
                    assert patience[number] is not None
                    continue
                found[number] = np.frombuffer(answer.raw_output_contents[0], np.float32)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return found


async def poison_all_along(url: str, poison: list[bytes], stop: asyncio.Event) -> int:
    """Sends poison on a connection of its own until it is to stop; returns how much was refused. All must be."""
    refused = 0
    async with grpc.aio.insecure_channel(url, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        while not stop.is_set():
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await infer(poison[refused % len(poison)], timeout=PATIENCE)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
            refused += 1
    return refused


@pytest.mark.reliability
def test_of_ten_thousand_requests_among_poison_each_gets_its_own_answer(
    published_server: Server, published_repository: Path, figures: Figures
) -> None:
    chance = random.Random(5)
    requests = [draw(chance, number) for number in range(REQUESTS)]
    expected = in_process(published_repository / ONNX_MODEL / "1" / MODEL_FILE, requests)
    tensors = ({name: array[0].tolist() for name, array in each.items()} for each in requests)
    sent = [as_bytes(message(ONNX_MODEL, each)) for each in tensors]
    patience = [chance.random() * 0.02 if chance.random() < CANCELLED else None for _ in requests]
    cases = [*wrong_values(ONNX_MODEL, GOOD, (LENGTHS,)), *wrong_batches(ONNX_MODEL, GOOD)]
    cases += wrong_tensors(ONNX_MODEL, GOOD)
    # Not those of megabytes: their copies in this process would take the time that the good ones need.
    poison = [data for data in (as_bytes(case.request) for case in cases) if len(data) < 10_000]
    chance.shuffle(poison)
    url, before = published_server.addresses.grpc, answered(published_server)

    async def run() -> tuple[list[np.ndarray | None], int]:
        stop = asyncio.Event()
        poisoners = [asyncio.create_task(poison_all_along(url, poison, stop)) for _ in range(POISONERS)]
        try:
            found = await ask_all(url, sent, patience)
        finally:
            stop.set()
        return found, sum(await asyncio.gather(*poisoners))

    found, refused = asyncio.run(run())
    given_up = sum(answer is None for answer in found)
    wrong = sum(
        answer is not None and not np.allclose(answer, right[:, 0], atol=TOLERANCE)
        for answer, right in zip(found, expected, strict=True)
    )
    figures.exactly(17, f"wrong or swapped answers, of {REQUESTS - given_up:,} different requests", wrong, 0)
    figures.at_least(17, "poison sent meanwhile by other callers, all refused", refused, REQUESTS / 20)
    figures.only_told(17, "requests given up by their callers meanwhile", given_up)
    assert given_up > 0
    # No two are alike, so an answer that was swapped would have been a wrong one.
    assert len({answer.tobytes() for answer in found if answer is not None}) == REQUESTS - given_up
    # None was computed twice. (What was given up may have been answered all the same.)
    eventually(lambda: waiting_in_the_schedule(published_server, ONNX_MODEL) == 0)
    eventually(lambda: answered(published_server) - before >= REQUESTS - given_up)
    assert answered(published_server) - before <= REQUESTS


def as_bytes(request: Any) -> bytes:
    return bytes(request.SerializeToString())
