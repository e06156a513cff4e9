"""13: whatever is wrong with a request, it is refused by the right class, and nobody else is harmed.

Every wrong type, rank, batch, name and value, one at a time, in each input of each kind of model, fp32 and INT8.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from clickbert.errors import ModelNotFoundError, ProtocolError, from_status
from serving.server import Server
from tests.figures import Figures
from tests.reliability.hostile.raw import GOOD, GOOD_ONCE, MODELS, TOLERANCE, RawCaller, Refused, Unharmed, message

Tensors = dict[str, list[int]]
TYPES = {"BOOL": 1, "INT8": 1, "UINT8": 1, "FP16": 2, "INT64": 8, "UINT32": 4, "FP32": 4, "FP64": 8, "BYTES": 4}
NO_TYPES = ("", "int32", "TYPE_INT32", "INT128")
# Internal inputs of the graphs, and what nobody knows.
NO_INPUTS = ("token_counts", "pair_counts", "kept_earlier", "kept_prefixes", "longest", "", "INPUT_IDS", "../input_ids")
NO_OUTPUTS = ("", "nothing", "kept", "input_ids", "LOGITS", "logits/0")
NO_VERSIONS = {"2": ModelNotFoundError, "0": ModelNotFoundError, "-1": ProtocolError, "newest": ProtocolError}
NO_VERSIONS |= {"99999999999999999999": ProtocolError, "../1": ProtocolError}
NO_MODELS = ("", "clickbert", "clickbert_onnx/1", "../clickbert_onnx", "clickbert_onnx ", "CLICKBERT_ONNX")
EXTREMES = (-1, -(2**31), 2**31 - 1)
# How many elements of 4 bytes wrap around to none in 64 bits.
TURN = 2**62


class Case(NamedTuple):
    """A wrong request, and which error of the client's it is."""

    name: str
    request: Any
    error: type[Exception] = ProtocolError


def spoiled(good: Any, name: str, change: Callable[[Any], Any], error: type[Exception] = ProtocolError) -> Case:
    request = service_pb2.ModelInferRequest()
    request.CopyFrom(good)
    change(request)
    return Case(name, request, error)


def reshaped(good: Any, name: str, place: int, shape: list[int], data: bytes | None = None) -> Case:
    def change(request: Any) -> None:
        request.inputs[place].shape[:] = shape
        if data is not None:
            request.raw_input_contents[place] = data

    return spoiled(good, f"{name} of the shape {shape}", change)


def wrong_tensors(model: str, tensors: Tensors) -> Iterator[Case]:
    """Each input with another type, shape, name or source of its data."""
    good = message(model, tensors)
    for place, (name, values) in enumerate(tensors.items()):
        size, data = len(values), good.raw_input_contents[place]
        for kind, width in TYPES.items():

            def retype(request: Any, place: int = place, kind: str = kind, size: int = size * width) -> None:
                request.inputs[place].datatype = kind
                request.raw_input_contents[place] = bytes(size)

            yield spoiled(good, f"{name} as {kind}", retype)
        for kind in NO_TYPES:
            yield spoiled(good, f"{name} as {kind!r}", lambda it, p=place, k=kind: setattr(it.inputs[p], "datatype", k))
        for shape in ([], [size], [1, 1, size], [1, size, 1], [2, size], [-1, size], [17, size]):
            yield reshaped(good, name, place, shape)
        for shape in (
            [1, size - 1],
            [1, size + 1],
            [1, -size],
            [-1, -size],
            [1, 2**31],
            [1, 2**63 - 1],
            [2**32, 2**32],
        ):
            yield reshaped(good, name, place, shape)
        yield reshaped(good, name, place, [1, 0], b"")
        for wild in (TURN, -TURN):
            yield reshaped(good, name, place, [1, wild], b"")
            yield reshaped(good, name, place, [1, wild + size], data)
        yield spoiled(good, f"no {name}", lambda it, p=place: (it.inputs.pop(p), it.raw_input_contents.pop(p)))
        yield spoiled(good, f"{name} without data", lambda it, p=place: it.raw_input_contents.pop(p))
        yield spoiled(
            good, f"{name} twice", lambda it, p=place, d=data: (it.inputs.append(it.inputs[p]), raw(it).append(d))
        )
        for other in NO_INPUTS:
            yield spoiled(good, f"{name} as {other!r}", lambda it, p=place, o=other: setattr(it.inputs[p], "name", o))
        for field in ("int_contents", "int64_contents", "fp32_contents", "bool_contents"):
            yield spoiled(
                good,
                f"{name} as raw and as {field}",
                lambda it, p=place, f=field: getattr(it.inputs[p].contents, f).append(1),
            )


