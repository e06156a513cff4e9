"""What was found of one engine, and the part of it that goes into the manifest."""

from __future__ import annotations

from dataclasses import dataclass

from export.engines.base import Engine
from export.graph.packing import Logits
from export.verify.comparison import Comparison
from export.verify.gates import Check
from export.verify.parity import Parity


@dataclass(frozen=True)
class EngineFacts:
    """What the manifest and the command's last line say of one engine."""

    engine: str
    precision: str
    parity: Parity  # of the fp32 graph that it is made of
    comparison: Comparison
    gate: list[Check]
    largest_fp16_activations: dict[str, float]  # by tensor
    bytes: int
    cpu_pairs_per_second: float | None  # None: it does not serve on CPUs


@dataclass(frozen=True)
class Result:
    """One engine that was built and compared."""

    engine: Engine
    comparison: Comparison
    checks: list[Check]
    logits: Logits
    bytes: int
    fp16_range: dict[str, float]
    pairs_per_second: float | None = None

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def facts(self, parity: Parity) -> EngineFacts:
        """What the manifest says of it."""
        return EngineFacts(
            engine=self.engine.name,
            precision=self.engine.precision,
            parity=parity,
            comparison=self.comparison,
            gate=self.checks,
            largest_fp16_activations=self.fp16_range,
            bytes=self.bytes,
            cpu_pairs_per_second=None if self.pairs_per_second is None else round(self.pairs_per_second, 1),
        )
