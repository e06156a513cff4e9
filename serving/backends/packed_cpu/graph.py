"""A model's graph in ONNX Runtime: computes requests together, and gives each its own outputs.

One bad request does not fail the others: when a merged execution fails, the requests are executed one by one.

Where segments share prefixes (segments.py), the graph keeps what it computed of them for a request's other chunks. Its
output `kept` is [1, prefixes, parts, longest, size]. Two inputs have defaults, so that other servers need not know
them: `kept_earlier`, and `kept_prefixes` [prefixes], which of these stands for each prefix, from 1 (0: none, the
prefix's own elements are there). Who sends a request cannot set them.

An output that no request of an execution asks for is not fetched, split or sent. (ONNX Runtime computes it all the
same: its option `only_execute_path_to_fetches` does nothing in builds for inference.)

What this module does not know: Triton, and when a request is computed.
"""

from __future__ import annotations

from math import inf, prod
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from release.hardware import keep_products_whole
from release.names import KEPT, KEPT_EARLIER, KEPT_INPUTS, KEPT_PREFIXES, MAX_LENGTH
from serving.backends.packed_cpu.segments import Array, Arrays, side_by_side
from serving.backends.packed_cpu.settings import COUNTS, DTYPES, Settings, UnsupportedError


class Graph:
    """The graph of one version.

    Args:
        settings: the model's.
        version: the folder with its file.

    Raises:
        UnsupportedError: config and graph disagree.
        Exception: whatever ONNX Runtime raises for a file that it cannot load.
    """

    def __init__(self, settings: Settings, version: Path) -> None:
        self.settings = settings
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1 if settings.chunk_by else settings.threads
        keep_products_whole(options)
        options.log_severity_level = 4  # the caller gets the error; a bad caller must not fill the log
        path = version / settings.file
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        wanted = {entry["name"] for entry in settings.inputs}
        wanted |= {name for entry in settings.counted for name in entry["target_name"]}
        check_names("inputs", wanted, {value.name for value in self.session.get_inputs()}, path)
        # Of a segment, with its prefix. Graphs of former releases do not say it.
        self.longest = float(self.session.get_modelmeta().custom_metadata_map.get(MAX_LENGTH, inf))
        found = {value.name for value in self.session.get_outputs()}
        missing = settings.optional - found
        self.outputs = [entry["name"] for entry in settings.outputs if entry["name"] not in missing]
        check_names("outputs", set(self.outputs), found & set(self.outputs), path)
        if settings.names.prefix_lengths:
            able = {value.name for value in self.session.get_overridable_initializers()}
            check_names("means to keep prefixes", set(KEPT_INPUTS), able if KEPT in found else set(), path)

    def answer(self, inputs: list[Arrays], wanted: list[list[str]]) -> list[Arrays | str]:
        """Computes each request's outputs, together if the model batches; a request that fails gets an error's text.

        `wanted` has the names of each request's own outputs.
        """
        if not inputs:
            return []
        if len(inputs) > 1 and not self.settings.batching:
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
        answered = (array for name, array in outputs.items() if name != KEPT)
        if self.settings.nan_is_error and any(array.size == 0 or np.isnan(array).any() for array in answered):
            return (
                f"malformed request: {self.settings.name} answered NaN or nothing; its tensors contradict each other "
                "or are out of range (a packed request: lengths add up to the tokens, every id is in range)"
            )
        return outputs

    def run(self, inputs: list[Arrays], wanted: list[list[str]]) -> list[Arrays]:
        """One execution of the graph for all requests: merge, compute, split; each gets the outputs that it wants."""
        feed = {entry["name"]: self.merge(entry["name"], inputs) for entry in self.settings.inputs}
        if self.settings.names.prefix_lengths:
            feed |= merge_kept(inputs, self.settings.names.prefix_lengths)
        for entry in self.settings.counted:
            feed[entry["target_name"][0]] = count_elements(entry, inputs)
        names = [name for name in (*self.outputs, KEPT) if any(name in own for own in wanted)]
        merged = dict(zip(names, self.session.run(names, feed) if names else [], strict=True))
        if not self.settings.batching:
            return [merged]
        split = {name: self.split(name, array, inputs) for name, array in merged.items()}
        return [{name: split[name][index] for name in own} for index, own in enumerate(wanted)]

    def merge(self, name: str, inputs: list[Arrays]) -> Array:
        """One input of all requests: ragged ones end to end in one dimension, the others along the batch dimension."""
        arrays = [request[name] for request in inputs]
        if self.settings.batching and name in self.settings.ragged:
            arrays = [array.reshape(-1) for array in arrays]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    def split(self, name: str, merged: Array, inputs: list[Arrays]) -> list[Array]:
        """Each request's part of an output: shaped after its input (`batch_output`), else by its batch size."""
        if name == KEPT:
            ends = np.cumsum([request[self.settings.names.prefix_lengths].size for request in inputs])
            return np.split(merged, ends[:-1], axis=1)
        if source := self.settings.scattered.get(name):
            dims = [-1, *next(entry["dims"] for entry in self.settings.outputs if entry["name"] == name)]
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


def merge_kept(inputs: list[Arrays], prefix_lengths: str) -> Arrays:
    """What requests bring of prefixes that were computed before, as the graph takes it; nothing if none does."""
    kept = [request[KEPT] for request in inputs if KEPT in request]
    if not kept:
        return {}
    numbers, count = [], 0
    for request in inputs:
        own = request.get(KEPT_PREFIXES, np.zeros(request[prefix_lengths].size, np.int32))
        numbers.append(np.where(own > 0, own + count, 0))
        count += request[KEPT].shape[1] if KEPT in request else 0
    return {KEPT_EARLIER: side_by_side(kept), KEPT_PREFIXES: np.concatenate(numbers).astype(np.int32)}


def check_names(kind: str, wanted: set[str], found: set[str], path: Path) -> None:
    """Raises UnsupportedError where the config and the graph disagree."""
    if wanted != found:
        raise UnsupportedError(f"{path}: config.pbtxt has the {kind} {sorted(wanted)}, the graph {sorted(found)}")


def batch_size(request: Arrays) -> int:
    """How many rows a request has."""
    return int(next(iter(request.values())).shape[0])


def count_elements(entry: dict[str, Any], inputs: list[Arrays]) -> Array:
    """The tensor that a `batch_input` entry adds to the batch."""
    counts = [request[entry["source_input"][0]].size for request in inputs]
    return np.asarray(COUNTS[entry["kind"]](counts)).astype(DTYPES[entry["data_type"]])
