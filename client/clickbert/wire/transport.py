"""How requests reach the server. A ranker takes anything with a transport's methods, so tests need no network.

A transport raises the errors of `clickbert.errors` and no others, and ends every call within its `timeout` (seconds).
The messages are tritonclient's. Its two client classes are not used: each would need all of this again.
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import grpc
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype

from clickbert.connection import Connection, as_connection
from clickbert.errors import ProtocolError, RankerClosedError, from_status
from clickbert.wire.protocol import InferRequest, InferResponse, ModelDescription


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

    def __init__(self, connection: Connection | str) -> None:
        self._connection = as_connection(connection)
        self._lock = threading.Lock()
        self._stub: _Stub | None = None
        self._closed = False

    def describe(self, model: str, *, timeout: float) -> ModelDescription:
        """Return the versions served and the configuration's parameters."""
        deadline = time.monotonic() + timeout
        with _own_errors(model, self._connection):
            metadata = self._open().call("ModelMetadata", service_pb2.ModelMetadataRequest(name=model), timeout)
            config = self._open().call("ModelConfig", service_pb2.ModelConfigRequest(name=model), _left(deadline))
        return _description(metadata, config)

    def infer(self, request: InferRequest, *, timeout: float) -> InferResponse:
        """Send one request and return its answer."""
        return read_answer(self.send(infer_message(request, timeout), timeout))

    def send(self, message: Any, timeout: float) -> Any:
        """Send a message of `infer_message`, and return the server's."""
        with _own_errors(message.model_name, self._connection):
            return self._open().call("ModelInfer", message, timeout)

    def close(self) -> None:
        """Close the channel; calls in flight end with `RankerClosedError`."""
        with self._lock:
            self._closed = True
            if self._stub is not None:
                self._stub.channel.close()

    def _open(self) -> "_Stub":
        # Not in the constructor: a server that forks workers may make its ranker before it forks.
        with self._lock:
            if self._closed:
                raise _closed_error(self._connection)
            if self._stub is None:
                self._stub = _Stub(grpc, self._connection)
            return self._stub


class AsyncGrpcTransport:
    """One long-lived asyncio gRPC channel for each event loop, opened by the loop's first call.

    Such a channel works only in the loop that opened it. When a loop was closed, as at the end of `asyncio.run`, the
    next call from another loop closes its channel.
    """

    def __init__(self, connection: Connection | str) -> None:
        self._connection = as_connection(connection)
        self._lock = threading.Lock()  # loops may run in several threads
        self._stubs: dict[asyncio.AbstractEventLoop, _Stub] = {}
        self._closed = False

    async def describe(self, model: str, *, timeout: float) -> ModelDescription:
        """Return the versions served and the configuration's parameters."""
        deadline = time.monotonic() + timeout
        with _own_errors(model, self._connection), self._closed_as_error():
            stub = await self._open()
            metadata = await stub.call("ModelMetadata", service_pb2.ModelMetadataRequest(name=model), timeout)
            config = await stub.call("ModelConfig", service_pb2.ModelConfigRequest(name=model), _left(deadline))
        return _description(metadata, config)

    async def infer(self, request: InferRequest, *, timeout: float) -> InferResponse:
        """Send one request and return its answer."""
        message = infer_message(request, timeout)
        with _own_errors(request.model, self._connection), self._closed_as_error():
            stub = await self._open()
            answer = await stub.call("ModelInfer", message, timeout)
        return read_answer(answer)

    async def close(self) -> None:
        """Close the channels; calls in flight end with `RankerClosedError`, in whichever loop they are."""
        with self._lock:
            self._closed = True
            stubs, self._stubs = self._stubs, {}
        here = asyncio.get_running_loop()
        for loop, stub in stubs.items():
            closing = stub.channel.close()
            if loop is not here and loop.is_running():  # in another thread: only that one may cancel the calls
                try:
                    asyncio.run_coroutine_threadsafe(closing, loop)
                    continue
                except RuntimeError:  # the loop was closed a moment ago, and its calls ended with it
                    pass
            await closing

    async def _open(self) -> "_Stub":
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._closed:
                raise _closed_error(self._connection)
            former = [self._stubs.pop(each) for each in list(self._stubs) if each.is_closed()]
            if loop not in self._stubs:
                self._stubs[loop] = _Stub(grpc.aio, self._connection)
            stub = self._stubs[loop]
        for each in former:
            await each.channel.close()
        return stub

    @contextmanager
    def _closed_as_error(self) -> Iterator[None]:
        """Raise `RankerClosedError` for calls that gRPC cancels because the channel was closed, not by the caller."""
        try:
            yield
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise _closed_error(self._connection) from exc
            raise


class _Stub:
    """A channel of `grpc` or `grpc.aio`, and Triton's calls over it, each with the connection's headers."""

    def __init__(self, api: Any, connection: Connection) -> None:
        self.channel = connection.open_channel(api)
        self._calls = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self._metadata = tuple(connection.headers.items())

    def call(self, name: str, message: Any, timeout: float) -> Any:
        """Make a call that may take `timeout` seconds; returns the answer, or with `grpc.aio` an awaitable of it."""
        return getattr(self._calls, name)(message, timeout=timeout, metadata=self._metadata)


@contextmanager
def _own_errors(model: str, connection: Connection) -> Iterator[None]:
    where = f"{model} at {connection.url}"
    try:
        yield
    except grpc.RpcError as exc:
        details = exc.details() or "no message"
        message = connection.hide_secrets(details)
        # The original repeats what was hidden.
        error = from_status(exc.code().name, message, where=where, proxy=connection.proxy_variable)
        raise error from (exc if message == details else None)
    except (grpc.aio.UsageError, ValueError) as exc:
        # gRPC has no class of its own for a channel that another thread closed a moment ago.
        if "closed" not in str(exc).lower() or isinstance(exc, UnicodeError):
            raise
        raise RankerClosedError(f"{where}: the ranker was closed while the call ran") from exc


def _closed_error(connection: Connection) -> RankerClosedError:
    return RankerClosedError(f"the connection to {connection.url} was closed: make a new ranker")


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
    """Read Triton's `ModelInferResponse`; raises `ProtocolError` if a tensor's bytes do not fill its shape."""
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
