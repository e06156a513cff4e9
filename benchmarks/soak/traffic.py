"""What reaches a server in daily use, at once and without pause: each kind of caller is a thread that repeats itself.

All calls can be held back for a moment, so that something can be looked at when nobody calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks import BenchmarkError
from benchmarks.load_gen.workload import Request
from clickbert import (
    AsyncRanker,
    ClickBertError,
    InvalidInputError,
    Ranker,
    ServerOverloadedError,
    ServerTimeoutError,
)
from clickbert.connection import Connection

SEED = 3
PATIENT = 60.0  # seconds
IMPATIENT = 0.02  # seconds: many of these calls come too late
LONG = 100  # documents of the longest calls, which become several requests
AT_ONCE = 8  # calls of the asyncio caller, half of which are cancelled
TOLERANCE = 1e-4  # of a score: what shares a chunk with a request moves its last digits
REST = 0.5  # seconds in which a server drops what was cancelled, when nobody calls
PAUSE = 0.1  # seconds between two wrong calls, which never reach the server
# Seconds between two calls that are given up. Triton before 25.04 crashes now and then when a caller goes in the moment
# in which he is answered (triton-inference-server/server, issue 8034): without a pause, after some minutes.
RARELY = 1.0
LATE = (ServerOverloadedError, ServerTimeoutError)


@dataclass
class Tally:
    """How the calls ended. `faults`: the first of each kind that should not be, in words."""

    ends: Counter[str] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)


class Traffic:
    """Callers of one model.

    Args:
        connection: the server's.
        model: which one.
        requests: what is asked.
        expected: the scores of each request.
    """

    def __init__(
        self, connection: Connection, model: str, requests: Sequence[Request], expected: Sequence[Sequence[float]]
    ) -> None:
        self.connection, self.model = connection, model
        self.requests = list(zip(requests, expected, strict=True))
        self.tally = Tally()
        self.shared = Ranker(connection, model, timeout=PATIENT)
        self.changed = threading.Condition()
        self.calling, self.held, self.ended = 0, False, False
        callers = [self.rank, self.rank, self.rank_many, self.hurry, self.come_and_go, self.err, self.give_up]
        self.threads = [
            threading.Thread(target=self.repeat, args=(caller, random.Random(SEED + number)), daemon=True)
            for number, caller in enumerate(callers)
        ]

    def __enter__(self) -> Traffic:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self.changed:
            self.ended, self.held = True, False
            self.changed.notify_all()
        for thread in self.threads:
            thread.join(2 * PATIENT)
        self.shared.close()

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Within the block nobody calls, and the server has nothing to do."""
        with self.changed:
            self.held = True
            if not self.changed.wait_for(lambda: not self.calling, 2 * PATIENT):
                raise BenchmarkError(f"a call has not ended within {2 * PATIENT:.0f} s; see the server's log")
        time.sleep(REST)
        try:
            yield
        finally:
            with self.changed:
                self.held = False
                self.changed.notify_all()

    def repeat(self, call: Callable[[Request, Sequence[float]], None], chance: random.Random) -> None:
        """What a thread does until the end."""
        turns = itertools.cycle(chance.sample(self.requests, len(self.requests)))
        while True:
            with self.changed:
                self.changed.wait_for(lambda: not self.held)
                if self.ended:
                    return
                self.calling += 1
            name = call.__name__
            try:
                call(*next(turns))
            except Exception as exc:  # the caller goes on, and the soak fails at its end
                self.note(name, f"{name}: {traceback.format_exception_only(exc)[-1].strip()}")
            else:
                self.note(name, None)
            finally:
                with self.changed:
                    self.calling -= 1
                    self.changed.notify_all()

    def note(self, name: str, fault: str | None) -> None:
        """Counts a call."""
        with self.changed:
            self.tally.ends[name if fault is None else f"{name}, failed"] += 1
            if fault:
                self.tally.faults.setdefault(name, fault)

    def rank(self, request: Request, expected: Sequence[float]) -> None:
        """The usual call."""
        results = self.shared.rank(request.query, request.documents)
        check([each.score for each in sorted(results, key=lambda each: each.index)], expected)

    def rank_many(self, request: Request, expected: Sequence[float]) -> None:
        """A call of several requests, in pairs."""
        times = -(-LONG // len(request.documents))
        pairs = [(request.query, f"{document} {turn}") for turn in range(times) for document in request.documents]
        pairs += [(request.query, document) for document in request.documents]
        check(self.shared.score_pairs(pairs)[-len(expected) :], expected)

    def hurry(self, request: Request, expected: Sequence[float]) -> None:
        """One whose deadline often passes."""
        time.sleep(RARELY)
        with Ranker(self.connection, self.model, timeout=IMPATIENT) as ranker, contextlib.suppress(*LATE):
            ranker.rank(request.query, request.documents)

    def come_and_go(self, request: Request, expected: Sequence[float]) -> None:
        """A ranker for a single call."""
        with Ranker(self.connection, self.model, timeout=PATIENT) as ranker:
            ranker.rank(request.query, request.documents, top_k=1)

    def err(self, request: Request, expected: Sequence[float]) -> None:
        """A wrong call."""
        time.sleep(PAUSE)
        with contextlib.suppress(InvalidInputError):
            self.shared.rank(request.query, request.documents, top_k=-1)
            raise AssertionError("a wrong call was answered")

    def give_up(self, request: Request, expected: Sequence[float]) -> None:
        """Calls in asyncio, half of them cancelled."""
        time.sleep(RARELY)

        async def run() -> None:
            async with AsyncRanker(self.connection, self.model, timeout=PATIENT) as ranker:
                await ranker.rank(request.query, request.documents)  # fetches the tokenizer
                calls = [asyncio.create_task(ranker.rank(request.query, request.documents)) for _ in range(AT_ONCE)]
                await asyncio.sleep(0.005)
                for call in calls[::2]:
                    call.cancel()
                for end in await asyncio.gather(*calls, return_exceptions=True):
                    if isinstance(end, ClickBertError):
                        raise end

        asyncio.run(run())


def check(scores: Sequence[float], expected: Sequence[float]) -> None:
    """Raises AssertionError for scores that are another request's, or nobody's."""
    if not np.allclose(scores, expected, rtol=0, atol=TOLERANCE):
        raise AssertionError(f"wrong scores: {list(scores)[:3]}..., expected {list(expected)[:3]}...")
