"""Work that engines share, done once: the packed fp32 graph, its linear layers, and how INT8 fits them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from export.graph.layer_names import belongs
from export.graph.packing import Feed
from export.quantize.calibration import Activations, record
from export.quantize.fit import fit
from export.quantize.linears import Linear, find_linears
from export.quantize.smoothquant import QuantParams


class EngineBuilder:
    """The material of every engine.

    Args:
        source: the packed fp32 graph's file.
        max_length: tokens of a pair at most.
        feeds: calibration batches; empty if no engine needs them.
        by_shapes: the file of the same graph in TensorRT's form, where the user text is computed once
            (`ShapedOnceBert`); with full attention, that form is made of `source`.
    """

    def __init__(self, source: Path, max_length: int, feeds: Sequence[Feed], by_shapes: Path | None = None) -> None:
        self.source = source
        self.by_shapes = by_shapes
        self.max_length = max_length
        self.feeds = feeds
        self.linears = find_linears(onnx.load(source))
        self.activations: dict[str, Activations] = {}
        self.params: dict[tuple[str, bool], QuantParams] = {}

    def load(self) -> onnx.ModelProto:
        """A copy of the packed fp32 graph, to be changed."""
        return onnx.load(self.source)

    def words(self) -> NDArray[np.int64]:
        """The ids of the calibration batches, as often as they occur."""
        return np.concatenate([feed["input_ids"] for feed in self.feeds]).astype(np.int64)

    def linears_without(self, keep_fp32: Collection[str]) -> list[Linear]:
        """The linear layers that do not stay in float32, in the order of computation."""
        return [linear for linear in self.linears if not any(belongs(linear.name, name) for name in keep_fp32)]

    def fit(self, keep_fp32: Collection[str], *, signed: bool) -> dict[str, QuantParams]:
        """How each linear layer that does not stay in float32 computes in integers, by its name.

        Signed inputs are -128..127 (TensorRT), others 0..255 (CPUs).
        """
        linears = self.linears_without(keep_fp32)
        missing = [linear for linear in linears if (linear.name, signed) not in self.params]
        if missing and not self.activations:
            self.activations = record(self.source, self.linears, self.feeds)
        for linear in tqdm(missing, desc="fit INT8", unit="layer", leave=False):
            self.params[linear.name, signed] = fit(linear, self.activations[linear.name], signed=signed)
        return {linear.name: self.params[linear.name, signed] for linear in linears}
