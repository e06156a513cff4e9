"""How requests reach the server. A ranker takes anything with a transport's methods, so tests need no network.

A transport raises the errors of `clickbert.errors` and no others, and ends every call within its `timeout` (seconds).
It sends the `headers` with it. It does not retry, but of several addresses it takes the next one for each call.

The messages are tritonclient's. Its two client classes are not used: each would need all of this again.
"""

import asyncio
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Protocol

import grpc
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype

from clickbert.channels import forks
from clickbert.channels.channel import Channel, reaching
from clickbert.channels.rotation import Rotation
from clickbert.connection import Connection, as_connection
from clickbert.errors import InvalidInputError, ProtocolError, RankerClosedError
from clickbert.wire.protocol import InferRequest, InferResponse, ModelDescription

_LARGEST_MESSAGE = 2**31 - 2**20  # bytes of all inputs; gRPC's limit is 2 GiB, and the rest of a message is small
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Transport(Protocol):
    """What `Ranker` needs from a server. Called from several threads at once."""

    def describe(self, model: str, *, timeout: float, headers: Mapping[str, str] = NO_HEADERS) -> ModelDescription:
        """Return the versions served and the configuration's parameters."""

    def infer(self, request: InferRequest, *, timeout: float, headers: Mapping[str, str] = NO_HEADERS) -> InferResponse:
        """Send one request and return its answer."""

    def close(self) -> None:
        """Close the connection; calls in flight end with `RankerClosedError`."""


class AsyncTransport(Protocol):
    """What `AsyncRanker` needs from a server: `Transport`, awaited."""

    async def describe(
        self, model: str, *, timeout: float, headers: Mapping[str, str] = NO_HEADERS
    ) -> ModelDescription:
        """Return the versions served and the configuration's parameters."""

    async def infer(
        self, request: InferRequest, *, timeout: float, headers: Mapping[str, str] = NO_HEADERS
    ) -> InferResponse:
        """Send one request and return its answer."""

    async def close(self) -> None:
        """Close the connection; calls in flight end with `RankerClosedError`."""


class GrpcTransport:
    """One long-lived gRPC channel for each address, opened by the first call to it."""

    def __init__(self, connection: Connection | str) -> None:
        self._connection = as_connection(connection)
        self._rotation = Rotation(self._connection.targets)
        self._lock = forks.Lock()
        self._channels: dict[str, Channel] = {}
        self._closed = False
        forks.watch(self)

    def describe(self, model: str, *, timeout: float, headers: Mapping[str, str] = NO_HEADERS) -> ModelDescription:
        """Return the versions served and the configuration's parameters."""
        deadline = time.monotonic() + timeout
        with reaching(self._rotation, self._connection, model) as target:
            question = service_pb2.ModelMetadataRequest(name=model)
            metadata = self._call(target, "ModelMetadata", question, timeout, headers)
            config = self._call(
                target, "ModelConfig", service_pb2.ModelConfigRequest(name=model), _left(deadline), headers
            )
        return _description(metadata, config)

    def infer(self, request: InferRequest, *, timeout: float, headers: Mapping[str, str] = NO_HEADERS) -> InferResponse:
        """Send one request and return its answer."""
        return read_answer(self.send(infer_message(request, timeout), timeout, headers))

    def send(self, message: Any, timeout: float, headers: Mapping[str, str] = NO_HEADERS) -> Any:
        """Send a message of `infer_message`, and return the server's."""
        with reaching(self._rotation, self._connection, message.model_name) as target:
            return self._call(target, "ModelInfer", message, timeout, headers)

    def close(self) -> None:
        """Close the channels; calls in flight end with `RankerClosedError`."""
        with self._lock:
            self._closed = True
            for each in self._channels.values():
                each.channel.close()

    def before_fork(self, *, calls: bool) -> bool:
        """Close the channels if calls are in flight; they are sent again after the fork."""
        if calls and not self._closed:
            with self._lock:
                channels, self._channels = self._channels, {}
            for each in channels.values():
                each.is_cut_off = True
                each.channel.close()
        return True

    def after_fork_in_child(self) -> None:
        """Forget the parent's channels."""
        self._channels = {}

    def _call(self, target: str, name: str, message: Any, timeout: float, headers: Mapping[str, str]) -> Any:
        deadline = time.monotonic() + timeout
        while True:
            with forks.calling():
                channel = self._open(target)
                try:
                    return channel.call(name, message, _left(deadline), headers)
                except (grpc.RpcError, ValueError):
                    if not channel.is_cut_off:
                        raise

    def _open(self, target: str) -> Channel:
        with self._lock:
            if self._closed:
                raise _closed_error(self._connection)
            if target not in self._channels:
                self._channels[target] = Channel(grpc, self._connection, target)
            return self._channels[target]


