"""A server that answers anything: the caller gets a score that was sent for his pair, or an error of this package.

The server speaks gRPC, and answers bytes: those of `fakes.Servicer`, with fields changed as Triton's messages allow it,
or mangled as they come.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from clickbert import AsyncRanker, ClickBertError, Ranker, ServerError
from tests.client.fake_model import Published, sigmoid
from tests.client.fakes import FakeTriton, Servicer

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed: properties are not checked")
st = hypothesis.strategies

METHODS = ("ModelMetadata", "ModelConfig", "ModelInfer")
HEADS = {"topics": ["a", "b"], "several_topics": False, "embedding_size": 4}
HEADS |= {"passages": {"aggregate": "attention", "overlap": 2, "best": 1}}
# Each has one token more than the one before, so a row's length in a request says which pair it is.
PAIRS = [("tea", "a" * length) for length in range(1, 6)]
SHORTEST = 5  # [CLS] tea [SEP] a [SEP]
TIMEOUT = 5.0
SLACK = 2.0  # of a busy machine

Mangle = Callable[[bytes], bytes]


class Hostile:
    """Serves the fake's own answers, each passed through `mangle` of its method; notes the scores that were sent."""

    def __init__(self) -> None:
        self.mangle: dict[str, Mangle] = {}
        self.sent: dict[int, list[float]] = {}  # for each of PAIRS, by place

    def forget(self, fake: FakeTriton, mangle: dict[str, Mangle]) -> None:
        """Begins anew, for another call."""
        self.servicer, self.mangle, self.sent = Servicer(fake), mangle, {}

    def answer(self, method: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        kind = getattr(service_pb2, f"{method}Request")
        message = kind.FromString(request)
        honest = getattr(self.servicer, method)(message, context).SerializeToString()
        name = "Tokenizer" if getattr(message, "model_name", "") == "clickbert_tokenizer" else method
        data = self.mangle.get(name, lambda honest: honest)(honest)
        if name == "ModelInfer":
            self.note(message, data)
        return data

    def note(self, request: Any, data: bytes) -> None:
        try:
            answer = service_pb2.ModelInferResponse.FromString(data)
        except DecodeError:  # the client cannot read it either
            return
        names = [tensor.name for tensor in request.inputs]
        lengths = np.frombuffer(request.raw_input_contents[names.index("lengths")], np.int32).tolist()
        for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=False):
            if output.name == "logits" and len(raw) % 4 == 0:
                for length, logit in zip(lengths, np.frombuffer(raw, np.float32).tolist(), strict=False):
                    self.sent.setdefault(length - SHORTEST, []).append(click(logit))


def click(logit: float) -> float:
    return sigmoid(logit) if abs(logit) < 700 else float(logit > 0)


@contextmanager
def serve(hostile: Hostile) -> Iterator[str]:
    handlers = {
        method: grpc.unary_unary_rpc_method_handler(
            lambda request, context, method=method: hostile.answer(method, request, context)
        )
        for method in METHODS
    }
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0.2).wait()


@pytest.fixture(scope="module")
def hostile() -> Iterator[tuple[Hostile, str]]:
    server = Hostile()
    with serve(server) as url:
        yield server, url


@st.composite
def byte_mangling(draw) -> Mangle:
    """Flips, cuts, doubles, inserts."""
    edits = draw(
        st.lists(st.tuples(st.integers(0, 4), st.floats(0, 1), st.integers(0, 8), st.binary(max_size=8)), max_size=4)
    )

    def mangle(data: bytes) -> bytes:
        for kind, where, size, new in edits:
            start = int(where * len(data))
            stop = start + size
            data = (
                data[:start] + data[stop:],
                data[:stop] + data[start:],
                data[:start] + bytes(255 - byte for byte in data[start:stop]) + data[stop:],
                data[:start] + new + data[stop:],
                data[:start],
            )[kind]
        return data

    return mangle


TYPES = st.sampled_from(["FP32", "FP16", "FP64", "INT32", "UINT8", "BYTES", "BOOL", "BF16", "", "X"])
SIZES = st.sampled_from([0, 1, -1, 2, 5, 6, 2**31, 2**62, 2**63 - 1, -(2**63)])
VERSIONS = st.sampled_from(["", "1", "2", "-1", "x", "01", "1 ", "\u0661", "9" * 5000])
NAMES = st.sampled_from(
    ["logits", "tokenizer_json", "tokenizer_sha256", "max_length", "labels_json", "heads_json", "x"]
)
FLOATS = st.sampled_from([float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 0.0])


@st.composite
def answers_of_infer(draw) -> Mangle:
    """Another version, another name, type, shape or value of an output, outputs twice or not at all, more data."""
    edits = draw(
        st.lists(
            st.tuples(
                st.sampled_from(
                    [
                        "version",
                        "name",
                        "type",
                        "shape",
                        "raw",
                        "values",
                        "twice",
                        "drop",
                        "swap",
                        "more",
                        "contents",
                        "none",
                    ]
                ),
                st.integers(0, 5),
                VERSIONS,
                NAMES,
                TYPES,
                st.lists(SIZES, max_size=4),
                st.binary(max_size=40),
                st.lists(FLOATS, min_size=1, max_size=6),
            ),
            min_size=1,
            max_size=3,
        )
    )

    def mangle(data: bytes) -> bytes:
        answer = service_pb2.ModelInferResponse.FromString(data)
        for edit in edits:
            change(answer, *edit)
        return bytes(answer.SerializeToString())

    return mangle


def change(
    answer: Any, kind: str, place: int, version: str, name: str, datatype: str, shape: list, raw: bytes, values: list
) -> None:
    if kind == "version":
        answer.model_version = version
    elif answer.outputs:
        change_output(answer.outputs, kind, place % len(answer.outputs), name, datatype, shape)
        if answer.raw_output_contents:
            change_data(answer.raw_output_contents, kind, place % len(answer.raw_output_contents), raw, values)


