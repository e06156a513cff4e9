"""The warm-up requests of a model's config, for the backend's own use, before a version is served.

Triton sends them, too, when `initialize` is over. But where one is answered by an error then, Triton 2.51 crashes one
time in three, with every model that it serves. An error of `initialize` it reports, and the former version serves on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from serving.backends.packed_cpu.segments import Array, Arrays
from serving.backends.packed_cpu.settings import DTYPES

FOLDER = "warmup"  # Triton's name, in the model's folder


def warm_up_requests(config: dict[str, Any], model: Path) -> Iterator[tuple[str, Arrays]]:
    """The name and the inputs of each request of `model_warmup` (not of random data) in a model's folder."""
    for entry in config.get("model_warmup", []):
        batch = [int(entry["batch_size"])] if config["max_batch_size"] else []
        inputs = entry["inputs"].items()
        if not any(tensor.get("random_data") for _, tensor in inputs):
            yield entry["name"], {name: read_tensor(tensor, batch, model / FOLDER) for name, tensor in inputs}


def read_tensor(tensor: dict[str, Any], batch: list[int], folder: Path) -> Array:
    """Zeros, or the bytes of a file, which is of one row. Raises OSError or ValueError if the file does not fit."""
    shape = [int(size) for size in tensor["dims"]]
    dtype = DTYPES[tensor["data_type"]]
    if file := tensor.get("input_data_file"):
        row: Array = np.fromfile(folder / file, dtype).reshape(shape)
        return np.broadcast_to(row, [*batch, *shape]).copy()
    return np.zeros([*batch, *shape], dtype)
