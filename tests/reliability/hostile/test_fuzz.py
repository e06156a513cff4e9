"""14: whatever bytes come, the server's processes stay, and the next good call is answered as ever.

Requests with a few things wrong at a time, bytes that were mangled, bytes of any kind, on each method that callers may
use; and what is not even gRPC, on the port. After every one of them a well-formed request must get its own scores.
"""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from serving.server import Server
from tests.figures import Figures
from tests.reliability.hostile.raw import GOOD, GOOD_ONCE, MODELS, SERVICE, RawCaller, Refused, Unharmed, message

INT64 = st.integers(-(2**63), 2**63 - 1)
SIZES = st.sampled_from([0, 1, -1, 4, 5, 6, 16, 17, 2**31 - 1, 2**31, 2**32 + 1, 2**61, 2**62, -(2**62), 2**63 - 1])
TYPES = st.sampled_from(["INT32", "INT64", "UINT8", "FP32", "FP16", "BF16", "BOOL", "BYTES", "", "INT128"])
NAMES = st.sampled_from([*GOOD, *GOOD_ONCE, "logits", "kept_prefixes", "", "\0", "input_ids\0", "../x"]) | st.text(
    max_size=9
)
KEYS = ("timeout", "priority", "sequence_id", "sequence_start", "sequence_end", "binary_data_output", "binary_data")
KEYS += ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size", "classification", "headers")
KEYS += ("triton_enable_empty_final_response", "triton_other", "")
# A fault of the server, not of the request.
BROKEN = ("is not healthy", "cannot be taken", "cannot be executed", "cannot be put together", "DEADLINE_EXCEEDED")
# A failure is shown as it was found: the server it needs for a smaller one is broken by then.
COMMON = {
    "deadline": None,
    "database": None,
    "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}


def set_parameter(draw: st.DrawFn, holder: Any) -> None:
    parameter = holder.parameters[draw(st.sampled_from(KEYS) | st.text(max_size=5))]
    kind = draw(st.sampled_from(["bool_param", "int64_param", "string_param", "double_param", "uint64_param"]))
    values = {
        "bool_param": st.booleans(),
        "int64_param": SIZES | INT64,
        "string_param": st.sampled_from(["nowhere", "/dev/shm", "1", "{}"]) | st.text(max_size=9),
        "double_param": st.floats(),
        "uint64_param": st.integers(0, 2**64 - 1),
    }
    setattr(parameter, kind, draw(values[kind]))


def set_contents(draw: st.DrawFn, tensor: Any) -> None:
    field = draw(st.sampled_from(["bool", "int", "int64", "uint", "uint64", "fp32", "fp64", "bytes"]))
    value = {"bool": True, "fp32": 1.5, "fp64": float("nan"), "bytes": b"x"}.get(field, 7)
    getattr(tensor.contents, f"{field}_contents").extend([value] * draw(st.integers(1, 6)))


def change_tensor(draw: st.DrawFn, request: Any) -> None:
    tensor = request.inputs[draw(st.integers(0, len(request.inputs) - 1))]
    match draw(st.integers(0, 4)):
        case 0:
            tensor.name = draw(NAMES)
        case 1:
            tensor.datatype = draw(TYPES)
        case 2:
            tensor.shape[:] = draw(st.lists(SIZES | st.integers(-3, 40), max_size=4))
        case 3:
            set_contents(draw, tensor)
        case 4:
            set_parameter(draw, tensor)


def wrap_around(draw: st.DrawFn, request: Any) -> None:
    """A shape of as many bytes as there are, in 64 bits."""
    place = draw(st.integers(0, min(len(request.inputs), len(request.raw_input_contents)) - 1))
    elements = len(request.raw_input_contents[place]) // 4
    request.inputs[place].shape[:] = [1, draw(st.sampled_from([2**62, -(2**62)])) + elements]


def change_data(draw: st.DrawFn, request: Any) -> None:
    place = draw(st.integers(0, len(request.raw_input_contents) - 1))
    data = request.raw_input_contents[place]
    request.raw_input_contents[place] = draw(
        st.sampled_from([b"", data[:-1], data + b"\0", data * 2, bytes(len(data)), b"\xff" * len(data)])
        | st.binary(min_size=len(data), max_size=len(data))
    )


def change_list(draw: st.DrawFn, request: Any) -> None:
    field = request.inputs if draw(st.booleans()) else request.raw_input_contents
    place = draw(st.integers(0, len(field) - 1))
    if draw(st.booleans()) and len(field) > 1:
        del field[place]
    else:
        field.append(field[place])


def change_outputs(draw: st.DrawFn, request: Any) -> None:
    for _ in range(draw(st.integers(1, 3))):
        output = request.outputs.add(name=draw(st.just("logits") | NAMES))
        if draw(st.booleans()):
            set_parameter(draw, output)


def change_names(draw: st.DrawFn, request: Any) -> None:
    match draw(st.integers(0, 2)):
        case 0:
            versions = st.sampled_from(["1", "01", "2", "-1", "9" * 30, "1 ", "../1", "\0"])
            request.model_version = draw(versions | st.text(max_size=5))
        case 1:
            request.model_name = draw(
                st.sampled_from([*MODELS, "clickbert_tokenizer", "", "../x"]) | st.text(max_size=9)
            )
        case 2:
            request.id = draw(st.text(max_size=300))


CHANGES: tuple[Callable[[st.DrawFn, Any], None], ...] = (
    change_tensor,
    change_tensor,
    change_data,
    wrap_around,
    change_list,
    change_outputs,
    change_names,
    set_parameter,
)


@st.composite
def wrong_requests(draw: st.DrawFn, goods: list[Any]) -> bytes:
    """A well-formed request with one to four changes, each of which may be harmless."""
    request = service_pb2.ModelInferRequest()
    request.CopyFrom(draw(st.sampled_from(goods)))
    for change in draw(st.lists(st.sampled_from(CHANGES), min_size=1, max_size=4)):
        change(draw, request)
    return bytes(request.SerializeToString())


@st.composite
def mangled(draw: st.DrawFn, goods: list[bytes]) -> bytes:
    """The bytes of a message with some of them flipped, cut, doubled, moved or made up."""
    data = draw(st.sampled_from(goods))
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, max(0, len(data) - 1)))
        stop = start + draw(st.integers(0, 9))
        data = draw(
            st.sampled_from(
                [
                    data[:start] + data[stop:],
                    data[:stop] + data[start:],
                    data[:start] + bytes(255 - byte for byte in data[start:stop]) + data[stop:],
                    data[start:] + data[:start],
                    data[:start],
                ]
            )
            | st.binary(max_size=9).map(lambda new, d=data, a=start, b=stop: d[:a] + new + d[b:])
        )
    return data


