"""The gates: how far an engine may be from the reference, and what is said of one that is farther.

A changed top-1 counts only beyond the tie: where the reference puts the click odds of the two candidates more than 2 %
apart. Without a tie the share measures how many near-equals an evaluation file has, as much as the engine:
docs/decisions/0005-int8-on-cpus.md has the figures. The table shows both, and a tie of 0 gates on every exchange.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from export.graph.packing import Logits
from export.verify.comparison import Comparison

FP32, FP16, INT8 = "fp32", "fp16", "int8"
LARGEST_FP16 = 65504.0
LARGEST_ACTIVATION = "largest FP16 activation"  # a check's name


class GateError(RuntimeError):
    """An engine does not keep the ranking. Nothing may be published."""


def limit(default: float, meaning: str) -> float:
    """A limit, which is an option of the command: its default, and what it bounds."""
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class Limits:
    """What the gates allow."""

    tolerance: float = limit(1e-4, "fp32: largest difference of a logit to PyTorch's")
    fp16_auc: float = limit(0.0005, "FP16: largest loss of AUC")
    fp16_log_loss: float = limit(0.001, "FP16: largest rise of the log-loss, nats")
    int8_auc: float = limit(0.002, "INT8: largest loss of AUC")
    int8_log_loss: float = limit(0.005, "INT8: largest rise of the log-loss, nats")
    int8_top1: float = limit(0.02, "INT8: largest share of impressions whose first candidate changed beyond the tie")
    tie: float = limit(0.02, "candidates whose logits differ by no more count as equal; 0: every exchange counts")


@dataclass(frozen=True)
class Check:
    """One figure against its limit."""

    name: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the figure is within the limit; NaN is not."""
        return self.value <= self.limit


def check_finite(model: str, logits: Logits) -> None:
    """Raises GateError if a pair's logits [pairs, labels] are not all finite numbers."""
    if wrong := int((~np.isfinite(logits).all(axis=1)).sum()):
        raise GateError(f"{model}: the logits of {wrong} of {len(logits)} pairs are not finite")


def check(precision: str, comparison: Comparison, limits: Limits, largest_fp16: float | None = None) -> list[Check]:
    """Holds a comparison against the limits of its precision.

    Args:
        precision: FP32, FP16 or INT8.
        comparison: the engine beside the reference.
        limits: what is allowed.
        largest_fp16: the largest magnitude that an FP16 tensor of the engine would have to hold; None if it has none.
    """
    auc, loss = comparison.metrics["auc"].difference, comparison.metrics["log_loss"].difference
    checks = {
        FP32: [Check("largest difference of a logit", comparison.max_abs_diff, limits.tolerance)],
        FP16: [Check("loss of AUC", -auc, limits.fp16_auc), Check("rise of the log-loss", loss, limits.fp16_log_loss)],
        INT8: [
            Check("loss of AUC", -auc, limits.int8_auc),
            Check("rise of the log-loss", loss, limits.int8_log_loss),
            Check("share of top-1 changed beyond the tie", comparison.top1_changed_beyond_tie, limits.int8_top1),
        ],
    }[precision]
    if largest_fp16 is not None:
        checks.append(Check(LARGEST_ACTIVATION, largest_fp16, LARGEST_FP16))
    return checks


def describe_failures(model: str, checks: Sequence[Check]) -> list[str]:
    """What failed, and by how much, a line each."""
    return [f"{model}: {one.name} is {one.value:.5g}, allowed is {one.limit:g}" for one in checks if not one.passed]
