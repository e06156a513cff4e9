"""Sums and gathers of the packed graphs, written in operators that ONNX Runtime and TensorRT both have."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def count(values: Tensor, dim: int) -> Tensor:
    """The sum over a dimension, int64. It sums in float32, exact up to 2^24: TensorRT cannot sum integers."""
    return values.float().sum(dim).long()


def bounds(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Where each request's elements start and end, by how many each has: int64 [requests] both."""
    # Not cumsum: TensorRT cannot accumulate integers either, and requests are few.
    index = torch.arange(counts.shape[0])
    ends = count(torch.where(index[:, None] >= index, counts, 0), 1)
    return ends - counts, ends


def between(index: Tensor, size: int) -> Tensor:
    """`index`, limited to 0..size-1."""
    return torch.where(index < 0, 0, torch.where(index < size, index, size - 1))


def owners(elements: int, ends: Tensor) -> Tensor:
    """Which request each of `elements` elements belongs to, by where the requests' elements end: int64 [elements]."""
    return between(count(torch.arange(elements)[:, None] >= ends, 1), ends.shape[0])


def pick(values: Tensor, index: Tensor) -> Tensor:
    """values[index] of vectors, as a Gather (indexing becomes a GatherND)."""
    return values.index_select(0, index)


def take(rows: Tensor, index: Tensor) -> Tensor:
    """rows[index] by rows, written so that the exporter makes a Gather of it (indexing becomes a slower GatherND)."""
    return nn.functional.embedding(index, rows)