class Fuzz:
    """Sends cases to a server, counts their ends, and stops at the first that harmed somebody."""

    def __init__(self, unharmed: Unharmed) -> None:
        self.unharmed, self.ends = unharmed, Counter[str]()

    def send(self, data: bytes, method: str = "ModelInfer", service: str = SERVICE) -> None:
        try:
            self.unharmed.caller.send(data, method, service)
            self.ends["answered"] += 1
        except Refused as exc:
            assert not any(sign in str(exc) for sign in BROKEN), exc
            self.ends[exc.status] += 1
        self.unharmed.check(self.ends.total())

    def done(self, figures: Figures, what: str, least: int) -> None:
        """Records how many cases there were; every one of them harmed nobody, or the test had ended."""
        self.unharmed.check_processes()
        print(f"{what}: {dict(self.ends)}")
        figures.at_least(14, f"{what}: cases, the next good call answered after each", self.ends.total(), least)


@pytest.fixture(params=["full attention", "user once"])
def fuzz(request: pytest.FixtureRequest) -> Any:
    full = request.param == "full attention"
    server: Server = request.getfixturevalue("published_server" if full else "once_server")
    with RawCaller(server.addresses.grpc) as caller:
        goods = [message(model, GOOD if full else GOOD_ONCE) for model in MODELS]
        goods.append(message("clickbert_tokenizer", {}))
        yield Fuzz(Unharmed(server, caller, goods)), request.param


@pytest.mark.reliability
def test_wrong_requests_harm_nobody(fuzz: tuple[Fuzz, str], figures: Figures) -> None:
    case, kind = fuzz
    goods = case.unharmed.requests[:2]

    @settings(max_examples=1000, **COMMON)
    @given(wrong_requests(goods))
    def run(data: bytes) -> None:
        case.send(data)

    run()
    case.done(figures, f"requests with a few changes, {kind}", 800)


@pytest.mark.reliability
def test_mangled_bytes_harm_nobody(fuzz: tuple[Fuzz, str], figures: Figures) -> None:
    case, kind = fuzz
    goods = [request.SerializeToString() for request in case.unharmed.requests]

    @settings(max_examples=1000, **COMMON)
    @given(mangled(goods) | st.binary(max_size=200))
    def run(data: bytes) -> None:
        case.send(data)

    run()
    case.done(figures, f"mangled bytes, {kind}", 800)


