"""The models that are served: a ranker for each, over one connection."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from prometheus_client import CollectorRegistry

from clickbert.async_ranker import AsyncRanker
from clickbert.calls.session import RankedDocument
from clickbert.errors import ClickBertError, ModelNotFoundError, ServerError
from clickbert.http.forms.form import RefusalError, Rerank
from clickbert.http.settings import Settings
from clickbert.telemetry.counters import Counters
from clickbert.telemetry.observer import Call
from clickbert.wire.inputs import Inputs
from clickbert.wire.protocol import (
    TOKENIZER_MODEL,
    Release,
    newest_version,
    read_limits,
    read_release,
    tokenizer_request,
)
from clickbert.wire.transport import AsyncGrpcTransport, AsyncTransport

_HEALTH_SECONDS = 2.0
_call: ContextVar[list[Call]] = ContextVar("call")

Answer = TypeVar("Answer")


class _Noting:
    """An observer that hands each call, with its inputs counted, to the task that asked for it."""

    @contextmanager
    def observe(self, call: Call) -> Iterator[None]:
        call.inputs = Inputs()
        _call.get().append(call)
        yield

    def headers(self) -> Mapping[str, str]:
        return {}


@dataclass(frozen=True)
class Scored:
    """The ranking, best first, and the tokens that the model read for it."""

    documents: list[RankedDocument]
    tokens: int


class Served:
    """Used in one event loop, from its start to its end."""

    def __init__(
        self, settings: Settings, registry: CollectorRegistry, transport: AsyncTransport | None = None
    ) -> None:
        self.models = settings.models
        self._url = settings.connection.url
        self._addresses = len(settings.connection.targets)
        self._transport = transport or AsyncGrpcTransport(settings.connection)
        self._releases: dict[str, Release] = {}
        observers = (Counters(registry), _Noting())
        self._rankers = {
            model: AsyncRanker(
                settings.connection,
                model,
                timeout=settings.timeout,
                max_documents=settings.max_documents,
                observers=observers,
                transport=self._transport,
            )
            for model in settings.models
        }

    def find(self, name: str | None) -> str:
        """Return the model of this name, the first if none is named; raises `RefusalError` if it is not served."""
        if name is None:
            return self.models[0]
        if name not in self._rankers:
            raise RefusalError(404, f"this server has no model of that name; it has {', '.join(self.models)}")
        return name

    async def rank(self, model: str, asked: Rerank, timeout: float) -> Scored:
        """Rank within so many seconds; raises `RefusalError`, and the errors of `AsyncRanker.rank`."""
        calls: list[Call] = []
        _call.set(calls)
        top_k = None if asked.top_n is None else min(asked.top_n, len(asked.texts))
        documents = await self._rankers[model].rank(
            asked.query, asked.texts, top_k, raw_scores=asked.raw_scores, timeout=timeout
        )
        inputs = calls[0].inputs or Inputs()
        if inputs.truncated and not asked.may_cut:
            raise RefusalError(
                422,
                f"{inputs.truncated:,} of the texts are too long for the model together with the query, and are not to"
                " be cut: shorten them, or allow truncation at their end",
            )
        return Scored(documents, inputs.tokens)

    async def release(self, model: str, timeout: float) -> Release:
        """Return what is known of the version that is served now."""
        description = await self._ask(partial(self._transport.describe, model, timeout=timeout))
        where = f"{model} at {self._url}"
        version = newest_version(description, where)
        known = self._releases.get(model)
        if known is None or known.version != version:
            request = tokenizer_request(version)
            answer = await self._ask(partial(self._transport.infer, request, timeout=timeout))
            read = partial(read_release, answer, version, description, f"{TOKENIZER_MODEL} at {self._url}")
            self._releases[model] = known = await asyncio.to_thread(read)
        return replace(known, limits=read_limits(description, where))

    async def failing(self) -> dict[str, str]:
        """Return the models that cannot rank now, each with the class of the error."""

        async def ask(model: str) -> str:
            describe = partial(self._transport.describe, model, timeout=_HEALTH_SECONDS)
            try:
                if model in self._releases:
                    newest_version(await self._ask(describe), model)
                else:  # with its tokenizer, without which nothing can be ranked
                    await self.release(model, _HEALTH_SECONDS)
            except ClickBertError as exc:
                # In a roll-out, the server that is asked for the tokenizer may have another version.
                is_there = isinstance(exc, ModelNotFoundError) and exc.is_version
                return "" if is_there else type(exc).__name__
            return ""

        found = await asyncio.gather(*map(ask, self.models))
        return {model: error for model, error in zip(self.models, found, strict=True) if error}

    async def _ask(self, question: Callable[[], Awaitable[Answer]]) -> Answer:
        """Ask a server; where it is away, the next one, until each was asked: as long as one answers, rankings do."""
        for _ in range(self._addresses - 1):
            try:
                return await question()
            except ServerError as exc:
                if not exc.is_retryable:
                    raise
        return await question()

    async def close(self) -> None:
        """Close the connection."""
        for ranker in self._rankers.values():
            await ranker.close()
