"""How requests reach the server. A ranker takes anything that has a transport's methods, so tests need no network.

A transport raises the errors of `clickbert.errors` and no others, and keeps every call within its `timeout` (seconds).
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import grpc
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import np_to_triton_dtype

from clickbert.errors import ProtocolError, RankerClosedError, from_status
from clickbert.protocol import InferRequest, InferResponse, ModelDescription

_UNLIMITED = 2**31 - 1
# Triton refuses keepalive pings that come more often than every five minutes, and there is no need to ping an idle
# channel. Switching keepalive on makes a connection that died silently fail after 20 s instead of minutes. After an
# outage gRPC would wait up to two minutes before it tries again: too long for a server that is back.
CHANNEL_ARGUMENTS = [
    ("grpc.max_send_message_length", _UNLIMITED),
    ("grpc.max_receive_message_length", _UNLIMITED),
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.max_reconnect_backoff_ms", 5_000),
]


class Transport(Protocol):
    """What `Ranker` needs from a server. Called from several threads at once."""

    def describe(self, model: str, *, timeout: float) -> ModelDescription:
        """Return the versions served and the configuration's parameters."""

    def infer(self, request: InferRequest, *, timeout: float) -> InferResponse:
        """Send one request and return its answer."""

    def close(self) -> None:
        """Close the connection; calls in flight end with `RankerClosedError`."""


class AsyncTransport(Protocol):
    """What `AsyncRanker` needs from a server: `Transport`, awaited."""

    async def describe(self, model: str, *, timeout: float) -> ModelDescription:
        """Return the versions served and the configuration's parameters."""

    async def infer(self, request: InferRequest, *, timeout: float) -> InferResponse:
        """Send one request and return its answer."""

    async def close(self) -> None:
        """Close the connection; calls in flight end with `RankerClosedError`."""


class GrpcTransport:
    """One long-lived gRPC channel, opened by the first call."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._client: triton.InferenceServerClient | None = None
        self._closed = False

    def describe(self, model: str, *, timeout: float) -> ModelDescription:
        """Return the versions served and the configuration's parameters."""
        deadline = time.monotonic() + timeout
        with _own_errors(f"{model} at {self._url}"):
            metadata = self._open().get_model_metadata(model, client_timeout=timeout)
            config = self._open().get_model_config(model, client_timeout=_left(deadline))
        return _description(metadata, config)

    def infer(self, request: InferRequest, *, timeout: float) -> InferResponse:
        """Send one request and return its answer."""
        with _own_errors(f"{request.model} at {self._url}"):
            return _response(self._open().infer(**_arguments(request, timeout)))

    def close(self) -> None:
        """Close the channel; calls in flight end with `RankerClosedError`."""
        with self._lock:
            self._closed = True
            if self._client is not None:
                self._client.close()

    def _open(self) -> triton.InferenceServerClient:
        # Not in the constructor: a server that forks its workers may make its ranker before it forks.
        with self._lock:
            if self._closed:
                raise RankerClosedError(f"the connection to {self._url} was closed: make a new ranker")
            if self._client is None:
                self._client = triton.InferenceServerClient(self._url, channel_args=CHANNEL_ARGUMENTS)
            return self._client


class AsyncGrpcTransport:
    """One long-lived asyncio gRPC channel, opened by the first call and bound to that call's event loop."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: triton_aio.InferenceServerClient | None = None
        self._closed = False

    async def describe(self, model: str, *, timeout: float) -> ModelDescription:
        """Return the versions served and the configuration's parameters."""
        deadline = time.monotonic() + timeout
        with _own_errors(f"{model} at {self._url}"), self._closing():
            metadata = await self._open().get_model_metadata(model, client_timeout=timeout)
            config = await self._open().get_model_config(model, client_timeout=_left(deadline))
        return _description(metadata, config)

    async def infer(self, request: InferRequest, *, timeout: float) -> InferResponse:
        """Send one request and return its answer."""
        with _own_errors(f"{request.model} at {self._url}"), self._closing():
            return _response(await self._open().infer(**_arguments(request, timeout)))

    async def close(self) -> None:
        """Close the channel; calls in flight end with `RankerClosedError`."""
        self._closed = True
        if self._client is not None:
            await self._client.close()

    def _open(self) -> triton_aio.InferenceServerClient:
        if self._closed:
            raise self._closed_error()
        if self._client is None:
            self._client = triton_aio.InferenceServerClient(self._url, channel_args=CHANNEL_ARGUMENTS)
        return self._client

    @contextmanager
    def _closing(self) -> Iterator[None]:
        """Tell a closed channel, which gRPC reports as a cancelled call, from a caller who cancelled."""
        try:
            yield
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise self._closed_error() from exc
            raise

    def _closed_error(self) -> RankerClosedError:
        return RankerClosedError(f"the connection to {self._url} was closed: make a new ranker")


@contextmanager
def _own_errors(where: str) -> Iterator[None]:
    try:
        yield
    except triton.InferenceServerException as exc:
        raise from_status(exc.status() or "UNKNOWN", exc.message() or "no message", where=where) from exc
    except (grpc.aio.UsageError, ValueError) as exc:
        # gRPC has no class of its own for a channel that another thread closed a moment ago.
        if "closed" not in str(exc).lower() or isinstance(exc, UnicodeError):
            raise
        raise RankerClosedError(f"{where}: the ranker was closed while the call ran") from exc


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)


def _description(metadata: Any, config: Any) -> ModelDescription:
    parameters = {name: value.string_value for name, value in config.config.parameters.items()}
    return ModelDescription(tuple(metadata.versions), parameters, tuple(entry.name for entry in config.config.input))


def _arguments(request: InferRequest, timeout: float) -> dict[str, Any]:
    """Return the keyword arguments of tritonclient's `infer`; the server gets the deadline too, in microseconds."""
    inputs = []
    for name, array in request.inputs.items():
        tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return {
        "model_name": request.model,
        "model_version": request.version,
        "inputs": inputs,
        "outputs": [triton.InferRequestedOutput(name) for name in request.outputs],
        "timeout": max(int(timeout * 1e6), 1),
        "client_timeout": timeout,
    }


def _response(result: triton.InferResult) -> InferResponse:
    answer = result.get_response()
    outputs = {}
    for output in answer.outputs:
        try:
            outputs[output.name] = result.as_numpy(output.name)
        except ValueError as exc:
            raise ProtocolError(
                f"{answer.model_name}: output {output.name!r} has too few or too many bytes for {output.datatype}"
                f"{list(output.shape)}: the server is broken; see its log"
            ) from exc
    return InferResponse(answer.model_version, outputs)
