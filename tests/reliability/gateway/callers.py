"""Callers through the gateway: threads that ask as fast as they are answered, and remember what came of each request.

They speak gRPC without the client's library and its retries, so that what they see is the gateway's own doing. Each
request has an identifier, which Triton repeats in its answer, and scores that are known.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from tests.gateways import WITH_TOKEN, Gateway
from tests.integration.scores import PATIENCE


@dataclass(frozen=True)
class Outcome:
    """What came of one request: when it was sent and over, and an error, if it was one."""

    identifier: str
    answered_as: str
    start: float
    end: float
    error: str = ""
    is_right: bool = True


def requests(count: int = 40) -> list[service_pb2.ModelInferRequest]:
    """Packed requests of 1 to 32 pairs, each of other tokens."""
    chance = random.Random(0)
    made = []
    for number in range(count):
        pairs = [
            [2, 5 + number, 3, *chance.choices(range(5, 100), k=chance.randint(1, 40)), 3]
            for _ in range(1 + number % 32)
        ]
        lengths = [len(pair) for pair in pairs]
        tokens = list(itertools.chain(*pairs))
        types = list(itertools.chain(*([0] * 3 + [1] * (length - 3) for length in lengths)))
        message = service_pb2.ModelInferRequest(model_name="clickbert_onnx")
        for name, values in (("input_ids", tokens), ("token_type_ids", types), ("lengths", lengths)):
            message.inputs.add(name=name, datatype="INT32", shape=[1, len(values)])
            message.raw_input_contents.append(np.array(values, np.int32).tobytes())
        made.append(message)
    return made


def logits(answer: service_pb2.ModelInferResponse) -> np.ndarray:
    return np.frombuffer(answer.raw_output_contents[0], np.float32)


class Callers:
    """Threads that ask through a gateway. The scores that they expect are those that it gives before."""

    def __init__(self, gateway: Gateway, threads: int) -> None:
        self.gateway, self.threads = gateway, threads
        self.messages = requests()
        stub = gateway.stub()
        self.expected = [logits(stub.ModelInfer(each, timeout=PATIENCE, metadata=WITH_TOKEN)) for each in self.messages]
        self.sent: list[str] = []  # the requests' identifiers
        self.outcomes: list[Outcome] = []
        self.stopping = threading.Event()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """They ask inside the block; after it, every request has come to its end."""
        with ThreadPoolExecutor(self.threads) as pool:
            asking = [pool.submit(self.ask, number) for number in range(self.threads)]
            try:
                yield
            finally:
                self.stopping.set()
        for each in asking:
            each.result()  # an error of the caller's own is none of the gateway's

    def ask(self, thread: int) -> None:
        stub = self.gateway.stub()
        for number in itertools.count():
            if self.stopping.is_set():
                return
            which = (thread * 7 + number) % len(self.messages)
            message = service_pb2.ModelInferRequest()
            message.CopyFrom(self.messages[which])
            message.id = f"{thread}-{number}"
            start = time.monotonic()
            self.sent.append(message.id)
            try:
                answer = stub.ModelInfer(message, timeout=PATIENCE, metadata=WITH_TOKEN)
            except grpc.RpcError as exc:
                error = f"{exc.code().name}: {exc.details()}"
                self.outcomes.append(Outcome(message.id, "", start, time.monotonic(), error))
                continue
            is_right = bool(np.allclose(logits(answer), self.expected[which], atol=1e-5))
            self.outcomes.append(Outcome(message.id, answer.id, start, time.monotonic(), "", is_right))

    @property
    def errors(self) -> list[str]:
        return [each.error for each in self.outcomes if each.error]

    @property
    def swapped(self) -> int:
        """How many answers were not their request's: another identifier, or other scores."""
        answered = [each for each in self.outcomes if not each.error]
        return sum(each.answered_as != each.identifier or not each.is_right for each in answered)

    def longest(self, since: float) -> float:
        """The seconds of the longest call that ended after this."""
        return max((each.end - each.start for each in self.outcomes if each.end > since), default=0.0)
