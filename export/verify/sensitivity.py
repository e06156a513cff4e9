"""Which layers cost most: each is kept in float32 in turn, and what that mends is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from export.engines.base import Engine, EngineBuilder, runner
from export.graph.packing import Logits, Pair
from export.quantize.calibration import stratify
from export.verify.parity import score_merged
from release.names import EMBEDDINGS, MODEL_FILE

SAMPLE = 256  # pairs, of all lengths
SHOWN = 12


@dataclass(frozen=True)
class Cost:
    """One layer: the root mean square difference of the logits to PyTorch's when it alone is keep_fp32."""

    layer: str
    without: float  # nothing keep_fp32
    keep_fp32: float

    @property
    def mended(self) -> float:
        """The share of the (squared) error that sparing the layer removes; below 0, sparing it makes it worse."""
        return 1 - (self.keep_fp32 / self.without) ** 2 if self.without else 0.0


def measure_sensitivity(
    engine: Engine,
    builder: EngineBuilder,
    pairs: Sequence[Pair],
    reference: Logits,
    keep_fp32: Sequence[str],
    scratch: Path,
) -> list[Cost]:
    """What each layer costs, the dearest first, on a sample of the evaluation pairs (256 of all lengths).

    Args:
        engine: the engine whose layers are keep_fp32 in turn.
        builder: makes its graphs.
        pairs: the evaluation pairs.
        reference: PyTorch's logits of them.
        keep_fp32: layers that are keep_fp32 throughout.
        scratch: where the graphs may lie.
    """
    lengths = [len(pair["input_ids"]) for pair in pairs]
    sample = stratify(lengths, SAMPLE) if len(pairs) > SAMPLE else list(range(len(pairs)))
    chosen = [pairs[index] for index in sample]
    graph = scratch / f"sensitivity-{MODEL_FILE}"

    def error(layers: Sequence[str]) -> float:
        builder.make(engine, graph, layers)
        logits = score_merged(runner(engine, graph), chosen, reference.shape[1])
        return float(np.sqrt(np.mean((logits - reference[sample]) ** 2)))

    names = [linear.name for linear in builder.linears] + ([] if engine.tensorrt else [EMBEDDINGS])
    base = error(keep_fp32)
    costs = [
        Cost(name, base, error([*keep_fp32, name]))
        for name in tqdm(names, desc=f"sensitivity of {engine.model}", unit="layer", leave=False)
        if name not in keep_fp32
    ]
    return sorted(costs, key=lambda cost: -cost.mended)


def describe_sensitivity(model: str, costs: Sequence[Cost]) -> str:
    """A table of the layers that cost most, and the option that spares the first."""
    lines = [f"{model}: kept in float32        rms change of the logits   error mended"]
    lines += [f"  {cost.layer:<34} {cost.keep_fp32:10.4f} {100 * cost.mended:15.1f} %" for cost in costs[:SHOWN]]
    if costs:
        lines.append(f"  (nothing)                          {costs[0].without:10.4f}")
        lines.append(f"  to spare the first two: --keep-fp32 {','.join(cost.layer for cost in costs[:2])}")
    return "\n".join(lines)
