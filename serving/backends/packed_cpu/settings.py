"""What a model's config says to this backend; refuses what the backend cannot do.

Reads any model's config: plain batched inputs, ragged inputs, `batch_input`, `batch_output`, models without batching.
Some `parameters` belong to this backend alone:

- `chunk_by` and `chunk_elements`: requests are cut into chunks of similar length (segments.py), which are computed in
  the order of schedule.py. Without `chunk_by` the requests that Triton merged are computed together, one batch after
  another.
- `prefix_lengths` and `prefix_shares`: the inputs that say which segments share a prefix. The graph must have what
  keeps it (graph.py).
- `deadline_seconds`: a request that is chunked is worked on no longer than this after its arrival. A caller may ask for
  less (the request's `timeout`).
- `nan_is_error`: NaN, or an output without elements, means that the request was malformed, and becomes an error.
- `max_elements.INPUT`: a request with more elements of that input is refused, so that one request cannot take the
  others' memory.
- `optional_outputs`: names, separated by spaces. A version whose graph lacks one of these outputs answers without it.
- `intra_op_thread_count`: threads within an operator; of a model with chunks, how many chunks are computed at a time.
  0: as many as cores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.backends.packed_cpu.segments import Names

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
# What Triton's `batch_input` computes from the element count of each request's source input.
COUNTS: dict[str, Callable[[list[int]], Any]] = {
    "BATCH_ELEMENT_COUNT": lambda counts: counts,
    "BATCH_ACCUMULATED_ELEMENT_COUNT": np.cumsum,
    "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO": lambda counts: np.concatenate([[0], np.cumsum(counts)]),
    "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE": lambda counts: np.zeros(max(counts)),
}
DEADLINE = "10"  # seconds


class UnsupportedError(ValueError):
    """A config asks for something that this backend cannot do, or that its graph does not have."""


@dataclass(frozen=True)
class Settings:
    """A model's config as this backend reads it; the entries are Triton's, as JSON."""

    name: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    counted: list[dict[str, Any]]  # batch_input
    scattered: dict[str, str]  # the input after whose shape an output is split
    batching: bool
    ragged: frozenset[str]
    limits: dict[str, int]
    optional: frozenset[str]
    nan_is_error: bool
    chunk_by: str
    names: Names
    chunk_elements: int
    deadline: float
    threads: int
    file: str

    @classmethod
    def of(cls, config: dict[str, Any]) -> Settings:
        """Reads a config.

        Raises:
            UnsupportedError: names all that cannot be done.
        """
        refuse_unsupported(config)
        limits = {entry["name"]: parameter(config, f"max_elements.{entry['name']}", "") for entry in config["input"]}
        return cls(
            name=config["name"],
            inputs=config["input"],
            outputs=config["output"],
            counted=config.get("batch_input", []),
            scattered=scattered(config),
            batching=config["max_batch_size"] > 0,
            ragged=frozenset(entry["name"] for entry in config["input"] if entry.get("allow_ragged_batch")),
            limits={name: int(limit) for name, limit in limits.items() if limit},
            optional=frozenset(parameter(config, "optional_outputs", "").split()),
            nan_is_error=parameter(config, "nan_is_error", "false") == "true",
            chunk_by=parameter(config, "chunk_by", ""),
            names=names_of(config),
            chunk_elements=int(parameter(config, "chunk_elements", "0")),
            deadline=float(parameter(config, "deadline_seconds", DEADLINE)),
            threads=int(parameter(config, "intra_op_thread_count", "0")),
            file=config.get("default_model_filename") or "model.onnx",
        )


def refuse_unsupported(config: dict[str, Any]) -> None:
    """Raises UnsupportedError if a config asks for something that this backend cannot do."""
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
    if reason := why_no_chunks(config):
        reasons.append(reason)
    if reasons:
        raise UnsupportedError(
            f"the packed_cpu backend cannot serve {config['name']}: {'; '.join(reasons)}. "
            "Change its config, or use a Triton that has the onnxruntime backend (NVIDIA's container), and name that."
        )


def why_no_chunks(config: dict[str, Any]) -> str | None:
    """Why requests cannot be cut as the config says; None if they can, or need not be."""
    chunk_by = parameter(config, "chunk_by", "")
    if not chunk_by:
        return None
    ragged = all(entry.get("allow_ragged_batch") and not entry.get("optional") for entry in config["input"])
    integers = {entry["name"] for entry in config["input"] if "INT" in entry["data_type"]}
    names = names_of(config)
    whole_numbers = {chunk_by, *names} - {""} <= integers and bool(names.prefix_lengths) == bool(names.prefix_shares)
    followed = all(scattered(config).get(entry["name"]) == chunk_by for entry in config["output"])
    elements = parameter(config, "chunk_elements", "")
    if not (ragged and whole_numbers and followed and elements.isdecimal() and int(elements)):
        return (
            f"chunk_by {chunk_by!r} (it needs chunk_elements, ragged inputs that are not optional, itself one of "
            f"whole numbers, as prefix_lengths and prefix_shares are, if there are such, and for every output a "
            f"batch_output from {chunk_by!r})"
        )
    try:
        sound = 0 < float(parameter(config, "deadline_seconds", DEADLINE)) < float("inf")
    except ValueError:
        sound = False
    return None if sound else "deadline_seconds (it must be a number above 0)"


def names_of(config: dict[str, Any]) -> Names:
    """The inputs that say how a request is divided."""
    return Names(*(parameter(config, key, "") for key in ("chunk_by", "prefix_lengths", "prefix_shares")))


def scattered(config: dict[str, Any]) -> dict[str, str]:
    """The source of each `batch_output`. (Triton: one target for an entry, and one source.)"""
    return {entry["target_name"][0]: entry["source_input"][0] for entry in config.get("batch_output", [])}


def parameter(config: dict[str, Any], key: str, default: str) -> str:
    """A value of the config's `parameters`."""
    return str(config.get("parameters", {}).get(key, {}).get("string_value", default))