def change_output(outputs: Any, kind: str, place: int, name: str, datatype: str, shape: list) -> None:
    match kind:
        case "name":
            outputs[place].name = name
        case "type":
            outputs[place].datatype = datatype
        case "shape":
            outputs[place].shape[:] = shape
        case "twice":
            outputs.append(outputs[place])
        case "drop":
            del outputs[place]
        case "contents":
            outputs[place].contents.fp32_contents.append(1.5)
            outputs[place].contents.bytes_contents.append(b"x")


def change_data(contents: Any, kind: str, place: int, raw: bytes, values: list) -> None:
    match kind:
        case "raw":
            contents[place] = raw
        case "values":
            contents[place] = np.resize(np.array(values, np.float32), len(contents[place]) // 4).tobytes()
        case "swap":
            contents.insert(0, contents.pop())
        case "none":
            del contents[:]
        case "more":
            contents.extend([raw] * 2000)


@st.composite
def answers_of_metadata(draw) -> Mangle:
    versions = draw(st.lists(VERSIONS, max_size=4))

    def mangle(data: bytes) -> bytes:
        answer = service_pb2.ModelMetadataResponse.FromString(data)
        answer.versions[:] = versions
        return bytes(answer.SerializeToString())

    return mangle


@st.composite
def answers_of_config(draw) -> Mangle:
    limits = draw(st.sampled_from(["0", "-1", "", "1e9", "\u0663", "1", "3", "9" * 5000, "9" * 30]))
    key = draw(st.sampled_from(["max_elements.lengths", "max_elements.input_ids"]))
    names = draw(st.lists(st.sampled_from(["input_ids", "lengths", "longest", "user_lengths", "x"]), max_size=5))
    change_inputs = draw(st.booleans())

    def mangle(data: bytes) -> bytes:
        answer = service_pb2.ModelConfigResponse.FromString(data)
        answer.config.parameters[key].string_value = limits
        if change_inputs:
            del answer.config.input[:]
            for name in names:
                answer.config.input.add(name=name)
        return bytes(answer.SerializeToString())

    return mangle


MANGLING = {
    "ModelMetadata": answers_of_metadata(),
    "ModelConfig": answers_of_config(),
    "Tokenizer": answers_of_infer(),
    "ModelInfer": answers_of_infer(),
}
ATTACKS = st.sampled_from(sorted(MANGLING)).flatmap(
    lambda method: st.tuples(st.just(method), MANGLING[method] | byte_mangling())
)
CALLS: dict[str, tuple] = {
    "score_pairs": (PAIRS,),
    "rank": ("tea", [document for _, document in PAIRS]),
    "classify": (["tea", "bar"],),
    "embed": (["tea", "bar"],),
    "similarity": ("tea", ["bar", "a"]),
    "passages": (PAIRS,),
}


def were_sent(server: Hostile, scores: dict[int, float]) -> bool:
    """Whether each pair's score was sent for this very pair."""
    return len(scores) == len(PAIRS) and all(
        any(score == pytest.approx(sent) for sent in server.sent.get(place, [])) for place, score in scores.items()
    )


def call_of(ranker: Any, method: str) -> Any:
    if method == "passages":
        return ranker.score_pairs(*CALLS[method], long_documents="passages")
    return getattr(ranker, method)(*CALLS[method])


def in_asyncio(url: str, method: str) -> Any:
    async def call() -> Any:
        async with AsyncRanker(url, timeout=TIMEOUT) as ranker:
            return await call_of(ranker, method)

    return asyncio.run(call())


def blocking(url: str, method: str) -> Any:
    with Ranker(url, timeout=TIMEOUT) as ranker:
        return call_of(ranker, method)


@hypothesis.settings(max_examples=200, suppress_health_check=list(hypothesis.HealthCheck), database=None)
@hypothesis.given(attack=ATTACKS, method=st.sampled_from(["score_pairs", "score_pairs", *CALLS]), aio=st.booleans())
def test_the_caller_gets_what_was_sent_or_an_error_of_this_package(hostile, attack, method, aio):
    server, url = hostile
    server.forget(FakeTriton({1: Published(heads=HEADS)}), dict([attack]))
    began = time.monotonic()
    try:
        found = (in_asyncio if aio else blocking)(url, method)
    except ClickBertError as exc:
        assert isinstance(exc, ServerError) or "version" in str(exc), exc  # a head that is gone is the caller's
        return
    finally:
        assert time.monotonic() - began < TIMEOUT + SLACK
    if method in ("score_pairs", "passages"):  # each of these documents is one passage, whose score is the document's
        assert were_sent(server, dict(enumerate(found)))
    elif method == "rank":
        assert were_sent(server, {item.index: item.score for item in found})
        assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
    elif method == "classify":
        assert all(0 <= value <= 1 for row in found for value in row.values())
    elif method == "similarity":
        assert len(found) == 2 and all(-1 <= value <= 1 for value in found)
    else:
        assert found.shape == (2, 4) and np.linalg.norm(found, axis=1) == pytest.approx(1, abs=2e-2)


def test_an_honest_server_is_answered_for(hostile):
    """The oracle above holds of right answers."""
    server, url = hostile
    fake = FakeTriton({1: Published(heads=HEADS)})
    server.forget(fake, {})
    found = blocking(url, "score_pairs")
    assert found == pytest.approx([fake.published[1].expected(*pair) for pair in PAIRS])
    assert were_sent(server, dict(enumerate(found)))
    assert not were_sent(server, dict(enumerate(reversed(found))))
