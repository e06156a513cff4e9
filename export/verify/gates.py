"""The gates: figures of an engine that have a limit, and the message when one fails.

To add a gate, define it here and name it in the tuple of a precision, or in the engine's file: the command gets its
option, the table, the report and the manifest show it, and plans built elsewhere meet it.

A changed top-1 counts only beyond the tie: where the reference puts the click odds of the two candidates more than 2 %
apart. Without a tie, the share measures how many near-equals an evaluation file has as much as it measures the engine
(figures: docs/decisions/0005-int8-on-cpus.md). The table shows both. A tie of 0 gates on every change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from export.verify.comparison import Comparison

FP32, FP16, INT8 = "fp32", "fp16", "int8"
LARGEST_FP16 = 65504.0
LARGEST_ACTIVATION = "largest FP16 activation"  # a check's name

Limits = Mapping[str, float]  # by name, those that were chosen; the others have their defaults


class GateError(RuntimeError):
    """The checkpoint cannot rank, or an engine does not keep its ranking. Nothing may be published."""


@dataclass(frozen=True)
class Limit:
    """A number that the user can choose: `int8_auc` is the option --int8-auc."""

    name: str
    default: float
    help: str

    def of(self, limits: Limits) -> float:
        """Its value among those chosen."""
        return limits.get(self.name, self.default)


@dataclass(frozen=True)
class Gate(Limit):
    """A figure of an engine that must not exceed a limit."""

    figure: str  # as messages and tables name it
    measure: Callable[[Comparison], float | None]  # None: the checkpoint has no such output


TIE = Limit("tie", 0.02, "candidates whose logits differ by no more count as equal; 0: every change counts")
MAX_UNKNOWN = Limit("max_unknown", 0.2, "checkpoint: largest share of words that its tokenizer makes [UNK]")
MIN_AUC = Limit("min_auc", 0.5, "checkpoint: least AUC in PyTorch; 0.5 is chance, and 0 takes one score for all")
COMMON_LIMITS = (TIE, MAX_UNKNOWN, MIN_AUC)  # whatever the engine

TOLERANCE = Gate(
    "tolerance",
    1e-4,
    "fp32: largest difference of a logit from PyTorch's",
    "largest difference of a logit",
    lambda found: found.max_abs_diff,
)


def auc_gate(name: str, default: float, precision: str) -> Gate:
    """How much AUC an engine may lose."""
    return Gate(
        name,
        default,
        f"{precision}: largest loss of AUC",
        "loss of AUC",
        lambda found: 0.0 - found.metrics["auc"].difference,
    )


def log_loss_gate(name: str, default: float, precision: str) -> Gate:
    """How much worse an engine's probabilities may be."""
    return Gate(
        name,
        default,
        f"{precision}: largest rise of the log-loss, nats",
        "rise of the log-loss",
        lambda found: found.metrics["log_loss"].difference,
    )


def ndcg_gate(name: str, default: float, precision: str) -> Gate:
    """How much NDCG@10 an engine may lose."""
    return Gate(
        name,
        default,
        f"{precision}: largest loss of NDCG@10",
        "loss of NDCG@10",
        lambda found: 0.0 - found.metrics["ndcg_at_10"].difference,
    )


INT8_TOP1 = Gate(
    "int8_top1",
    0.02,
    "INT8: largest share of impressions whose top result changes beyond the tie",
    "top-1 changed beyond the tie",
    lambda found: found.top1_changed_beyond_tie,
)
HEAD_TOLERANCE = Gate(
    "head_tolerance",
    1e-4,
    "fp32: largest difference of a further head's output from PyTorch's",
    "largest difference of a further head's output",
    lambda found: float(np.max([*found.heads.max_abs_diff.values()])) if found.heads else None,
)


def topic_gate(name: str, default: float, precision: str) -> Gate:
    """On how many texts an engine may find other topics."""
    return Gate(
        name,
        default,
        f"{precision}: largest share of texts whose topics change",
        "topics changed",
        lambda found: found.heads.topic_changed if found.heads else None,
    )


def cosine_gate(name: str, default: float, precision: str) -> Gate:
    """How far an engine may turn an embedding."""
    return Gate(
        name,
        default,
        f"{precision}: largest loss of an embedding's cosine to PyTorch's",
        "loss of an embedding's cosine",
        lambda found: 1 - found.heads.least_cosine if found.heads and found.heads.least_cosine is not None else None,
    )


FP32_GATES = (TOLERANCE, HEAD_TOLERANCE)
FP16_GATES = (
    auc_gate("fp16_auc", 0.0005, "FP16"),
    log_loss_gate("fp16_log_loss", 0.001, "FP16"),
    topic_gate("fp16_topic", 0.01, "FP16"),
    cosine_gate("fp16_cosine", 0.001, "FP16"),
)
INT8_GATES = (
    auc_gate("int8_auc", 0.002, "INT8"),
    log_loss_gate("int8_log_loss", 0.005, "INT8"),
    ndcg_gate("int8_ndcg", 0.005, "INT8"),
    INT8_TOP1,
    topic_gate("int8_topic", 0.02, "INT8"),
    cosine_gate("int8_cosine", 0.02, "INT8"),
)


@dataclass(frozen=True)
class Check:
    """One figure against its limit. NaN does not pass."""

    name: str
    value: float
    limit: float
    passed: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "passed", bool(self.value <= self.limit))


def check(
    gates: Iterable[Gate], comparison: Comparison, limits: Limits, largest_fp16: float | None = None
) -> list[Check]:
    """Holds a comparison against the gates of its engine, as far as the checkpoint has what they measure.

    `largest_fp16` is the largest magnitude that one of its FP16 tensors would have to hold; None if it has none.
    """
    measured = [(gate, gate.measure(comparison)) for gate in gates]
    checks = [Check(gate.figure, value, gate.of(limits)) for gate, value in measured if value is not None]
    return checks if largest_fp16 is None else [*checks, Check(LARGEST_ACTIVATION, largest_fp16, LARGEST_FP16)]


def describe_failures(model: str, checks: Sequence[Check]) -> list[str]:
    """One line per failure, with value and limit."""
    return [f"{model}: {one.name} is {one.value:.5g}, allowed is {one.limit:g}" for one in checks if not one.passed]


def check_finite(model: str, outputs: Mapping[str, NDArray[np.float32]]) -> None:
    """Raises GateError if a pair's values of an output, by name [pairs, width], are not all finite numbers."""
    for name, values in outputs.items():
        if wrong := int((~np.isfinite(values).all(axis=1)).sum()):
            raise GateError(f"{model}: the {name} of {wrong} of {len(values)} pairs are not finite")
