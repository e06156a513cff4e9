"""How a batch gets its scores: sent again while the server is busy or away, and divided where a row is refused."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from clickbert.async_ranker import AsyncRanker
from clickbert.bulk.rows import JobError, Pair
from clickbert.bulk.window import Window
from clickbert.errors import (
    ConnectionFailedError,
    InvalidInputError,
    ProtocolError,
    ServerError,
    ServerOverloadedError,
    ServerTimeoutError,
    ServerUnavailableError,
)
from clickbert.telemetry.observer import Call

_PASSING = (ServerOverloadedError, ServerTimeoutError, ServerUnavailableError, ConnectionFailedError)
_REFUSALS = (InvalidInputError, ProtocolError, ServerError)  # themselves, not what is derived from them
_HARMLESS = ("a", "a")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds; doubled with each setback
_TOLD = 4  # setbacks before the user is told

_version: ContextVar[str] = ContextVar("version")


class Scored(NamedTuple):
    """What became of pairs, in their order: the score, or why the model refuses it; and which versions answered."""

    scores: list[float | str]
    versions: Counter[str]

    def __add__(self, other: "Scored") -> "Scored":  # type: ignore[override]
        return Scored(self.scores + other.scores, self.versions + other.versions)


class VersionObserver:
    """An observer of the ranker that notes which version answered a call, for the task that made it."""

    @contextmanager
    def observe(self, call: Call) -> Iterator[None]:
        """Note it when the call has ended."""
        yield
        _version.set(call.version)

    def headers(self) -> Mapping[str, str]:
        """Return no header."""
        return {}


class Sender:
    """Scores batches over one ranker, which has a `VersionObserver`.

    `options` are those of `score_pairs`. `patience` is how many seconds nothing may be answered before the job stops.
    """

    def __init__(
        self, ranker: AsyncRanker, options: Mapping[str, Any], patience: float, say: Callable[[str], None]
    ) -> None:
        self._ranker, self._options, self._patience, self._say = ranker, options, patience, say
        self._window = Window()
        self._has_answered = False
        self._stuck_since: float | None = None

    async def score(self, pairs: Sequence[Pair]) -> Scored:
        """Return the pairs' scores. Raises the errors of `clickbert.errors` that will not pass, and `JobError`."""
        try:
            return await self._ask(pairs)
        except _REFUSALS as exc:
            if type(exc) not in _REFUSALS:
                raise
            await self._ask([_HARMLESS])  # is the pairs' fault, or would every pair be refused?
            if len(pairs) == 1:
                return Scored([str(exc)], Counter())
        return await self._halves(pairs)

    async def _halves(self, pairs: Sequence[Pair]) -> Scored:
        middle = len(pairs) // 2
        return await self.score(pairs[:middle]) + await self.score(pairs[middle:])

    async def _ask(self, pairs: Sequence[Pair]) -> Scored:
        while True:
            async with self._window.call() as call:
                try:
                    scores = await self._ranker.score_pairs(pairs, **self._options)
                except _PASSING as exc:
                    error = exc
                    call.refused()
                    self._check_patience(exc)
                else:
                    call.answered()
                    self._note_answer()
                    return Scored(list(scores), Counter({_version.get(): len(pairs)}))
            if isinstance(error, ServerTimeoutError) and len(pairs) > 1:
                return await self._halves(pairs)
            await self._pause(error)

    def _check_patience(self, error: ServerError) -> None:
        if isinstance(error, ConnectionFailedError) and not self._has_answered:
            raise error  # more likely a wrong address than a server that is just being started
        now = time.monotonic()
        if self._stuck_since is None:
            self._stuck_since = now
        if now - self._stuck_since > self._patience:
            raise JobError(f"nothing was answered for {self._patience:g} s: {error}") from error

    async def _pause(self, error: ServerError) -> None:
        setbacks = self._window.setbacks
        if setbacks == _TOLD:
            self._say(f"waiting for the server: {error}")
        await asyncio.sleep(random.uniform(0.5, 1) * min(_FIRST_PAUSE * 2.0 ** min(setbacks, 10), _LONGEST_PAUSE))

    def _note_answer(self) -> None:
        self._has_answered = True
        self._stuck_since = None
