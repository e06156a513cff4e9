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

import grpc
import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

from clickbert import AsyncRanker, Connection, RankedDocument, Ranker
from clickbert.errors import from_status
from clickbert.protocol import InferRequest, InferResponse, ModelDescription

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

    def logits(self, ids: list[int], types: list[int]) -> list[float]:
        total = sum(
            (place + 1) * (token + 7 * kind) for place, (token, kind) in enumerate(zip(ids, types, strict=True))
        )
        value = (total % 997) / 997 * 6 - 3 + self.shift
        return [value if label == self.click_label else -value / 2 for label in range(len(self.labels))]

    def expected(self, query: str, document: str) -> float:
        """The click probability, by way of the tokenizers library's own pairs and truncation."""
        tokenizer = Tokenizer.from_str(self.tokenizer.decode())
        tokenizer.enable_truncation(self.max_length)
        encoding = tokenizer.encode(query, document)
        logits = [float(np.float32(logit)) for logit in self.logits(encoding.ids, encoding.type_ids)]
        if len(logits) == 1:
            return 1 / (1 + math.exp(-logits[0]))
        return math.exp(logits[self.click_label]) / sum(math.exp(logit) for logit in logits)


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
        return ModelDescription((str(self.serving),), dict(self.parameters))

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
            outputs = {"logits": _logits(published, request)}
        return self.after_infer(InferResponse(str(version), outputs))


def _tokenizer_outputs(published: Published) -> dict[str, np.ndarray]:
    digest = published.sha256 or hashlib.sha256(published.tokenizer).hexdigest()
    texts = {"tokenizer_json": published.tokenizer, "tokenizer_sha256": digest.encode()}
    texts["labels_json"] = json.dumps(list(published.labels)).encode()
    numbers = {"max_length": published.max_length, "click_label": published.click_label}
    return {name: np.frombuffer(text, np.uint8) for name, text in texts.items()} | {
        name: np.array([number], np.int32) for name, number in numbers.items()
    }


def _logits(published: Published, request: InferRequest) -> np.ndarray:
    tensors = [request.inputs[name] for name in ("input_ids", "token_type_ids", "lengths")]
    assert [tensor.dtype for tensor in tensors] == [np.int32] * 3
    ids, types, lengths = (tensor[0].tolist() for tensor in tensors)
    limit = Tokenizer.from_str(published.tokenizer.decode()).get_vocab_size()
    assert sum(lengths) == len(ids) == len(types)
    rows, start = [], 0
    for length in lengths:
        pair = ids[start : start + length]
        readable = max(pair) < limit and length <= published.max_length
        logits = published.logits(pair, types[start : start + length])
        rows.append(logits if readable else [math.nan] * len(logits))
        start += length
    return np.array([rows], np.float32)


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
            for name, value in self.server.describe(request.name).parameters.items():
                response.config.parameters[name].string_value = value
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


def rank_once(connection: Connection | str, blocking: bool, **settings) -> list[RankedDocument]:
    """One call of `Ranker` or of `AsyncRanker`, made for it."""
    if blocking:
        with Ranker(connection, **settings) as ranker:
            return ranker.rank("tea", ["a bar", "a bank"])

    async def rank() -> list[RankedDocument]:
        async with AsyncRanker(connection, **settings) as ranker:
            return await ranker.rank("tea", ["a bar", "a bank"])

    return asyncio.run(rank())
