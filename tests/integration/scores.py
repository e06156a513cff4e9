"""What a served model should answer, and how many executions its answers took."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import tritonclient.grpc as triton

from benchmarks.load_gen.metrics import total
from clickbert import Ranker
from finetune.checkpoint.load import label_names, load_checkpoint
from finetune.data.clicklog import ClickRow
from finetune.evaluation.metrics import click_probability
from finetune.evaluation.scoring import score_rows
from serving.backends.packed_cpu.figures import PERIOD
from serving.server import Server
from tests.processes import children, paused
from tests.waiting import eventually

Answer = TypeVar("Answer")
PATIENCE = 60  # seconds that a call may take: these tests are about answers, and the machine may be busy
LONGEST_PAUSE = 0.5  # seconds; Triton gives up a backend that is stopped for a second, and crashes when it goes on


def in_pytorch(checkpoint: Path, rows: list[ClickRow]) -> np.ndarray:
    """Click probabilities of the checkpoint itself."""
    model, tokenizer, max_length = load_checkpoint(checkpoint)
    return click_probability(score_rows(model, tokenizer, rows, max_length), label_names(model))


def as_rows(pairs: list[tuple[str, str]]) -> list[ClickRow]:
    return [ClickRow(group="g", query=query, document=document, clicks=0, impressions=1) for query, document in pairs]


class Executions:
    """Counts a model's executions from now on: chunks, or, of a model that has none, what Triton counts."""

    def __init__(self, server: Server, model: str = "clickbert_onnx") -> None:
        self.server = server
        self.client = triton.InferenceServerClient(server.addresses.grpc)
        self.model = model
        time.sleep(3 * PERIOD)  # what was asked before is counted by then
        self.before = self.counts()

    def counts(self) -> tuple[int, int]:
        figures = self.server.metrics()
        if requests := total(figures, "clickbert_requests_total", model=self.model):
            return int(total(figures, "clickbert_chunks_total", model=self.model)), int(requests)
        statistics = self.client.get_inference_statistics(self.model).model_stats[0]
        return statistics.execution_count, statistics.inference_count

    def of(self, requests: int) -> int:
        """How many executions so many requests took. (They are counted after the answer.)"""
        eventually(lambda: self.counts()[1] - self.before[1] >= requests)
        return self.counts()[0] - self.before[0]


def waiting_requests(server: Server, model: str = "clickbert_onnx") -> int:
    """How many requests are in the model's queue."""
    return int(total(server.metrics(), "nv_inference_pending_request_count", model=model))


def pile_up(server: Server, model: str, wanted: int) -> bool:
    """Waits until so many requests are in the queue, but not for long; whether there are two, which can be merged."""
    until = time.monotonic() + LONGEST_PAUSE
    while (waiting := waiting_requests(server, model)) < wanted and time.monotonic() < until:
        time.sleep(0.02)
    return waiting > 1


def call_at_once(server: Server, model: str, calls: Sequence[Callable[[], Answer]], at_a_time: int) -> list[Answer]:
    """The answers to calls that are made so many at a time; the first of them pile up in the queue, and are merged."""
    assert server.process
    answers: list[Future[Answer]] = []
    with ThreadPoolExecutor(at_a_time) as pool:
        while True:
            with paused(children(server.process.pid)):
                answers = answers or [pool.submit(call) for call in calls]
                if pile_up(server, model, at_a_time // 2):
                    break
            assert not all(answer.done() for answer in answers), "the calls came one by one: nothing was merged"
            time.sleep(LONGEST_PAUSE)  # Triton must see that it works
        return [answer.result() for answer in answers]


def score_at_once(server: Server, model: str, pairs: list[tuple[str, str]]) -> tuple[np.ndarray, int]:
    """The scores of pairs that are asked for one by one, 24 at a time; and how many executions they took."""
    with Ranker(server.addresses.grpc, model=model, timeout=PATIENCE) as ranker:
        ranker.score_pairs(pairs[:1])  # fetches the tokenizer
        executions = Executions(server, model)
        scores = call_at_once(server, model, [partial(ranker.score_pairs, [pair]) for pair in pairs], 24)
    return np.concatenate(scores), executions.of(len(pairs))
