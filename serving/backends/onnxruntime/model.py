"""A stand-in for Triton's onnxruntime backend, where that C++ backend is not installed.

Triton takes a backend folder with a `model.py` for a backend written in Python, so `backend: "onnxruntime"` in a
config.pbtxt stays true, and the same model repository is served on a laptop and in production. The stand-in follows the
config of any model: plain batched inputs, ragged inputs, `batch_input`, `batch_output`, models without batching, thread
counts, `default_model_filename`. It refuses what it cannot do (TYPE_STRING, execution accelerators, sequence batching)
when the model is loaded.

One bad request does not fail the others: when a merged execution fails, the requests are executed one by one. A request
without elements in a ragged input is refused before it is merged: behind one, Triton's C++ backends merge uninitialised
memory. Some parameters of a model's config belong to this backend alone:

- `nan_is_error`: NaN, or an output without elements, means that the request was malformed, and becomes an error.
- `max_elements.INPUT`: a request with more elements of that input is refused before it is merged, so that one request
  cannot take the others' memory.
- `optional_outputs`: names, separated by spaces. A version whose graph lacks one of these outputs answers without it.
- `chunk_by` and `chunk_elements`: merged requests are cut into chunks of similar length (chunks.py). Each of the
  instance's threads computes a chunk, instead of all sharing every operator, and a request is answered as soon as its
  last chunk is done. A request whose `chunk_by` does not add up to its other inputs is refused without being computed.

An output that no request of an execution asks for is not fetched, split or sent. (ONNX Runtime computes it all the
same: its option `only_execute_path_to_fetches` does nothing in builds for inference.)

Arrays enter and leave by DLPack, because the Python backend's own conversion breaks with numpy 2 (it answers 0 bytes).
"""

from __future__ import annotations

import ctypes
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import as_completed
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils
from chunks import Array, Arrays, Part, cut, fault, join
from hardware import keep_products_whole
from workers import in_turn, start_workers

DTYPES = {
    "TYPE_BOOL": np.bool_,
    "TYPE_UINT8": np.uint8,
    "TYPE_UINT16": np.uint16,
    "TYPE_UINT32": np.uint32,
    "TYPE_UINT64": np.uint64,
    "TYPE_INT8": np.int8,
    "TYPE_INT16": np.int16,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_FP64": np.float64,
}
CONSUMED = b"used_dltensor"  # the name that numpy looks for; kept alive here for as long as any capsule


