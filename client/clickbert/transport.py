"""How requests reach the server. A ranker takes anything that has a transport's methods, so tests need no network.

A transport raises the errors of `clickbert.errors` and no others, and keeps every call within its `timeout` (seconds).
The messages are tritonclient's; its client classes are not used, because the two of them would need all of this twice.
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import grpc
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype

from clickbert.connection import Address, check_address
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
# A token without TLS stays on this machine; an HTTP proxy of the environment would carry it away.
_NO_PROXY = ("grpc.enable_http_proxy", 0)


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
    """One long-lived gRPC channel, opened by the first call. The arguments are `Ranker`'s."""

    def __init__(self, url: str, ca_file: str | Path | None = None, token: str | None = None) -> None:
        self._address = check_address(url, ca_file, token)
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._closed = False

    def describe(self, model: str, *, timeout: float) -> ModelDescription:
        """Return the versions served and the configuration's parameters."""
        deadline = time.monotonic() + timeout
        with _own_errors(model, self._address):
            metadata = self._open().call("ModelMetadata", service_pb2.ModelMetadataRequest(name=model), timeout)
            config = self._open().call("ModelConfig", service_pb2.ModelConfigRequest(name=model), _left(deadline))
        return _description(metadata, config)

    def infer(self, request: InferRequest, *, timeout: float) -> InferResponse:
        """Send one request and return its answer."""
        return read_answer(self.send(infer_message(request, timeout), timeout))

    def send(self, message: Any, timeout: float) -> Any:
        """Send a message of `infer_message`, and return the server's."""
        with _own_errors(message.model_name, self._address):
            return self._open().call("ModelInfer", message, timeout)

    def close(self) -> None:
        """Close the channel; calls in flight end with `RankerClosedError`."""
        with self._lock:
            self._closed = True
            if self._connection is not None:
                self._connection.channel.close()

    def _open(self) -> "_Connection":
        # Not in the constructor: a server that forks its workers may make its ranker before it forks.
        with self._lock:
            if self._closed:
                raise _closed_error(self._address)
            if self._connection is None:
                self._connection = _Connection(grpc, self._address)
            return self._connection


class AsyncGrpcTransport:
    """One long-lived asyncio gRPC channel, opened by the first call and bound to that call's event loop."""

    def __init__(self, url: str, ca_file: str | Path | None = None, token: str | None = None) -> None:
        self._address = check_address(url, ca_file, token)
        self._connection: _Connection | None = None
        self._closed = False

    async def describe(self, model: str, *, timeout: float) -> ModelDescription:
        """Return the versions served and the configuration's parameters."""
        deadline = time.monotonic() + timeout
        with _own_errors(model, self._address), self._closing():
            metadata = await self._open().call("ModelMetadata", service_pb2.ModelMetadataRequest(name=model), timeout)
            config = await self._open().call("ModelConfig", service_pb2.ModelConfigRequest(name=model), _left(deadline))
        return _description(metadata, config)

    async def infer(self, request: InferRequest, *, timeout: float) -> InferResponse:
        """Send one request and return its answer."""
        message = infer_message(request, timeout)
        with _own_errors(request.model, self._address), self._closing():
            answer = await self._open().call("ModelInfer", message, timeout)
        return read_answer(answer)

    async def close(self) -> None:
        """Close the channel; calls in flight end with `RankerClosedError`."""
        self._closed = True
        if self._connection is not None:
            await self._connection.channel.close()

    def _open(self) -> "_Connection":
        if self._closed:
            raise _closed_error(self._address)
        if self._connection is None:
            self._connection = _Connection(grpc.aio, self._address)
        return self._connection

    @contextmanager
    def _closing(self) -> Iterator[None]:
        """Tell a closed channel, which gRPC reports as a cancelled call, from a caller who cancelled."""
        try:
            yield
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise _closed_error(self._address) from exc
            raise


class _Connection:
    """A channel of `grpc` or of `grpc.aio`, and Triton's calls over it, each with the token."""

    def __init__(self, kind: Any, address: Address) -> None:
        self.channel: Any
        if address.tls:
            credentials = grpc.ssl_channel_credentials(address.roots)
            self.channel = kind.secure_channel(address.target, credentials, CHANNEL_ARGUMENTS)
        else:
            options = [*CHANNEL_ARGUMENTS, _NO_PROXY] if address.token else CHANNEL_ARGUMENTS
            self.channel = kind.insecure_channel(address.target, options)
        self._calls = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self._metadata = (("authorization", f"Bearer {address.token}"),) if address.token else None

    def call(self, name: str, message: Any, timeout: float) -> Any:
        """Start a call, within `timeout` seconds: the answer, or for `grpc.aio` what to await for it."""
        return getattr(self._calls, name)(message, timeout=timeout, metadata=self._metadata)


@contextmanager
def _own_errors(model: str, address: Address) -> Iterator[None]:
    where = f"{model} at {address.url}"
    try:
        yield
    except grpc.RpcError as exc:
        message = exc.details() or "no message"
        if address.token and address.token in message:  # a server that repeats it must not get it into our logs
            message = message.replace(address.token, "***")
            raise from_status(exc.code().name, message, where=where) from None
        raise from_status(exc.code().name, message, where=where) from exc
    except (grpc.aio.UsageError, ValueError) as exc:
        # gRPC has no class of its own for a channel that another thread closed a moment ago.
        if "closed" not in str(exc).lower() or isinstance(exc, UnicodeError):
            raise
        raise RankerClosedError(f"{where}: the ranker was closed while the call ran") from exc


def _closed_error(address: Address) -> RankerClosedError:
    return RankerClosedError(f"the connection to {address.url} was closed: make a new ranker")


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)


def _description(metadata: Any, config: Any) -> ModelDescription:
    parameters = {name: value.string_value for name, value in config.config.parameters.items()}
    return ModelDescription(tuple(metadata.versions), parameters, tuple(entry.name for entry in config.config.input))


def infer_message(request: InferRequest, timeout: float) -> Any:
    """Return Triton's `ModelInferRequest`; the server gets the deadline too, in microseconds."""
    message = service_pb2.ModelInferRequest(model_name=request.model, model_version=request.version)
    for name, array in request.inputs.items():
        message.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    for name in request.outputs:
        message.outputs.add(name=name)
    message.parameters["timeout"].int64_param = max(int(timeout * 1e6), 1)
    return message


def read_answer(answer: Any) -> InferResponse:
    """Read Triton's `ModelInferResponse`; raises `ProtocolError` where a tensor has not the bytes that it announces."""
    result = triton.InferResult(answer)
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
