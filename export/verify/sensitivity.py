"""Which layers cost most: keeps each in float32 in turn, and measures how much of the error that removes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from export.graph.packing import Feed, Logits, Outputs, Pair
from export.quantize.calibration import stratify
from export.verify.parity import score_merged
from release.names import LOGITS

SAMPLE = 256  # pairs, of all lengths
SHOWN = 12


@dataclass(frozen=True)
class Cost:
    """What one layer costs: the root mean square difference of the logits from PyTorch's, with it and without it."""

    layer: str
    error: float  # as exported
    error_kept: float  # with this layer in float32, too

    @property
    def removed(self) -> float:
        """The share of the squared error that keeping the layer removes; negative if keeping it adds some."""
        return 1 - (self.error_kept / self.error) ** 2 if self.error else 0.0


def measure_sensitivity(
    build: Callable[[Sequence[str]], Callable[[Feed], Outputs]],
    layers: Sequence[str],
    pairs: Sequence[Pair],
    reference: Logits,
    keep_fp32: Sequence[str],
    *,
    once: bool = False,
) -> list[Cost]:
    """What each layer costs, the most expensive first, on 256 evaluation pairs of all lengths.

    Args:
        build: the engine with these layers in float32, as a function of one packed batch.
        layers: those that the engine reduces.
        pairs: the evaluation pairs.
        reference: PyTorch's logits of them.
        keep_fp32: layers that stay in float32 all the time.
        once: the graph computes a user text once.
    """
    lengths = [len(pair["input_ids"]) for pair in pairs]
    sample = stratify(lengths, SAMPLE) if len(pairs) > SAMPLE else list(range(len(pairs)))
    chosen = [pairs[index] for index in sample]

    def error(kept: Sequence[str]) -> float:
        logits = score_merged(build(kept), chosen, {LOGITS: reference.shape[1]}, once=once)[LOGITS]
        return float(np.sqrt(np.mean((logits - reference[sample]) ** 2)))

    base = error(keep_fp32)
    costs = [
        Cost(name, base, error([*keep_fp32, name]))
        for name in tqdm(layers, desc="sensitivity", unit="layer", leave=False)
        if name not in keep_fp32
    ]
    return sorted(costs, key=lambda cost: -cost.removed)


def describe_sensitivity(model: str, costs: Sequence[Cost]) -> str:
    """A table of the layers that cost most, and the option that keeps the first two in float32."""
    lines = [f"{model}: kept in float32        rms change of the logits  error removed"]
    lines += [f"  {cost.layer:<34} {cost.error_kept:10.4f} {100 * cost.removed:15.1f} %" for cost in costs[:SHOWN]]
    if costs:
        lines.append(f"  (nothing)                          {costs[0].error:10.4f}")
        lines.append(f"  to keep the first two: --keep-fp32 {','.join(cost.layer for cost in costs[:2])}")
    return "\n".join(lines)