class TritonPythonModel:
    """One instance of one version of a model. Triton calls `initialize` once, then `execute` with each batch."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the graph as the config says. An error here keeps the version from being served."""
        config = json.loads(args["model_config"])
        self.config = config
        refuse_unsupported(config)
        self.batching = config["max_batch_size"] > 0
        self.ragged = {entry["name"] for entry in config["input"] if entry.get("allow_ragged_batch")}
        # Triton: one target for a batch output, one source for these kinds of batch input.
        self.scattered = {entry["target_name"][0]: entry["source_input"][0] for entry in config.get("batch_output", [])}
        self.nan_is_error = parameter(config, "nan_is_error", "false") == "true"
        limits = {entry["name"]: parameter(config, f"max_elements.{entry['name']}", "") for entry in config["input"]}
        self.limits = {name: int(limit) for name, limit in limits.items() if limit}
        self.chunk_by = parameter(config, "chunk_by", "")
        self.budget = int(parameter(config, "chunk_elements", "0"))
        threads = int(parameter(config, "intra_op_thread_count", "0"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1 if self.chunk_by else threads
        if self.chunk_by:
            self.workers = start_workers(threads, Path(__file__).parent)  # the server's own copy: lay_out_backends
        options.inter_op_num_threads = int(parameter(config, "inter_op_thread_count", "0"))
        keep_products_whole(options)
        options.log_severity_level = 4  # the caller gets the error; a bad caller must not fill the log
        file = config.get("default_model_filename") or "model.onnx"
        path = Path(args["model_repository"]) / args["model_version"] / file
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        wanted = {entry["name"] for entry in config["input"]}
        wanted |= {name for entry in config.get("batch_input", []) for name in entry["target_name"]}
        check_names("inputs", wanted, {value.name for value in self.session.get_inputs()}, path)
        found = {value.name for value in self.session.get_outputs()}
        missing = set(parameter(config, "optional_outputs", "").split()) - found
        self.outputs = [entry["name"] for entry in config["output"] if entry["name"] not in missing]
        check_names("outputs", set(self.outputs), found & set(self.outputs), path)

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Answers a batch of requests: returns all answers in order, or, with chunks, sends each as it is done."""
        inputs = [self.read(request) for request in requests]
        if self.chunk_by:
            self.execute_chunks(requests, inputs)
            return None
        readable = [
            (request, given) for request, given in zip(requests, inputs, strict=True) if isinstance(given, dict)
        ]
        answers = iter(self.answer([given for _, given in readable], [self.wanted(request) for request, _ in readable]))
        return [self.respond(given if isinstance(given, str) else next(answers)) for given in inputs]

    def execute_chunks(self, requests: list[Any], inputs: list[Arrays | str]) -> None:
        """Answers each request when its last chunk is done."""
        for request, given in zip(requests, inputs, strict=True):
            if isinstance(given, str):
                self.send(request, given)
        waiting = [request for request, given in zip(requests, inputs, strict=True) if not isinstance(given, str)]
        chunks = list(cut([given for given in inputs if not isinstance(given, str)], self.chunk_by, self.budget))
        missing = Counter(part.request for chunk in chunks for part in chunk)
        done: dict[int, list[tuple[Part, Arrays | str]]] = defaultdict(list)
        wanted = [self.wanted(request) for request in waiting]
        submit = partial(self.workers.submit, in_turn, self.answer)
        running = {
            submit([part.inputs for part in chunk], [wanted[part.request] for part in chunk]): chunk for chunk in chunks
        }
        for finished in as_completed(running):
            for part, answer in zip(running[finished], finished.result(), strict=True):
                parts = done[part.request]
                parts.append((part, answer))
                if len(parts) == missing[part.request]:
                    self.finish(waiting[part.request], done.pop(part.request))

    def finish(self, request: Any, parts: list[tuple[Part, Arrays | str]]) -> None:
        """Answers a request whose parts are all done; what fails here is its own error, not its neighbours'."""
        try:
            self.send(request, assemble(parts))
        except Exception as exc:  # no room in shared memory, an output of another shape, ...
            self.send(request, f"the answer cannot be put together: {exc}")

    def send(self, request: Any, answer: Arrays | str) -> None:
        """Answers one request before `execute` is over."""
        request.get_response_sender().send(self.respond(answer), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def read(self, request: Any) -> Arrays | str:
        """A request's inputs by name, or an error's text."""
        arrays = {}
        for entry in self.config["input"]:
            name = entry["name"]
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is None:
                if entry.get("optional"):
                    continue
                return f"the request has no input {name!r}"
            array = np.from_dlpack(tensor)
            if array.size > self.limits.get(name, array.size):
                return f"input {name!r} has {array.size} elements, at most {self.limits[name]} are allowed; split it"
            if name in self.ragged and not array.size:
                return f"malformed request: input {name!r} has no elements"
            arrays[name] = array
        if self.chunk_by and (reason := fault(arrays, self.chunk_by)):
            return f"malformed request: {reason}"
        return arrays

    def wanted(self, request: Any) -> list[str]:
        """The outputs that a request asks for, of those that there are; all of them if it names none."""
        asked = request.requested_output_names()
        return [name for name in self.outputs if name in asked]

    def respond(self, answer: Arrays | str) -> Any:
        """Triton's response: the outputs, or the error."""
        if isinstance(answer, str):
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(answer, pb_utils.TritonError.INVALID_ARG))
        return pb_utils.InferenceResponse([to_tensor(name, array) for name, array in answer.items()])

    def answer(self, inputs: list[Arrays], wanted: list[list[str]]) -> list[Arrays | str]:
        """Computes each request's outputs, together if the model batches; a request that fails gets an error's text.

        `wanted` has the names of each request's own outputs.
        """
        if not inputs:
            return []
        if len(inputs) > 1 and not self.batching:
            return self.answer_each(inputs, wanted)
        try:
            return [self.checked(outputs) for outputs in self.run(inputs, wanted)]
        except Exception as exc:  # whatever ONNX Runtime or numpy raises, the server must go on
            if len(inputs) == 1:
                return [f"the model cannot be executed on this request: {exc}"]
            return self.answer_each(inputs, wanted)

    def answer_each(self, inputs: list[Arrays], wanted: list[list[str]]) -> list[Arrays | str]:
        """As `answer`, one request after another."""
        return [self.answer([request], [names])[0] for request, names in zip(inputs, wanted, strict=True)]

    def checked(self, outputs: Arrays) -> Arrays | str:
        """The outputs, or an error's text where they show that the request was malformed."""
        if self.nan_is_error and any(array.size == 0 or np.isnan(array).any() for array in outputs.values()):
            return (
                f"malformed request: {self.config['name']} answered NaN or nothing; its tensors contradict each other "
                "or are out of range (a packed request: lengths add up to the tokens, every id is in range)"
            )
        return outputs

    def run(self, inputs: list[Arrays], wanted: list[list[str]]) -> list[Arrays]:
        """One execution of the graph for all requests: merge, compute, split; each gets the outputs that it wants."""
        feed = {name: self.merge(name, [request[name] for request in inputs]) for name in inputs[0]}
        for entry in self.config.get("batch_input", []):
            feed[entry["target_name"][0]] = count_elements(entry, inputs)
        names = [name for name in self.outputs if any(name in own for own in wanted)]
        merged = dict(zip(names, self.session.run(names, feed) if names else [], strict=True))
        if not self.batching:
            return [merged]
        split = {name: self.split(name, array, inputs) for name, array in merged.items()}
        return [{name: split[name][index] for name in own} for index, own in enumerate(wanted)]

    def merge(self, name: str, arrays: list[Array]) -> Array:
        """One input of all requests: ragged ones end to end in one dimension, the others along the batch dimension."""
        if self.batching and name in self.ragged:
            arrays = [array.reshape(-1) for array in arrays]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    def split(self, name: str, merged: Array, inputs: list[Arrays]) -> list[Array]:
        """Each request's part of an output: shaped after its input (`batch_output`), else by its batch size."""
        if name in self.scattered:
            dims = [-1, *next(entry["dims"] for entry in self.config["output"] if entry["name"] == name)]
            source = self.scattered[name]
            shapes = [
                [request[source].shape[place] if int(dim) == -1 else int(dim) for place, dim in enumerate(dims)]
                for request in inputs
            ]
        else:
            shapes = [[batch_size(request), *merged.shape[1:]] for request in inputs]
        ends = np.cumsum([prod(shape) for shape in shapes])
        if ends[-1] != merged.size:
            raise ValueError(f"output {name!r} has {merged.size} elements, {ends[-1]} were expected for this batch")
        parts = np.split(merged.reshape(-1), ends[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def refuse_unsupported(config: dict[str, Any]) -> None:
    """Raises pb_utils.TritonModelException if a config asks for something that this backend cannot do."""
    reasons = [
        f"{entry['name']} is {entry['data_type']}"
        for entry in config["input"] + config["output"]
        if entry["data_type"] not in DTYPES
    ]
    reasons += [
        f"batch_input kind {entry['kind']}" for entry in config.get("batch_input", []) if entry["kind"] not in COUNTS
    ]
    if any(config.get("optimization", {}).get("execution_accelerators", {}).values()):
        reasons.append("optimization.execution_accelerators")
    if "sequence_batching" in config:
        reasons.append("sequence_batching")
    if chunk_by := parameter(config, "chunk_by", ""):
        scattered = {entry["target_name"][0]: entry["source_input"][0] for entry in config.get("batch_output", [])}
        ragged = all(entry.get("allow_ragged_batch") and not entry.get("optional") for entry in config["input"])
        if not (
            ragged
            and any(entry["name"] == chunk_by and "INT" in entry["data_type"] for entry in config["input"])
            and all(scattered.get(entry["name"]) == chunk_by for entry in config["output"])
            and parameter(config, "chunk_elements", "").isdecimal()
        ):
            reasons.append(
                f"chunk_by {chunk_by!r} (it needs chunk_elements, ragged inputs that are not optional, itself one of "
                f"whole numbers, and for every output a batch_output from {chunk_by!r})"
            )
    if reasons:
        raise pb_utils.TritonModelException(
            f"the stand-in onnxruntime backend cannot serve {config['name']}: {'; '.join(reasons)}. "
            "Use a Triton that has the onnxruntime backend itself (NVIDIA's container)."
        )


def parameter(config: dict[str, Any], key: str, default: str) -> str:
    """A value of the config's `parameters`."""
    return str(config.get("parameters", {}).get(key, {}).get("string_value", default))


def check_names(kind: str, wanted: set[str], found: set[str], path: Path) -> None:
    """Raises pb_utils.TritonModelException where the config and the graph disagree."""
    if wanted != found:
        raise pb_utils.TritonModelException(
            f"{path}: config.pbtxt has the {kind} {sorted(wanted)}, the graph {sorted(found)}"
        )


def assemble(parts: list[tuple[Part, Arrays | str]]) -> Arrays | str:
    """A request's answer, put together from its parts'; the first error if there is one."""
    outputs = []
    for _, answer in parts:
        if isinstance(answer, str):
            return answer
        outputs.append(answer)
    return join([part for part, _ in parts], outputs)


def batch_size(request: Arrays) -> int:
    """How many rows a request has."""
    return int(next(iter(request.values())).shape[0])


# What Triton's `batch_input` computes from the element count of each request's source input.
COUNTS: dict[str, Callable[[list[int]], Any]] = {
    "BATCH_ELEMENT_COUNT": lambda counts: counts,
    "BATCH_ACCUMULATED_ELEMENT_COUNT": np.cumsum,
    "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO": lambda counts: np.concatenate([[0], np.cumsum(counts)]),
    "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE": lambda counts: np.zeros(max(counts)),
}


def count_elements(entry: dict[str, Any], inputs: list[Arrays]) -> Array:
    """The tensor that a `batch_input` entry adds to the batch."""
    counts = [request[entry["source_input"][0]].size for request in inputs]
    return np.asarray(COUNTS[entry["kind"]](counts)).astype(DTYPES[entry["data_type"]])


def to_tensor(name: str, array: Array) -> Any:
    """A Triton tensor of the array's memory."""
    capsule = np.require(array, requirements=["C", "W"]).__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    # The backend marks a consumed capsule with a name of its own; numpy, not knowing it, complains on stderr.
    ctypes.pythonapi.PyCapsule_SetName(ctypes.py_object(capsule), CONSUMED)
    return tensor
