"""What the linear layers read on real pairs: the ranges and a sample of rows that quantization is fitted to.

The pairs should come from the click log's training part, not from the evaluation file that the gates use. They are
chosen evenly over all lengths, so that the few long pairs are among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from tqdm import tqdm

from export.graph.packing import Feed, Pair, pack
from export.graph.session import open_on_cpu
from export.quantize.linears import FloatArray, Linear

PAIRS = 512  # used for calibration, of a log with FEWEST or more
FEWEST = 256
PAIRS_A_BATCH = 16
ROWS = 2048  # kept of each layer's inputs (0.5 to 1 GB in all for a bert-base)


class CalibrationError(ValueError):
    """Quantization cannot be fitted to these pairs."""


@dataclass(frozen=True)
class Activations:
    """What one linear layer reads: the range of each input over all pairs, and a sample of rows."""

    low: FloatArray  # [inputs]
    high: FloatArray  # [inputs]
    rows: FloatArray  # [ROWS to 2 * ROWS, inputs], fewer where there are fewer


def stratify(lengths: Sequence[int], count: int = PAIRS) -> list[int]:
    """Chooses up to `count` pairs, given by their lengths in tokens, evenly over the sorted lengths.

    Raises:
        CalibrationError: there are fewer than FEWEST.
    """
    if len(lengths) < FEWEST:
        raise CalibrationError(f"the calibration log has {len(lengths)} pairs; INT8 needs {FEWEST} at least")
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    count = min(count, len(by_length))
    return [by_length[(2 * place + 1) * len(by_length) // (2 * count)] for place in range(count)]


def calibration_batches(pairs: Sequence[Pair], texts: Sequence[Pair] = (), *, once: bool = False) -> list[Feed]:
    """The chosen pairs and all `texts`, packed into batches of similar lengths, which bounds attention's memory.

    `texts` are single ones, for a checkpoint with heads that read such: their [CLS] is unlike that of pairs.

    `once`: the graph computes a user text once. Few of the chosen pairs share one, so its tokens count as much as
    candidates'.
    """
    chosen = [pairs[index] for index in stratify([len(pair["input_ids"]) for pair in pairs])]
    chosen = sorted([*chosen, *texts], key=lambda pair: len(pair["input_ids"]))
    return [pack([chosen[start : start + PAIRS_A_BATCH]], once=once) for start in range(0, len(chosen), PAIRS_A_BATCH)]


def record(graph: Path, linears: Sequence[Linear], feeds: Sequence[Feed], sample: int = ROWS) -> dict[str, Activations]:
    """Runs the graph on `feeds` and returns what each linear layer read, by its name, with about `sample` rows.

    Raises:
        CalibrationError: a layer reads NaN or infinity.
    """
    model = onnx.load(graph)
    tensors = sorted({linear.input for linear in linears})
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors)
    session = open_on_cpu(model.SerializeToString(), for_gpu=False)
    stride = max(1, sum(feed["input_ids"].size for feed in feeds) // sample)
    low: dict[str, FloatArray] = {}
    high: dict[str, FloatArray] = {}
    rows: dict[str, list[FloatArray]] = {name: [] for name in tensors}
    for feed in tqdm(feeds, desc="calibrate", unit="batch", leave=False):
        for name, values in zip(tensors, session.run(tensors, feed), strict=True):
            if not np.isfinite(values).all():
                raise CalibrationError(f"{name} is not finite on a calibration pair; use an earlier checkpoint")
            low[name] = np.minimum(low.get(name, np.inf), values.min(axis=0)).astype(np.float32)
            high[name] = np.maximum(high.get(name, -np.inf), values.max(axis=0)).astype(np.float32)
            # The last layer reads one row a pair, all of which are kept.
            rows[name].append(values[:: stride if len(values) > len(feed["lengths"]) else 1].copy())
    found = {name: Activations(low[name], high[name], np.concatenate(rows[name])) for name in tensors}
    return {linear.name: found[linear.input] for linear in linears}
