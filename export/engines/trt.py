"""What all TensorRT engines share: typed graphs, the FP16 range, the saved gate, and plans built where a GPU is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.engines.base import Engine, Say
from export.verify.gates import Limits
from release.stamp import PlanError, PlanMachine, find_machine

if TYPE_CHECKING:
    import onnx

    from export.builder import EngineBuilder
    from export.engines.base import Run
    from export.verify.evaluation import Evaluation


class TensorRTEngine(Engine):
    """An engine for Triton's tensorrt backend. The gates here run its graph on the CPU; the plan is gated on the GPU.

    What a subclass adds is `quantize`; without it, the engine is FP16.
    """

    serves_on_cpu = False
    by_shapes = True

    def missing(self) -> str | None:
        """Plans are built with TensorRT, on the GPU that runs them."""
        try:
            find_tensorrt()
        except PlanError as exc:
            return str(exc)
        return None

    def reduced_layers(self, linears: Sequence[str]) -> list[str]:
        """All linear layers."""
        return list(linears)

    def quantize(self, graph: onnx.ModelProto, builder: EngineBuilder, keep_fp32: Collection[str]) -> None:
        """Quantizes the graph in place, before its FP16 types are written out."""

    def derive(self, builder: EngineBuilder, keep_fp32: Collection[str]) -> tuple[onnx.ModelProto, set[str]]:
        """Its graph before types are written out, and the outputs of the linear layers that stay in float32."""
        import onnx  # noqa: PLC0415

        from export.quantize.linears import find_linears  # noqa: PLC0415
        from export.tensorrt.typed_graph import double_queries, split_clips, take_longest_as_shape  # noqa: PLC0415

        if builder.by_shapes:
            graph = onnx.load(builder.by_shapes)
            split_clips(graph)
        else:
            graph = builder.load()
            take_longest_as_shape(graph, builder.max_length)
        double_queries(graph)
        reduced = {linear.name for linear in builder.linears_without(keep_fp32)}
        single = {linear.output for linear in find_linears(graph) if linear.name not in reduced}
        self.quantize(graph, builder, keep_fp32)
        return graph, single

    def write(self, builder: EngineBuilder, target: Path, keep_fp32: Collection[str] = ()) -> None:
        """Writes the typed graph."""
        import onnx  # noqa: PLC0415

        from export.graph.lint import lint  # noqa: PLC0415
        from export.tensorrt.typed_graph import to_float16  # noqa: PLC0415

        graph, single = self.derive(builder, keep_fp32)
        to_float16(graph, single)
        lint(graph, tensorrt=True)
        onnx.save(graph, target)

    def open(self, graph: Path) -> Run:
        """The graph on ONNX Runtime's CPU provider, which computes Q/DQ as they are written."""
        from export.graph.session import open_graph  # noqa: PLC0415

        return open_graph(graph, for_gpu=True)

    def fp16_range(self, builder: EngineBuilder, keep_fp32: Collection[str]) -> dict[str, float]:
        """Measured on the float32 graph, where an overflow shows."""
        from export.tensorrt.fp16_range import largest_activations  # noqa: PLC0415

        graph, _ = self.derive(builder, keep_fp32)
        found = largest_activations(graph, builder.feeds)
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def add_files(self, folder: Path, evaluation: Evaluation, limits: Limits) -> None:
        """Saves the gate, for plans that are built elsewhere."""
        from export.verify.saved_gate import save_gate  # noqa: PLC0415

        rows, pairs, logits = evaluation.rows, evaluation.pairs, evaluation.logits
        heads, once = evaluation.heads, evaluation.once
        save_gate(folder, rows, pairs, logits, evaluation.labels, self.gates, limits, heads, once=once)

    def finish(self, folder: Path, say: Say) -> None:
        """Builds the plan and gates it where a GPU is; elsewhere `python -m export plan` does."""
        from export.tensorrt.build import read_limits, rebuild  # noqa: PLC0415
        from export.verify.saved_gate import gate  # noqa: PLC0415

        try:
            trt, machine = find_tensorrt()
        except PlanError as exc:
            say(f"{self.model}: no plan is built here ({exc}); `python -m export plan` builds it where it will run")
            return
        say(f"{self.model}: build its plan for {machine}, and gate it")

        def gate_it(run: Run) -> dict[str, Any]:
            most = read_limits(folder)
            return gate(folder, run, self.gates, most.requests, most.pairs_of_any_length)

        rebuild(trt, folder, machine, gate_it)


def find_tensorrt() -> tuple[Any, PlanMachine]:
    """TensorRT's Python package, and this machine for its plans. Raises PlanError if one is missing."""
    from export.tensorrt.runtime import load_tensorrt  # noqa: PLC0415

    trt = load_tensorrt()
    return trt, find_machine(str(trt.__version__))
