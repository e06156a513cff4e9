"""What was found of one engine, and the proof of it that goes into the manifest."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from export.engines.base import Engine
from export.graph.packing import Logits
from export.verify.comparison import Comparison
from export.verify.gates import Check
from export.verify.parity import Parity
from release.manifest import GateRecord, Proof


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

    def proof(self, parity: Parity) -> Proof:
        """What the manifest says of it; `parity` is that of the packed graph which the engine is made of."""
        return Proof(
            engine=self.engine.name,
            precision=self.engine.precision,
            parity=asdict(parity),
            comparison=asdict(self.comparison),
            gate=tuple(GateRecord(check.name, check.value, check.limit, check.passed) for check in self.checks),
            largest_fp16_activations=self.fp16_range,
            bytes=self.bytes,
            cpu_pairs_per_second=None if self.pairs_per_second is None else round(self.pairs_per_second, 1),
        )
