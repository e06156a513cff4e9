"""A Triton server with click models, small enough to read: in memory (a transport) and over real gRPC.

Its models are those of `fake_model`. Needs nothing but the client's own dependencies.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

from clickbert import AsyncRanker, Connection, RankedDocument, Ranker
from clickbert.errors import from_status
from clickbert.wire.protocol import InferRequest, InferResponse, ModelDescription
from clickbert.wire.transport import NO_HEADERS
from tests.client.fake_model import MODEL, FakeStatusError, Published, model_outputs, tokenizer_outputs


class FakeTriton:
    """The server's logic. `serving` is what requests without a version get; tokenizers of all versions stay."""

    def __init__(self, published: dict[int, Published] | None = None) -> None:
        self.published = published or {1: Published()}
        self.serving = max(self.published)
        self.parameters = {"max_elements.lengths": "64"}
        self.requests: list[InferRequest] = []
        self.before_infer: Callable[[InferRequest], None] = lambda request: None
        self.after_infer: Callable[[InferResponse], InferResponse] = lambda response: response
        self._callers: set[str] = set()
        self._gone: set[str] = set()
        self._lock = threading.Lock()

    def begin_anew(self) -> None:
        """Forget the requests so far, and refuse what their callers, which are gone, still have on its way here."""
        with self._lock:
            self.requests.clear()
            self._gone |= self._callers
            self._callers.clear()

    @property
    def asked(self) -> list[tuple[str, str]]:
        """Which model and version each request asked for."""
        return [(request.model, request.version) for request in self.requests]

    def describe(self, model: str) -> ModelDescription:
        if model != MODEL:
            raise FakeStatusError("NOT_FOUND", f"Request for unknown model: '{model}' is not found")
        once = self.published[self.serving].user_tokens is not None
        inputs = ("input_ids", *(("user_lengths", "user_pairs") if once else ("token_type_ids",)), "lengths")
        return ModelDescription((str(self.serving),), dict(self.parameters), inputs)

    def infer(self, request: InferRequest, caller: str = "") -> InferResponse:
        with self._lock:
            if caller in self._gone:
                raise FakeStatusError("CANCELLED", "the caller is gone")
            if caller:  # over gRPC: address and port
                self._callers.add(caller)
            self.requests.append(request)
            self.before_infer(request)
            version = int(request.version or self.serving)
        if version not in self.published:
            raise FakeStatusError(
                "NOT_FOUND", f"Request for unknown model: '{request.model}' version {version} is not found"
            )
        published = self.published[version]
        if request.model == "clickbert_tokenizer":
            outputs = tokenizer_outputs(published)
        else:
            outputs = model_outputs(published, request)
        return self.after_infer(InferResponse(str(version), outputs))


def publish_after(server: FakeTriton, requests: int, version: int) -> None:
    """Serve `version` once the click model got this many requests from now on."""
    seen = 0

    def count(request: InferRequest) -> None:
        nonlocal seen
        seen += request.model == MODEL
        if seen > requests:
            server.serving = version

    server.before_infer = count


class Held:
    """Requests that nobody answers until `answer` is set; `reached` says that there is one."""

    def __init__(self) -> None:
        self.reached, self.answer = threading.Event(), threading.Event()

    def wait_until_reached(self) -> None:
        assert self.reached.wait(30), "no request came"


@contextmanager
def held(server: FakeTriton, model: str = MODEL) -> Iterator[Held]:
    """Leave requests to a model unanswered, until the block ends at the latest."""
    hold = Held()

    def wait(request: InferRequest) -> None:
        if request.model == model:
            hold.reached.set()
            hold.answer.wait(60)

    server.before_infer = wait
    try:
        yield hold
    finally:
        server.before_infer = lambda request: None
        hold.answer.set()


@contextmanager
def holding_the_first(server: FakeTriton) -> Iterator[threading.Event]:
    """Within the block the click model's first request stays unanswered, and no other; yields what says it is there."""
    reached, release = threading.Event(), threading.Event()

    def hold(answer):
        if "logits" in answer.outputs and not reached.is_set():
            reached.set()
            release.wait(120)
        return answer

    server.after_infer = hold
    try:
        yield reached
        assert reached.is_set()
    finally:
        release.set()


class FakeTransport:
    """A `Transport` over a `FakeTriton`, without a network."""

    def __init__(self, server: FakeTriton) -> None:
        self.server = server
        self.timeouts: list[float] = []
        self.headers: list[dict[str, str]] = []
        self.closed = False

    def describe(self, model: str, *, timeout: float, headers: Mapping[str, str] = NO_HEADERS) -> ModelDescription:
        self._note(timeout, headers)
        with _as_own_error(model):
            return self.server.describe(model)

    def infer(self, request: InferRequest, *, timeout: float, headers: Mapping[str, str] = NO_HEADERS) -> InferResponse:
        self._note(timeout, headers)
        with _as_own_error(request.model):
            return self.server.infer(request)

    def close(self) -> None:
        self.closed = True

    def _note(self, timeout: float, headers: Mapping[str, str]) -> None:
        self.timeouts.append(timeout)
        self.headers.append(dict(headers))


class AsyncFakeTransport:
    """The same, awaited."""

    def __init__(self, server: FakeTriton) -> None:
        self.inner = FakeTransport(server)

    async def describe(
        self, model: str, *, timeout: float, headers: Mapping[str, str] = NO_HEADERS
    ) -> ModelDescription:
        return self.inner.describe(model, timeout=timeout, headers=headers)

    async def infer(
        self, request: InferRequest, *, timeout: float, headers: Mapping[str, str] = NO_HEADERS
    ) -> InferResponse:
        return self.inner.infer(request, timeout=timeout, headers=headers)

    async def close(self) -> None:
        self.inner.close()


