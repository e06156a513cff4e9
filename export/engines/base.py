"""What an engine is: everything that the export, the gates, the report and the plots ask of one.

Engine modules are imported for `--help`, so they import PyTorch, ONNX Runtime and the like inside their methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export.verify.gates import Gate, Limits

if TYPE_CHECKING:
    from export.builder import EngineBuilder
    from export.graph.packing import Feed, Outputs
    from export.verify.evaluation import Evaluation

Run = Callable[["Feed"], "Outputs"]
Say = Callable[[str], None]


class Engine(ABC):
    """One engine: how it is built, run on this machine's CPU, gated and drawn."""

    name: str  # on the command line
    model: str  # its folder in the model repository
    precision: str  # "fp32", "fp16" or "int8"
    colour: str  # in every plot
    gates: tuple[Gate, ...]  # what it must pass to be published
    needs_calibration = True  # INT8 is fitted to calibration pairs, FP16 is watched on them
    serves_on_cpu = True  # so that its speed on this machine means something
    by_shapes = False  # its graph's sizes are those of inputs; then it keeps no user text for a request's other chunks

    def missing(self) -> str | None:
        """Why this machine skips it by default; None if it builds it."""
        return None

    @abstractmethod
    def reduced_layers(self, linears: Sequence[str]) -> list[str]:
        """The layers that it computes in less than float32, of all `linears`: those that `--keep-fp32` may name."""

    @abstractmethod
    def write(self, builder: EngineBuilder, target: Path, keep_fp32: Collection[str] = ()) -> None:
        """Builds its graph, checks it by `lint`, and writes it to the file `target`.

        Layers in `keep_fp32` stay in float32; a name covers every layer whose name begins with it (`layers.0`).

        Raises:
            LintError: the graph breaks a rule.
            OSError: the disk.
        """

    def open(self, graph: Path) -> Run:
        """The graph as a function of one packed batch, on ONNX Runtime's CPU provider."""
        from export.graph.session import open_graph  # noqa: PLC0415

        return open_graph(graph)

    def fp16_range(self, builder: EngineBuilder, keep_fp32: Collection[str]) -> dict[str, float]:
        """The largest magnitude of each FP16 tensor on the calibration pairs, the largest first; empty without FP16."""
        return {}

    def add_files(self, folder: Path, evaluation: Evaluation, limits: Limits) -> None:  # noqa: B027 (most add none)
        """Writes what its version needs beside graph and manifest. Called once the gates have passed."""

    def finish(self, folder: Path, say: Say) -> None:  # noqa: B027 (most have no last step)
        """The last step on a complete version before it is published. Raises to stop publication."""
