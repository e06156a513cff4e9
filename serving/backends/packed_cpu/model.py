"""The packed_cpu backend: a model's requests computed on the CPU by ONNX Runtime, packed, in chunks, in a fair order.

Triton takes a backend folder with a `model.py` for a backend written in Python, so `backend: "packed_cpu"` in a
config.pbtxt is all that a model needs. `execute` hands requests over and returns; each is answered by its response
sender when it is done (service.py). settings.py says what a config may ask for.

Where Triton has no onnxruntime backend this one serves under that name, too. A model without `chunk_by` is computed
within `execute`, all requests of a call together.

Triton's Python stub has a Python path of its own: this file's folder holds a copy of what it imports from the
repository (`serving.triton.lay_out_backends`)."""

from __future__ import annotations

import ctypes
import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from serving.backends.packed_cpu import figures
from serving.backends.packed_cpu.graph import Graph
from serving.backends.packed_cpu.presence import Presence
from serving.backends.packed_cpu.scores import read_scoring
from serving.backends.packed_cpu.segments import Array, Arrays
from serving.backends.packed_cpu.service import Service
from serving.backends.packed_cpu.settings import Settings, UnsupportedError
from serving.backends.packed_cpu.warm_up import warm_up_requests
from serving.backends.packed_cpu.wild_shapes import is_wild, survive_wild_shapes

HERE = Path(__file__).parent  # the server's own copy
CONSUMED = b"used_dltensor"  # the name that numpy looks for; kept alive here for as long as any capsule
CODES = {  # by name: Triton adds them to its module after this one is imported
    "malformed": "INVALID_ARG",
    "overloaded": "UNAVAILABLE",
    "full": "UNAVAILABLE",
    "expired": "UNAVAILABLE",
    "cancelled": "CANCELLED",
    "failed": "INTERNAL",
}


class TritonPythonModel:
    """One version of a model. Triton calls `initialize` once, then `execute` with the requests, then `finalize`."""

    service: Service | None = None

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the graph as the config says. An error here keeps the version from being served."""
        survive_wild_shapes()
        try:
            config, folder = json.loads(args["model_config"]), Path(args["model_repository"])
            self.settings = Settings.of(config)
            self.graph = Graph(self.settings, folder / args["model_version"])
        except UnsupportedError as exc:
            raise pb_utils.TritonModelException(str(exc)) from exc
        for name, inputs in warm_up_requests(config, folder):
            (answer,) = self.graph.answer([inputs], [list(self.graph.outputs)])
            if isinstance(answer, str):
                raise pb_utils.TritonModelException(f"warm-up {name!r}: {answer}")
        if self.settings.chunk_by:
            labels = {"model": args["model_name"], "version": args["model_version"]}
            self.figures = figures.Published(open_metric, labels, read_scoring(folder / args["model_version"]))
            self.service = Service(
                self.settings, self.graph.answer, Responses(), self.figures, HERE, self.graph.longest
            )
            self.figures.start(self.service.schedule)
        self.presence = Presence(HERE, f"{args['model_name']}.{args['model_version']}")

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Takes requests over. Without `chunk_by`, returns their answers in order."""
        if self.service:
            for request in requests:
                self.take(request, self.service)
            return None
        inputs = [self.read(request) for request in requests]
        readable = [
            (request, given) for request, given in zip(requests, inputs, strict=True) if isinstance(given, dict)
        ]
        wanted = [self.wanted(request) for request, _ in readable]
        answers = iter(self.graph.answer([given for _, given in readable], wanted))
        return [to_response(given if isinstance(given, str) else next(answers)) for given in inputs]

    def take(self, request: Any, service: Service) -> None:
        """Hands a request to the service; what fails is its own error."""
        try:
            given = self.read(request)
            if isinstance(given, str):
                service.refuse(request, "malformed", given)
            else:
                service.submit(request, given, self.wanted(request), request.timeout() / 1e6)
        except Exception as exc:
            service.refuse(request, "failed", f"the request cannot be taken: {exc}")

    def finalize(self) -> None:
        """Answers what was taken, and ends."""
        if self.service:
            self.service.close()
            self.figures.close()
        self.presence.leave()

    def read(self, request: Any) -> Arrays | str:
        """A request's inputs by name, copied out of the memory that it shares with Triton; or an error's text."""
        arrays = {}
        for entry in self.settings.inputs:
            name = entry["name"]
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is None:
                if entry.get("optional"):
                    continue
                return f"the request has no input {name!r}"
            shape = tensor.shape()
            if is_wild(shape):
                return f"malformed request: input {name!r} has the shape {list(shape)}, which no memory holds"
            size = prod(shape)
            limit = self.settings.limits.get(name, size)
            if size > limit:
                return f"input {name!r} has {size} elements, at most {limit} are allowed; split it"
            array = np.from_dlpack(tensor)
            if name in self.settings.ragged and not array.size:
                return f"malformed request: input {name!r} has no elements"
            arrays[name] = array.copy() if self.service else array
        return arrays

    def wanted(self, request: Any) -> list[str]:
        """The outputs that a request asks for, of those that there are; all of them if it names none."""
        asked = request.requested_output_names()
        return [name for name in self.graph.outputs if name in asked]


class Responses:
    """Sends answers by Triton's response senders."""

    def send(self, request: Any, answer: Arrays) -> None:
        """Sends the outputs."""
        respond(request, to_response(answer))

    def refuse(self, request: Any, outcome: str, reason: str) -> None:
        """Sends an error."""
        respond(request, to_error(outcome, reason))

    def is_cancelled(self, request: Any) -> bool:
        """Whether the caller has hung up."""
        return bool(request.is_cancelled())


def respond(request: Any, response: Any) -> None:
    """Sends a request's only response."""
    request.get_response_sender().send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def to_response(answer: Arrays | str) -> Any:
    """Triton's response: the outputs, or the error of a malformed request."""
    if isinstance(answer, str):
        return to_error("malformed", answer)
    return pb_utils.InferenceResponse([to_tensor(name, array) for name, array in answer.items()])


def to_error(outcome: str, reason: str) -> Any:
    """Triton's response: an error."""
    code = getattr(pb_utils.TritonError, CODES[outcome])
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(reason, code))


def to_tensor(name: str, array: Array) -> Any:
    """A Triton tensor of the array's memory. (By DLPack: the Python backend's own conversion breaks with numpy 2.)"""
    capsule = np.require(array, requirements=["C", "W"]).__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    # The backend marks a consumed capsule with a name of its own; numpy, not knowing it, complains on stderr.
    ctypes.pythonapi.PyCapsule_SetName(ctypes.py_object(capsule), CONSUMED)
    return tensor


def open_metric(name: str, description: str, labels: dict[str, str]) -> Any:
    """A metric at Triton's endpoint, of the kind that its name says."""
    family = FAMILIES.get(name)
    if family is None:
        if name in figures.DURATIONS:
            kind = pb_utils.MetricFamily.HISTOGRAM
        else:
            kind = pb_utils.MetricFamily.GAUGE if name in figures.GAUGES else pb_utils.MetricFamily.COUNTER
        family = FAMILIES[name] = pb_utils.MetricFamily(name=name, description=description, kind=kind)
    if name in figures.DURATIONS:
        return family.Metric(labels=labels, buckets=list(figures.BOUNDS))
    return family.Metric(labels=labels)


FAMILIES: dict[str, Any] = {}