@contextmanager
def _as_own_error(model: str) -> Iterator[None]:
    try:
        yield
    except FakeStatusError as exc:
        raise from_status(exc.status, exc.message, where=f"{model} at test") from exc


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """`FakeTriton` as gRPC's service."""

    def __init__(self, server: FakeTriton) -> None:
        self.server = server

    def ModelMetadata(self, request, context):  # noqa: N802 (gRPC's names)
        with _as_status(context):
            description = self.server.describe(request.name)
            return service_pb2.ModelMetadataResponse(name=request.name, versions=description.versions)

    def ModelConfig(self, request, context):  # noqa: N802
        with _as_status(context):
            response = service_pb2.ModelConfigResponse()
            description = self.server.describe(request.name)
            for name, value in description.parameters.items():
                response.config.parameters[name].string_value = value
            for name in description.inputs:
                response.config.input.add(name=name)
            return response

    def ModelInfer(self, request, context):  # noqa: N802
        inputs = {
            tensor.name: np.frombuffer(raw, triton_to_np_dtype(tensor.datatype)).reshape(tensor.shape)
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        wanted = tuple(output.name for output in request.outputs)
        with _as_status(context):
            asked = InferRequest(request.model_name, request.model_version, inputs, wanted)
            answer = self.server.infer(asked, context.peer())
            response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version=answer.version)
            for name, array in answer.outputs.items():
                datatype = np_to_triton_dtype(array.dtype)
                response.outputs.add(name=name, datatype=datatype, shape=array.shape)
                response.raw_output_contents.append(array.tobytes())
            return response


@contextmanager
def _as_status(context: grpc.ServicerContext) -> Iterator[None]:
    try:
        yield
    except FakeStatusError as exc:
        context.abort(grpc.StatusCode[exc.status], exc.message)


class Guard(grpc.ServerInterceptor):
    """Lets calls with this value of a header pass; others get the status, with what they sent in its message."""

    def __init__(self, header: str, value: str | None) -> None:
        self.header, self.value, self.status = header, value, grpc.StatusCode.UNAUTHENTICATED
        self.calls: list[tuple[str, str | None]] = []

    def intercept_service(self, continuation, details):
        sent = dict(details.invocation_metadata).get(self.header)
        self.calls.append((details.method.rpartition("/")[2], sent))
        if sent == self.value:
            return continuation(details)
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: context.abort(self.status, f"not with {sent}")
        )


@contextmanager
def grpc_server(
    server: FakeTriton,
    *interceptors: grpc.ServerInterceptor,
    certificate: tuple[bytes, bytes] | None = None,
    callers: bytes | None = None,
    port: int | str = 0,
) -> Iterator[str]:
    """Serve over gRPC on loopback; yields host:port, a free one by default.

    With TLS if there is a (key, certificate), both PEM. With the certificate of an
    authority for `callers`, a caller must have one that it has signed.
    """
    grpc_side = grpc.server(ThreadPoolExecutor(16), interceptors=interceptors)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(server), grpc_side)
    if certificate:
        port = grpc_side.add_secure_port(
            f"127.0.0.1:{port}", grpc.ssl_server_credentials([certificate], callers, bool(callers))
        )
    else:
        port = grpc_side.add_insecure_port(f"127.0.0.1:{port}")
    grpc_side.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        grpc_side.stop(0.2).wait()


@contextmanager
def calls(
    server: FakeTriton | Connection | str | Sequence[str], blocking: bool, **settings: Any
) -> Iterator[Callable[..., Any]]:
    """Yields a function that calls a method of one `Ranker`, or of one `AsyncRanker`.

    Over the in-memory transport to a `FakeTriton`, else over gRPC.
    """
    in_memory = isinstance(server, FakeTriton)
    connection = "localhost:8001" if in_memory else server
    if blocking:
        with Ranker(connection, transport=FakeTransport(server) if in_memory else None, **settings) as ranker:
            yield lambda method, *arguments, **options: getattr(ranker, method)(*arguments, **options)
    else:
        awaited = AsyncRanker(connection, transport=AsyncFakeTransport(server) if in_memory else None, **settings)
        with asyncio.Runner() as runner:
            yield lambda method, *arguments, **options: runner.run(getattr(awaited, method)(*arguments, **options))
            runner.run(awaited.close())


def call_once(
    connection: Connection | str | Sequence[str],
    blocking: bool,
    method: str,
    *arguments: Any,
    ranker: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> Any:
    """One call of a method of `Ranker`, or of `AsyncRanker`, made for it with the settings `ranker`."""
    if blocking:
        with Ranker(connection, **ranker) as each:
            return getattr(each, method)(*arguments, **options)

    async def call() -> Any:
        async with AsyncRanker(connection, **ranker) as each:
            return await getattr(each, method)(*arguments, **options)

    return asyncio.run(call())


def rank_once(connection: Connection | str, blocking: bool, **settings) -> list[RankedDocument]:
    """One call of `Ranker` or of `AsyncRanker`, made for it."""
    if blocking:
        with Ranker(connection, **settings) as ranker:
            return ranker.rank("tea", ["a bar", "a bank"])

    async def rank() -> list[RankedDocument]:
        async with AsyncRanker(connection, **settings) as ranker:
            return await ranker.rank("tea", ["a bar", "a bank"])

    return asyncio.run(rank())