# The methods that callers may use, with a message that each understands. Streams are one message long.
METHODS = {
    "ServerLive": service_pb2.ServerLiveRequest(),
    "ServerReady": service_pb2.ServerReadyRequest(),
    "ServerMetadata": service_pb2.ServerMetadataRequest(),
    "ModelReady": service_pb2.ModelReadyRequest(name=MODELS[0], version="1"),
    "ModelMetadata": service_pb2.ModelMetadataRequest(name=MODELS[0], version="1"),
    "ModelConfig": service_pb2.ModelConfigRequest(name=MODELS[0], version="1"),
    "ModelStreamInfer": message(MODELS[0], GOOD),
    "Check": service_pb2.ServerLiveRequest(),
    "NoSuchMethod": service_pb2.ServerLiveRequest(),
}


@pytest.mark.reliability
def test_other_methods_harm_nobody(published_server: Server, figures: Figures) -> None:
    with RawCaller(published_server.addresses.grpc) as caller:
        case = Fuzz(Unharmed(published_server, caller, [message(model, GOOD) for model in MODELS]))

        @settings(max_examples=800, **COMMON)
        @given(st.data(), st.sampled_from(sorted(METHODS)))
        def run(data: st.DataObject, method: str) -> None:
            good = METHODS[method].SerializeToString()
            sent = data.draw(mangled([good]) | st.binary(max_size=100) | st.just(good))
            case.send(sent, method, "grpc.health.v1.Health" if method == "Check" else SERVICE)

        run()
        case.done(figures, "other methods, mangled", 600)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes, length: int | None = None) -> bytes:
    """A frame of HTTP/2, which may lie about its length."""
    size = len(payload) if length is None else length
    return size.to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def garbage(chance: random.Random) -> bytes:
    """What is not gRPC: frames in any order, HTTP/1, a TLS hello, anything."""
    settled = PREFACE + frame(4, 0, 0, b"")
    kind = chance.randrange(6)
    if kind == 0:
        return chance.randbytes(chance.randint(0, 300))
    if kind == 1:
        return settled + chance.randbytes(chance.randint(0, 300))
    if kind == 2:
        frames = [
            frame(
                chance.randint(0, 12),
                chance.randrange(256),
                chance.choice([0, 1, 2, 3, 2**31 - 1]),
                chance.randbytes(chance.randint(0, 60)),
                chance.choice([None, None, 0, 1, 2**14, 2**24 - 1]),
            )
            for _ in range(chance.randint(1, 20))
        ]
        return settled + b"".join(frames)
    if kind == 3:  # headers that never end
        return settled + frame(1, 0, 1, b"\x82") + frame(9, 0, 1, chance.randbytes(50)) * 40
    if kind == 4:  # streams opened and reset at once
        opened = (frame(1, 4, stream, b"\x82\x84\x86") + frame(3, 0, stream, bytes(4)) for stream in range(1, 400, 2))
        return settled + b"".join(opened)
    return chance.choice(
        [
            b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
            PREFACE[:9],
        ]
    )


@pytest.mark.reliability
def test_what_is_not_grpc_harms_nobody(published_server: Server, figures: Figures) -> None:
    chance = random.Random(0)
    addresses = published_server.addresses
    with RawCaller(addresses.grpc) as caller:
        case = Fuzz(Unharmed(published_server, caller, [message(model, GOOD) for model in MODELS]))
        half_open = []
        for number in range(400):
            connection = socket.create_connection(("127.0.0.1", addresses.grpc_port), timeout=0.05)
            with suppress(OSError):  # it hangs up, or says nothing
                connection.sendall(garbage(chance))
                while connection.recv(4096):
                    pass
            if number % 4:
                connection.close()
            else:
                half_open.append(connection)
            case.unharmed.check(number)
            case.ends["sent"] += 1
        case.done(figures, "garbage on the port, a quarter left open", 400)
        for connection in half_open:
            connection.close()


@pytest.mark.reliability
def test_cancelled_and_unfinished_streams_harm_nobody(published_server: Server, figures: Figures) -> None:
    """Streams of several requests that are cancelled midway, or never ended."""
    with RawCaller(published_server.addresses.grpc) as caller:
        unharmed = Unharmed(published_server, caller, [message(model, GOOD) for model in MODELS])
        stream = caller.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        ends = Counter[str]()
        for number in range(300):
            requests = [message(MODELS[number % 2], GOOD).SerializeToString()] * (number % 20)
            call = stream(iter(requests), timeout=60)
            with suppress(grpc.RpcError, StopIteration):
                for _ in range(number % 5):
                    next(call)
            call.cancel()
            ends["cancelled"] += 1
            unharmed.check(number)
        unharmed.check_processes()
        figures.at_least(14, "streams cancelled midway", ends.total(), 300)
