"""The engines that a checkpoint can become, and how each graph is made of the packed fp32 graph and run on this CPU."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from tqdm import tqdm

from export.graph.lint import lint
from export.graph.packing import Feed, Logits, add_longest
from export.graph.session import open_on_cpu
from export.quantize.calibration import Activations, record
from export.quantize.int8 import make_int8, make_qdq
from export.quantize.linears import LayerNameError, Linear, find_linears, select
from export.quantize.smoothquant import QuantParams, fit
from export.tensorrt.fp16_range import largest_activations
from export.tensorrt.typed_graph import double_queries, take_longest_as_shape, to_float16
from export.verify.gates import FP16, FP32, INT8
from release.names import EMBEDDINGS, LOGITS, ONNX_MODEL


@dataclass(frozen=True)
class Engine:
    """One engine: its name on the command line, the model that it is published as, its precision and its runtime."""

    name: str
    model: str
    precision: str
    tensorrt: bool = False

    @property
    def quantized(self) -> bool:
        """Whether its linear layers compute in integers."""
        return self.precision == INT8


ENGINES = {
    engine.name: engine
    for engine in (
        Engine("onnx", ONNX_MODEL, FP32),
        Engine("onnx_int8", "clickbert_onnx_int8", INT8),
        Engine("trt_fp16", "clickbert_trt_fp16", FP16, tensorrt=True),
        Engine("trt_int8", "clickbert_trt_int8", INT8, tensorrt=True),
    )
}


class EngineBuilder:
    """Makes engines of one packed fp32 graph. What several engines need is computed once.

    Args:
        source: the packed fp32 graph's file.
        max_length: tokens of a pair at most.
        feeds: calibration batches; empty if no engine needs them.
    """

    def __init__(self, source: Path, max_length: int, feeds: Sequence[Feed]) -> None:
        self.source = source
        self.max_length = max_length
        self.feeds = feeds
        self.linears = find_linears(onnx.load(source))
        self.seen: dict[str, Activations] = {}
        self.schemes: dict[bool, dict[str, QuantParams]] = {}

    def chosen(self, keep_fp32: Collection[str]) -> list[Linear]:
        """The layers that are not keep_fp32. Raises LayerNameError for a name that is no layer's."""
        return select(self.linears, [name for name in keep_fp32 if name != EMBEDDINGS])

    def check_names(self, keep_fp32: Collection[str], engines: Collection[Engine]) -> None:
        """Raises LayerNameError for a name that is no layer's, or that no engine could spare."""
        self.chosen(keep_fp32)
        if keep_fp32 and all(engine.precision == FP32 for engine in engines):
            raise LayerNameError("fp32 engines alone are exported, which compute every layer in float32 anyway")
        if EMBEDDINGS in keep_fp32 and not any(engine.quantized and not engine.tensorrt for engine in engines):
            raise LayerNameError(f"{EMBEDDINGS} is quantized in onnx_int8 only, which is not exported here")

    def make(self, engine: Engine, target: Path, keep_fp32: Collection[str] = ()) -> None:
        """Writes the engine's graph to `target`.

        Args:
            engine: which.
            target: the file.
            keep_fp32: layers to keep in float32, by name (`layers.0`, `pooler`); EMBEDDINGS for the word table.

        Raises:
            LayerNameError: a name is no layer's.
            LintError: the graph breaks a rule.
            OSError: the disk.
        """
        if engine.precision == FP32:
            target.write_bytes(self.source.read_bytes())  # an error then names no other file than the repository's
            return
        model = self.derive(engine, keep_fp32)
        if engine.tensorrt:
            chosen = {linear.output for linear in self.chosen(keep_fp32)}
            to_float16(model, {linear.output for linear in self.linears} - chosen)
        lint(model, tensorrt=engine.tensorrt)
        onnx.save(model, target)

    def watch(self, engine: Engine, keep_fp32: Collection[str] = ()) -> dict[str, float]:
        """The largest magnitudes that the FP16 tensors of a TensorRT engine have on the calibration pairs.

        Returns:
            By the tensor's name, the largest first; nothing for an engine without FP16.
        """
        if not engine.tensorrt:
            return {}
        found = largest_activations(self.derive(engine, keep_fp32), self.feeds)
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def derive(self, engine: Engine, keep_fp32: Collection[str]) -> onnx.ModelProto:
        """The engine's graph before its types are written out: its inputs, and its quantization."""
        model = onnx.load(self.source)
        if engine.tensorrt:
            take_longest_as_shape(model, self.max_length)
            double_queries(model)
        if engine.quantized:
            schemes = self.fit(self.chosen(keep_fp32), signed=engine.tensorrt)
            make_qdq(model, schemes) if engine.tensorrt else make_int8(model, schemes, keep_fp32)
        return model

    def fit(self, linears: Sequence[Linear], *, signed: bool) -> Mapping[str, QuantParams]:
        """The schemes of some layers, each fitted once."""
        if not self.seen:
            self.seen = record(self.source, self.linears, self.feeds)
        known = self.schemes.setdefault(signed, {})
        missing = [linear for linear in linears if linear.name not in known]
        for linear in tqdm(missing, desc="fit INT8", unit="layer", leave=False):
            known[linear.name] = fit(linear, self.seen[linear.name], signed=signed)
        return {linear.name: known[linear.name] for linear in linears}


def runner(engine: Engine, graph: Path) -> Callable[[Feed], Logits]:
    """The graph as a function of one packed batch, on ONNX Runtime's CPU provider."""
    session = open_on_cpu(graph, for_gpu=engine.tensorrt)

    def run(feed: Feed) -> Logits:
        logits: Logits = session.run([LOGITS], add_longest(feed) if engine.tensorrt else feed)[0]
        return logits

    return run
