"""The scheduler on the real server: answers are their callers' own, what is given up is dropped, versions drain."""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from benchmarks.load_gen.metrics import total
from clickbert import Ranker, ServerOverloadedError, ServerTimeoutError
from clickbert.wire.protocol import InferRequest
from clickbert.wire.transport import AsyncGrpcTransport
from release.names import LOGITS, ONNX_MODEL, REQUEST_INPUTS
from serving.backends.packed_cpu.figures import PERIOD
from serving.server import Server
from tests.integration.scores import PATIENCE, as_rows, in_pytorch
from tests.published import load_newest, publish, serve
from tests.serving.busy_cores import busy_cores, give_up, needs_bound_cores, waiting_in_the_schedule
from tests.tiny import WORDS, make_checkpoint
from tests.waiting import eventually

IDS, TYPES, LENGTHS = REQUEST_INPUTS
INT8_MODEL = "clickbert_onnx_int8"


def figure(server: Server, name: str, **labels: str) -> float:
    return total(server.metrics(), name, **labels)


def outcomes(server: Server, outcome: str) -> float:
    return figure(server, "clickbert_requests_total", model=ONNX_MODEL, outcome=outcome)


def draw(chance: random.Random, number: int) -> dict[str, np.ndarray]:
    """A request that no other is like: its first token ids spell its number."""
    lengths = [chance.randint(8, 48) for _ in range(chance.choice([1, 1, 2, 4, 8, 32]))]
    ids = [chance.randint(5, 40) for _ in range(sum(lengths))]
    ids[1:6] = [5 + int(digit) for digit in f"{number:05d}"]
    types = [place >= length // 2 for length in lengths for place in range(length)]
    values = (ids, types, lengths)
    return {name: np.array([each], np.int32) for name, each in zip(REQUEST_INPUTS, values, strict=True)}


@needs_bound_cores
def test_a_call_that_is_given_up_is_not_computed(published_server: Server) -> None:
    request = InferRequest(ONNX_MODEL, "", draw(random.Random(1), 1), (LOGITS,))
    chunks = chunks_of(published_server)  # it waits until the figures of what was asked before are out
    cancelled = outcomes(published_server, "cancelled")

    with busy_cores(published_server):
        asyncio.run(give_up(published_server, request))
        time.sleep(1)  # until Triton has heard of it
    eventually(lambda: outcomes(published_server, "cancelled") == cancelled + 1)
    assert chunks_of(published_server) == chunks
    size = request.inputs[IDS].size
    assert figure(published_server, "clickbert_elements_dropped_total", model=ONNX_MODEL, outcome="cancelled") >= size


def chunks_of(server: Server) -> float:
    time.sleep(3 * PERIOD)
    return figure(server, "clickbert_chunks_total", model=ONNX_MODEL)


@needs_bound_cores
def test_a_call_whose_deadline_passes_is_not_computed(published_server: Server, ranker: Ranker) -> None:
    ranker.rank("w1", ["w2"])
    chunks = chunks_of(published_server)
    expired = outcomes(published_server, "expired")
    with Ranker(published_server.addresses.grpc, timeout=1.0) as impatient:
        impatient.rank("w1", ["w2"])  # fetches the tokenizer
        with busy_cores(published_server):
            with pytest.raises(ServerTimeoutError):
                impatient.rank("w1", ["w2", "w3"])
            eventually(lambda: outcomes(published_server, "expired") == expired + 1)
    assert chunks_of(published_server) == chunks + 1


@needs_bound_cores
def test_a_call_that_would_be_answered_too_late_is_refused_at_once(published_server: Server) -> None:
    large = draw(random.Random(2), 2) | {LENGTHS: np.full((1, 32), 48, np.int32)}
    large |= {name: np.full((1, 32 * 48), 7, np.int32) for name in (IDS,)}
    large |= {TYPES: np.tile(np.arange(48) > 20, 32)[np.newaxis].astype(np.int32)}

    async def run() -> None:
        transport = AsyncGrpcTransport(published_server.addresses.grpc)

        def send(timeout: float) -> asyncio.Task:
            return asyncio.create_task(transport.infer(InferRequest(ONNX_MODEL, "", large, (LOGITS,)), timeout=timeout))

        await send(PATIENCE)  # the pace is known
        with busy_cores(published_server):
            calls = [send(PATIENCE) for _ in range(300)]
            while waiting_in_the_schedule(published_server, ONNX_MODEL) < len(calls):
                await asyncio.sleep(0.1)
            wait = figure(published_server, "clickbert_waiting_seconds", model=ONNX_MODEL)
            began = time.monotonic()
            with pytest.raises(ServerOverloadedError, match="overloaded: the answer would take"):
                await send(wait / 2)
            assert time.monotonic() - began < wait / 2
        for call in calls:
            assert (await call).outputs[LOGITS].shape == (1, 32, 1)
        await transport.close()

    asyncio.run(run())


def ask_without_pause(ranker: Ranker, pairs: list, stop: threading.Event, check: Callable[[list], None]) -> int:
    """Asks until it is to stop; every answer is checked. Returns how many there were."""
    count = 0
    while not stop.is_set():
        check(ranker.score_pairs(pairs))
        count += 1
    return count


@pytest.mark.slow
def test_a_version_that_goes_answers_what_it_has_taken(
    published_checkpoint: Path, published_log: Path, published_repository: Path, tmp_path: Path
) -> None:
    ignored = shutil.ignore_patterns(INT8_MODEL)
    repository = shutil.copytree(published_repository, tmp_path / "repository", ignore=ignored)
    successor = make_checkpoint(tmp_path / "successor", seed=1, words=["new", *reversed(WORDS)])
    pairs = [("w1 w2", "w3 w4"), ("w5", "w6 w7 w8")] * 8
    right = [in_pytorch(checkpoint, as_rows(pairs)) for checkpoint in (published_checkpoint, successor)]
    seen: Counter[int] = Counter()

    def check(scores: list) -> None:
        (version,) = [number for number, own in enumerate(right) if np.allclose(scores, own, atol=1e-5)]
        seen[version] += 1

    stop = threading.Event()
    with serve(repository) as server, Ranker(server.addresses.grpc, timeout=PATIENCE) as ranker:
        with ThreadPoolExecutor(8) as pool:
            callers = [pool.submit(ask_without_pause, ranker, pairs, stop, check) for _ in range(8)]
            try:
                eventually(lambda: seen[0] > 20)
                publish(successor, repository, published_log)
                load_newest(server)
                eventually(lambda: seen[1] > 20)
            finally:
                stop.set()
            assert sum(caller.result(PATIENCE) for caller in callers) == seen.total()


def test_models_on_one_server_share_the_cores(published_server: Server) -> None:
    pairs = [(f"w1 w{number}", " ".join(WORDS[:30])) for number in range(32)]
    stop = threading.Event()
    rankers = [Ranker(published_server.addresses.grpc, model, timeout=PATIENCE) for model in (ONNX_MODEL, INT8_MODEL)]
    for ranker in rankers:
        ranker.score_pairs(pairs[:1])
    with ThreadPoolExecutor(16) as pool:
        callers = [
            pool.submit(ask_without_pause, ranker, pairs, stop, lambda _: None)
            for ranker in itertools.islice(itertools.cycle(rankers), 16)
        ]
        time.sleep(3)
        stop.set()
        counts = [caller.result(PATIENCE) for caller in callers]
    shares = [sum(counts[place::2]) / sum(counts) for place in (0, 1)]
    assert min(shares) > 0.25, "chunk by chunk in turns; chunks of INT8 and of fp32 take different times"
    for ranker in rankers:
        ranker.close()