def raw(request: Any) -> Any:
    return request.raw_input_contents


def wrong_batches(model: str, tensors: Tensors) -> Iterator[Case]:
    """All inputs alike wrong."""
    good = message(model, tensors)

    def rows(count: int) -> Callable[[Any], None]:
        def change(request: Any) -> None:
            for place, tensor in enumerate(request.inputs):
                tensor.shape[0] = count
                request.raw_input_contents[place] *= count

        return change

    for count in (0, 2, 16, 17):
        yield spoiled(good, f"{count} rows", rows(count))
    for shape in ([1, TURN], [1, -TURN], [2, TURN // 2], [16, TURN // 16], [2**32 + 1, TURN], [-16, -TURN // 16]):

        def change(request: Any, shape: list[int] = shape) -> None:
            for place, tensor in enumerate(request.inputs):
                tensor.shape[:] = shape
                request.raw_input_contents[place] = b""

        yield spoiled(good, f"all of the shape {shape}", change)
    # An odd number of rows has an inverse: the bytes of so many rows of so many elements wrap around to the right ones.
    for count in (2**32 + 1, 2**33 + 1, 1 - 2**32):

        def wrap(request: Any, count: int = count) -> None:
            for tensor in request.inputs:
                tensor.shape[:] = [count, tensor.shape[1] * pow(count, -1, TURN) % TURN]

        yield spoiled(good, f"{count} rows, which wrap around", wrap)


def wrong_names(model: str, tensors: Tensors) -> Iterator[Case]:
    """Outputs, versions and models that there are not; parameters of another type."""
    good = message(model, tensors)
    for name in NO_OUTPUTS:
        yield spoiled(good, f"the output {name!r}", lambda it, n=name: it.outputs.add(name=n))
    for version, error in NO_VERSIONS.items():
        yield spoiled(good, f"version {version!r}", lambda it, v=version: setattr(it, "model_version", v), error)
    for other in NO_MODELS:
        yield spoiled(
            good, f"model {other!r}", lambda it, o=other: setattr(it, "model_name", o), error=ModelNotFoundError
        )
    for parameter in ("timeout", "priority", "sequence_id", "sequence_start", "triton_other"):
        yield spoiled(
            good, f"a number for {parameter}", lambda it, p=parameter: setattr(it.parameters[p], "double_param", 1.5)
        )
    for parameter in ("shared_memory_offset", "shared_memory_byte_size") if tensors else ():
        yield spoiled(good, parameter, lambda it, p=parameter: setattr(it.inputs[0].parameters[p], "int64_param", -1))


def wrong_values(model: str, tensors: Tensors, lengths: tuple[str, ...]) -> Iterator[Case]:
    """Numbers that contradict each other or are out of range, in each place."""
    for name, values in tensors.items():
        for place in range(len(values)):
            for value in (*EXTREMES, *((0, values[place] + 1) if name in lengths else ())):
                if value == values[place]:
                    continue
                changed = tensors | {name: [*values[:place], value, *values[place + 1 :]]}
                yield Case(f"{name}[{place}] = {value}", message(model, changed))
        yield Case(f"{name} one longer", message(model, tensors | {name: [*values, 1]}))
        yield Case(f"{name} one shorter", message(model, tensors | {name: values[:-1]}))
        yield Case(f"{name} of 1,000,000", message(model, tensors | {name: [1] * 1_000_000}))
    yield Case("nothing", message(model, {name: [] for name in tensors}))


def ask_all_along(url: str, request: Any, expected: np.ndarray, stop: threading.Event) -> tuple[int, int]:
    """Asks until it is to stop; returns how many answers there were, and how many were not the right ones."""
    count = wrong = 0
    with RawCaller(url) as caller:
        while not stop.is_set():
            count += 1
            try:
                wrong += not np.allclose(caller.infer(request)["logits"], expected, atol=TOLERANCE)
            except Refused:
                wrong += 1
            stop.wait(0.02)
    return count, wrong


def send_all(server: Server, unharmed: Unharmed, cases: list[Case]) -> list[str]:
    """Sends each case, and a good request after it; returns what was not refused as it should be."""
    faults = []
    for number, case in enumerate(cases):
        try:
            unharmed.caller.send(case.request.SerializeToString())
            faults.append(f"{case.name}: answered")
        except Refused as exc:
            error = from_status(exc.status, exc.details, where="here")
            if type(error) is not case.error:
                faults.append(f"{case.name}: {type(error).__name__}, {exc}")
        unharmed.check(number)
    unharmed.check_processes()
    return faults


@pytest.mark.reliability
@pytest.mark.parametrize("kind", ["full attention", "user once"])
@pytest.mark.parametrize("model", MODELS)
def test_wrong_requests_are_refused_and_harm_nobody(
    request: pytest.FixtureRequest, figures: Figures, kind: str, model: str
) -> None:
    server: Server = request.getfixturevalue("published_server" if kind == "full attention" else "once_server")
    tensors = GOOD if kind == "full attention" else GOOD_ONCE
    lengths = tuple(name for name in tensors if name not in ("input_ids", "token_type_ids"))
    cases = [*wrong_tensors(model, tensors), *wrong_batches(model, tensors), *wrong_names(model, tensors)]
    cases += wrong_values(model, tensors, lengths)
    stop = threading.Event()
    url, good = server.addresses.grpc, message(model, tensors)
    with RawCaller(url) as caller, ThreadPoolExecutor(1) as pool:
        unharmed = Unharmed(server, caller, [good])
        neighbour = pool.submit(ask_all_along, url, good, unharmed.expected[0]["logits"], stop)
        try:
            faults = send_all(server, unharmed, cases)
        finally:
            stop.set()
    answered, wrong = neighbour.result()
    name = f"{model.removeprefix('clickbert_')}, {kind}"
    print("\n".join(faults))
    figures.only_told(13, f"{name}: wrong requests, a good one after each", len(cases))
    figures.exactly(13, f"{name}: not refused, or by another class", len(faults), 0)
    figures.exactly(13, f"{name}: of {answered} neighbours' answers wrong", wrong, 0)


@pytest.mark.reliability
def test_the_tokenizer_takes_nothing(published_server: Server, figures: Figures) -> None:
    model = "clickbert_tokenizer"
    cases = [
        *wrong_names(model, {}),
        Case("an input", message(model, {"lengths": [1]})),
        Case("inputs", message(model, GOOD)),
    ]
    with RawCaller(published_server.addresses.grpc) as caller:
        unharmed = Unharmed(published_server, caller, [message(model, {}), message(MODELS[0], GOOD)])
        faults = send_all(published_server, unharmed, cases)
    print("\n".join(faults))
    figures.exactly(13, f"tokenizer: of {len(cases)} wrong requests not refused", len(faults), 0)


@pytest.mark.parametrize("elements", [TURN, -TURN])
def test_a_shape_that_wraps_around_does_not_end_the_backend(published_server: Server, elements: int) -> None:
    """Triton 2.51 takes it for a shape of no bytes, and its Python process ended."""
    with RawCaller(published_server.addresses.grpc) as caller:
        unharmed = Unharmed(published_server, caller, [message(MODELS[0], GOOD)])
        wild = reshaped(message(MODELS[0], GOOD), "input_ids", 0, [1, elements], b"")
        with pytest.raises(Refused, match=r"INVALID_ARGUMENT: malformed request: .* which no memory holds"):
            caller.send(wild.request.SerializeToString())
        unharmed.check()
        unharmed.check_processes()