class AsyncGrpcTransport:
    """For each event loop one long-lived asyncio gRPC channel to each address, opened by the loop's first call to it.

    Such a channel works only in the loop that opened it. When a loop was closed, as at the end of `asyncio.run`, the
    next call from another loop closes its channels.
    """

    def __init__(self, connection: Connection | str) -> None:
        self._connection = as_connection(connection)
        self._rotation = Rotation(self._connection.targets)
        self._lock = forks.Lock()  # loops may run in several threads
        self._channels: dict[tuple[asyncio.AbstractEventLoop, str], Channel] = {}
        self._in_flight: dict[asyncio.AbstractEventLoop, int] = {}
        self._parents: list[object] = []  # channels that came with a fork
        self._closed = False
        forks.watch(self)

    async def describe(
        self, model: str, *, timeout: float, headers: Mapping[str, str] = NO_HEADERS
    ) -> ModelDescription:
        """Return the versions served and the configuration's parameters."""
        deadline = time.monotonic() + timeout
        with reaching(self._rotation, self._connection, model) as target, self._calling():
            channel = await self._open(target)
            metadata = await channel.call(
                "ModelMetadata", service_pb2.ModelMetadataRequest(name=model), timeout, headers
            )
            config = await channel.call(
                "ModelConfig", service_pb2.ModelConfigRequest(name=model), _left(deadline), headers
            )
        return _description(metadata, config)

    async def infer(
        self, request: InferRequest, *, timeout: float, headers: Mapping[str, str] = NO_HEADERS
    ) -> InferResponse:
        """Send one request and return its answer."""
        message = infer_message(request, timeout)
        with reaching(self._rotation, self._connection, request.model) as target, self._calling():
            channel = await self._open(target)
            answer = await channel.call("ModelInfer", message, timeout, headers)
        return read_answer(answer)

    async def close(self) -> None:
        """Close the channels; calls in flight end with `RankerClosedError`, in whichever loop they are."""
        with self._lock:
            self._closed = True
            channels, self._channels = self._channels, {}
        here = asyncio.get_running_loop()
        for (loop, _), each in channels.items():
            closing = each.channel.close()
            if loop is not here and loop.is_running():  # in another thread: only that one may cancel the calls
                try:
                    asyncio.run_coroutine_threadsafe(closing, loop)
                    continue
                except RuntimeError:  # the loop was closed a moment ago, and its calls ended with it
                    pass
            await closing

    def before_fork(self, *, calls: bool) -> bool:
        """Drop the channels, unless calls are in flight; tells whether none are."""
        with self._lock:
            if any(count for loop, count in self._in_flight.items() if not loop.is_closed()):
                return False
            self._channels = {}
            return True

    def after_fork_in_child(self) -> None:
        """Put the parent's channels aside, if it kept some: gRPC would crash if they were freed here."""
        self._parents.append(self._channels)
        self._channels, self._in_flight = {}, {}

    async def _open(self, target: str) -> Channel:
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._closed:
                raise _closed_error(self._connection)
            _check_threads()
            forks.check_asyncio()
            former = [self._channels.pop(key) for key in list(self._channels) if key[0].is_closed()]
            if (loop, target) not in self._channels:
                self._channels[loop, target] = Channel(grpc.aio, self._connection, target)
            channel = self._channels[loop, target]
        for each in former:
            await each.channel.close()
        return channel

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """Count the call among those in flight.

        Raises `RankerClosedError` for calls that gRPC cancels because the channel was closed, not by the caller.
        """
        loop = asyncio.get_running_loop()
        self._count(loop, 1)
        try:
            yield
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise _closed_error(self._connection) from exc
            raise
        finally:
            self._count(loop, -1)

    def _count(self, loop: asyncio.AbstractEventLoop, change: int) -> None:
        with self._lock:
            for other in [each for each in self._in_flight if each.is_closed()]:
                del self._in_flight[other]
            self._in_flight[loop] = self._in_flight.get(loop, 0) + change


def _check_threads() -> None:
    """Raise `InvalidInputError` where gevent has put greenlets in place of threads.

    The thread in which gRPC's asyncio waits would be one of them, and it would stop the whole process for ever.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        raise InvalidInputError("AsyncRanker cannot work where gevent has patched the threads: use Ranker in greenlets")


def _closed_error(connection: Connection) -> RankerClosedError:
    return RankerClosedError(f"the connection to {connection.url} was closed: make a new ranker")


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)


def _description(metadata: Any, config: Any) -> ModelDescription:
    _check_readable(metadata, config)
    parameters = {name: value.string_value for name, value in config.config.parameters.items()}
    return ModelDescription(tuple(metadata.versions), parameters, tuple(entry.name for entry in config.config.input))


def _check_readable(*answers: Any) -> None:
    """Raise `ProtocolError` for answers that gRPC could not read; its asyncio half returns None for them."""
    if None in answers:
        raise ProtocolError("the answer is not a message of Triton's: is it a Triton server?")


def infer_message(request: InferRequest, timeout: float) -> Any:
    """Return Triton's `ModelInferRequest`; the server gets the deadline too, in microseconds.

    Raises `InvalidInputError` if it is larger than gRPC takes.
    """
    size = sum(array.nbytes for array in request.inputs.values())
    if size > _LARGEST_MESSAGE:
        raise InvalidInputError(
            f"a request to {request.model} has {size:,} bytes, but gRPC takes {_LARGEST_MESSAGE:,}: send fewer pairs"
        )
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
    _check_readable(answer)
    result = triton.InferResult(answer)
    outputs = {}
    for output in answer.outputs:
        try:
            outputs[output.name] = result.as_numpy(output.name)
        except (ValueError, struct.error) as exc:  # struct.error: of BYTES
            raise ProtocolError(
                f"{answer.model_name}: output {output.name!r} has too few or too many bytes for {output.datatype}"
                f"{list(output.shape)}: the server is broken; see its log"
            ) from exc
    return InferResponse(answer.model_version, outputs)
