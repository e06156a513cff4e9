"""A Triton server with click models, small enough to read: in memory (a transport) and over real gRPC.

Its model computes logits from token ids by a formula, and the expected scores are computed by the tokenizers library
directly, so nothing of the client checks itself. Needs nothing but the client's own dependencies.
"""

import asyncio
import hashlib
import json
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tokenizers import Encoding, Tokenizer, models, normalizers, pre_tokenizers, processors
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

from clickbert import AsyncRanker, Connection, RankedDocument, Ranker
from clickbert.errors import from_status
from clickbert.wire.protocol import InferRequest, InferResponse, ModelDescription

MODEL = "clickbert_onnx"
WORDS = ["the", "a", "cheap", "coffee", "tea", "bar", "cafe", "bank", "near", "me", "park", "museum", "of", "and", "in"]
WORDS += ["hotel", "pizza", "中", "文", "city", "##s", "##ing"]


def tokenizer_json(words: list[str] = WORDS) -> bytes:
    """A BERT tokenizer of the five special tokens, ASCII characters and some words."""
    characters = [chr(code) for code in range(33, 127)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *characters, *(f"##{char}" for char in characters)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special)
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return tokenizer.to_str().encode()


@dataclass
class Published:
    """One published version. `shift` tells one version's logits from another's."""

    tokenizer: bytes = field(default_factory=tokenizer_json)
    max_length: int = 32
    labels: tuple[str, ...] = ("click",)
    click_label: int = 0
    shift: float = 0.0
    sha256: str | None = None  # announced in place of the true one
    heads: dict | None = None  # what `heads_json` says; None: a server of an older release

    @property
    def user_tokens(self) -> int | None:
        """Of a query, which is sent once; None: queries are sent with every document."""
        return (self.heads or {}).get("user_tokens")

    def value(self, ids: list[int], types: list[int], salt: int = 1) -> float:
        total = sum(
            (place + salt) * (token + 7 * kind) for place, (token, kind) in enumerate(zip(ids, types, strict=True))
        )
        return (total % 997) / 997 * 6 - 3 + self.shift

    def logits(self, ids: list[int], types: list[int]) -> list[float]:
        value = self.value(ids, types)
        return [value if label == self.click_label else -value / 2 for label in range(len(self.labels))]

    def outputs(self, ids: list[int], types: list[int]) -> dict[str, list[float]]:
        """A row of every output that the model has."""
        heads = self.heads or {}
        rows = {"logits": self.logits(ids, types)}
        if heads.get("topics"):
            rows["topic_logits"] = [self.value(ids, types, 3 * topic + 2) for topic in range(len(heads["topics"]))]
        if heads.get("embedding_size"):
            vector = [self.value(ids, types, 5 * place + 3) for place in range(heads["embedding_size"])]
            rows["embedding"] = [number / math.hypot(*vector) for number in vector]
        if heads.get("passages") and heads["passages"]["aggregate"] == "attention":
            rows["passage_logits"] = [self.value(ids, types, 4)]
        return rows

    def expected(self, query: str, document: str) -> float:
        """The click probability, by way of the tokenizers library's own pairs and truncation."""
        tokenizer = Tokenizer.from_str(self.tokenizer.decode())
        if self.user_tokens is None:
            tokenizer.enable_truncation(self.max_length)
            encoding = tokenizer.encode(query, document)
        else:  # the query is cut to a length of its own
            user, text = (tokenizer.encode(each, add_special_tokens=False) for each in (query, document))
            user.truncate(self.user_tokens)
            text.truncate(self.max_length - 3 - len(user))
            encoding = tokenizer.post_process(user, text)
        logits = [float(np.float32(logit)) for logit in self.logits(encoding.ids, encoding.type_ids)]
        if len(logits) == 1:
            return sigmoid(logits[0])
        return math.exp(logits[self.click_label]) / sum(math.exp(logit) for logit in logits)

    def of_text(self, text: str) -> dict[str, list[float]]:
        """The outputs of a single text, by way of the tokenizers library's own form and truncation."""
        tokenizer = Tokenizer.from_str(self.tokenizer.decode())
        tokenizer.enable_truncation(self.max_length)
        encoding = tokenizer.encode(text)
        assert not any(encoding.type_ids)
        return self.outputs(encoding.ids, encoding.type_ids)

    def passages(self, query: str, document: str) -> list[Encoding]:
        """The pair's passages, by way of the tokenizers library's own windows."""
        tokenizer = Tokenizer.from_str(self.tokenizer.decode())
        user, text = (tokenizer.encode(each, add_special_tokens=False) for each in (query, document))
        room = self.max_length - 3
        if self.user_tokens is not None or len(user) + len(text) > room:
            user.truncate(self.user_tokens or max(room // 2, room - len(text)))
            size = room - len(user)
            if len(text) > size:
                text.truncate(size, stride=min(self.heads["passages"]["overlap"], size - 1))
        return [tokenizer.post_process(user, window) for window in (text, *text.overflowing)]


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


class FakeStatusError(Exception):
    """Makes the fake server answer with a gRPC status."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(status, message)
        self.status, self.message = status, message


class FakeTriton:
    """The server's logic. `serving` is what requests without a version get; tokenizers of all versions stay."""

    def __init__(self, published: dict[int, Published] | None = None) -> None:
        self.published = published or {1: Published()}
        self.serving = max(self.published)
        self.parameters = {"max_elements.lengths": "64"}
        self.requests: list[InferRequest] = []
        self.before_infer: Callable[[InferRequest], None] = lambda request: None
        self.after_infer: Callable[[InferResponse], InferResponse] = lambda response: response
        self._lock = threading.Lock()

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

    def infer(self, request: InferRequest) -> InferResponse:
        with self._lock:
            self.requests.append(request)
            self.before_infer(request)
            version = int(request.version or self.serving)
        if version not in self.published:
            raise FakeStatusError(
                "NOT_FOUND", f"Request for unknown model: '{request.model}' version {version} is not found"
            )
        published = self.published[version]
        if request.model == "clickbert_tokenizer":
            outputs = _tokenizer_outputs(published)
        else:
            outputs = _model_outputs(published, request)
        return self.after_infer(InferResponse(str(version), outputs))


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


def _tokenizer_outputs(published: Published) -> dict[str, np.ndarray]:
    digest = published.sha256 or hashlib.sha256(published.tokenizer).hexdigest()
    texts = {"tokenizer_json": published.tokenizer, "tokenizer_sha256": digest.encode()}
    texts["labels_json"] = json.dumps(list(published.labels)).encode()
    if published.heads is not None:
        texts["heads_json"] = json.dumps(published.heads).encode()
    numbers = {"max_length": published.max_length, "click_label": published.click_label}
    return {name: np.frombuffer(text, np.uint8) for name, text in texts.items()} | {
        name: np.array([number], np.int32) for name, number in numbers.items()
    }


def _model_outputs(published: Published, request: InferRequest) -> dict[str, np.ndarray]:
    assert {tensor.dtype for tensor in request.inputs.values()} == {np.dtype(np.int32)}
    columns = {name: tensor[0].tolist() for name, tensor in request.inputs.items()}
    limit = Tokenizer.from_str(published.tokenizer.decode()).get_vocab_size()
    found = []
    for ids, types in _pairs(columns) if published.user_tokens is None else _pairs_of_users(columns):
        rows = published.outputs(ids, types)
        readable = max(ids) < limit and len(ids) <= published.max_length
        found.append(rows if readable else {name: [math.nan] * len(row) for name, row in rows.items()})
    for name in request.outputs:
        if name not in found[0]:
            raise FakeStatusError(
                "INVALID_ARGUMENT", f"unexpected inference output '{name}' for model '{request.model}'"
            )
    return {name: np.array([[rows[name] for rows in found]], np.float32) for name in request.outputs or found[0]}


def _pairs(columns: dict[str, list[int]]) -> Iterator[tuple[list[int], list[int]]]:
    """The ids and types of each pair."""
    ids, types, lengths = (columns[name] for name in ("input_ids", "token_type_ids", "lengths"))
    assert sum(lengths) == len(ids) == len(types)
    start = 0
    for length in lengths:
        yield ids[start : start + length], types[start : start + length]
        start += length


def _pairs_of_users(columns: dict[str, list[int]]) -> Iterator[tuple[list[int], list[int]]]:
    """The ids and types of each pair, of a request that has each query once; pairs as Hugging Face has them."""
    ids, lengths = iter(columns["input_ids"]), iter(columns["lengths"])
    for length, pairs in zip(columns["user_lengths"], columns["user_pairs"], strict=True):
        assert pairs > 0
        user = [next(ids) for _ in range(length)]
        for _ in range(pairs):
            cls, *document = [next(ids) for _ in range(next(lengths))]
            yield [cls, *user, *document], [0] * (1 + length) + [1 if length else 0] * len(document)
    assert not [*ids, *lengths]


class FakeTransport:
    """A `Transport` over a `FakeTriton`, without a network."""

    def __init__(self, server: FakeTriton) -> None:
        self.server = server
        self.timeouts: list[float] = []
        self.closed = False

    def describe(self, model: str, *, timeout: float) -> ModelDescription:
        self.timeouts.append(timeout)
        with _as_own_error(model):
            return self.server.describe(model)

    def infer(self, request: InferRequest, *, timeout: float) -> InferResponse:
        self.timeouts.append(timeout)
        with _as_own_error(request.model):
            return self.server.infer(request)

    def close(self) -> None:
        self.closed = True


class AsyncFakeTransport:
    """The same, awaited."""

    def __init__(self, server: FakeTriton) -> None:
        self.inner = FakeTransport(server)

    async def describe(self, model: str, *, timeout: float) -> ModelDescription:
        return self.inner.describe(model, timeout=timeout)

    async def infer(self, request: InferRequest, *, timeout: float) -> InferResponse:
        return self.inner.infer(request, timeout=timeout)

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
            answer = self.server.infer(InferRequest(request.model_name, request.model_version, inputs, wanted))
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
    server: FakeTriton, *interceptors: grpc.ServerInterceptor, certificate: tuple[bytes, bytes] | None = None
) -> Iterator[str]:
    """Serve over gRPC on loopback; yields host:port. With TLS if there is a (key, certificate), both PEM."""
    grpc_side = grpc.server(ThreadPoolExecutor(16), interceptors=interceptors)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(server), grpc_side)
    if certificate:
        port = grpc_side.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([certificate]))
    else:
        port = grpc_side.add_insecure_port("127.0.0.1:0")
    grpc_side.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        grpc_side.stop(0.2).wait()


@contextmanager
def calls(server: FakeTriton, blocking: bool) -> Iterator[Callable[..., Any]]:
    """Yields a function that calls a method of one `Ranker`, or of one `AsyncRanker`, over the in-memory transport."""
    if blocking:
        ranker = Ranker("localhost:8001", transport=FakeTransport(server))
        yield lambda method, *arguments, **options: getattr(ranker, method)(*arguments, **options)
    else:
        awaited = AsyncRanker("localhost:8001", transport=AsyncFakeTransport(server))
        with asyncio.Runner() as runner:
            yield lambda method, *arguments, **options: runner.run(getattr(awaited, method)(*arguments, **options))


def call_once(connection: Connection | str, blocking: bool, method: str, *arguments: Any, **options: Any) -> Any:
    """One call of a method of `Ranker`, or of `AsyncRanker`, made for it."""
    if blocking:
        with Ranker(connection) as ranker:
            return getattr(ranker, method)(*arguments, **options)

    async def call() -> Any:
        async with AsyncRanker(connection) as ranker:
            return await getattr(ranker, method)(*arguments, **options)

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
