"""How a ranker's requests are computed in its own process, in place of a connection to a server.

A piece that has begun is computed to its end; at the deadline, or when the ranker is closed, the rest is dropped.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future

from clickbert.errors import ServerTimeoutError
from clickbert.in_process.model import Model
from clickbert.in_process.pieces import Outputs
from clickbert.in_process.workers import Workers
from clickbert.wire.protocol import TOKENIZER_MODEL, InferRequest, InferResponse, ModelDescription
from clickbert.wire.transport import NO_HEADERS


class InProcessTransport:
    """A model as a `clickbert.wire.transport.Transport`."""

    def __init__(self, model: Model) -> None:
        self._model, self._workers = model, Workers(model)

    def describe(self, model: str, *, timeout: float, headers: Mapping[str, str] = NO_HEADERS) -> ModelDescription:
        """Return the version, and the configuration's parameters and inputs."""
        return self._model.description

    def infer(self, request: InferRequest, *, timeout: float, headers: Mapping[str, str] = NO_HEADERS) -> InferResponse:
        """Compute one request."""
        if request.model == TOKENIZER_MODEL:
            return InferResponse(self._model.version, self._model.tokenizer)
        deadline = time.monotonic() + timeout
        work = self._model.cut(request.inputs, request.outputs)
        futures: list[Future[Outputs]] = []
        answers: Sequence[Outputs] | None = None
        try:
            while True:
                futures = self._workers.submit(work.send(answers))
                answers = [future.result(max(deadline - time.monotonic(), 0)) for future in futures]
        except StopIteration as stop:
            if self._workers.closed:
                raise self._workers.closed_error() from None
            return InferResponse(self._model.version, stop.value)
        except TimeoutError as exc:
            raise _late(self._model, timeout) from exc
        except CancelledError as exc:
            raise self._workers.closed_error() from exc
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """Compute nothing more; calls end with `RankerClosedError`."""
        self._workers.close()


class AsyncInProcessTransport:
    """A model as a `clickbert.wire.transport.AsyncTransport`: the loops wait, and threads compute."""

    def __init__(self, model: Model) -> None:
        self._model, self._workers = model, Workers(model)

    async def describe(
        self, model: str, *, timeout: float, headers: Mapping[str, str] = NO_HEADERS
    ) -> ModelDescription:
        """Return the version, and the configuration's parameters and inputs."""
        return self._model.description

    async def infer(
        self, request: InferRequest, *, timeout: float, headers: Mapping[str, str] = NO_HEADERS
    ) -> InferResponse:
        """Compute one request."""
        if request.model == TOKENIZER_MODEL:
            return InferResponse(self._model.version, self._model.tokenizer)
        work = self._model.cut(request.inputs, request.outputs)
        answers: Sequence[Outputs] | None = None
        try:
            async with asyncio.timeout(timeout):
                while True:
                    futures = self._workers.submit(work.send(answers))
                    try:
                        answers = await asyncio.gather(*map(asyncio.wrap_future, futures))
                    finally:
                        for future in futures:
                            future.cancel()
        except StopIteration as stop:
            if self._workers.closed:
                raise self._workers.closed_error() from None
            return InferResponse(self._model.version, stop.value)
        except TimeoutError as exc:
            raise _late(self._model, timeout) from exc
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if self._workers.closed and task is not None and not task.cancelling():
                raise self._workers.closed_error() from exc
            raise

    async def close(self) -> None:
        """Compute nothing more; calls end with `RankerClosedError`."""
        self._workers.close()


def _late(model: Model, timeout: float) -> ServerTimeoutError:
    return ServerTimeoutError(
        f"{model.path}: not computed within {timeout:.2f} s; allow a longer timeout, or send fewer documents at a time"
    )
