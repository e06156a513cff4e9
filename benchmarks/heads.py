"""What the further heads cost a request that asks for the click alone: the packed graph without them and with them.

    python -m benchmarks heads --checkpoint checkpoints/joint

Both graphs (fp32, of the same checkpoint) compute the same requests of 20 candidates in process, cut into chunks on all
cores as the packed_cpu backend does, and are asked for `logits` alone. They take turns, and each turn's speeds give a
ratio. A plain checkpoint is given heads of random weights: 20 topics, and an embedding of 128 numbers. The last line of
the output is one JSON document.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks import BenchmarkError
from benchmarks.load_gen.workload import Selection
from benchmarks.measure.environment import find_environment
from benchmarks.measure.schema import Environment, dump
from benchmarks.saturation.ceiling import Ceiling, CoreLayout, graph_speed, open_graph
from benchmarks.saturation.tokens import pack
from clickbert.wire.tokenization import PairTokenizer
from export.graph.onnx_export import GraphError, write_click_model
from export.graph.packed.packed_bert import UnsupportedModelError
from export.verify.evaluation import read_checkpoint
from finetune.checkpoint.heads import Heads, HeadSettings
from finetune.checkpoint.load import CheckpointError
from finetune.data.clicklog import ClickLogError
from release.names import MODEL_FILE
from serving.backends.packed_cpu.cores import usable_cores

CANDIDATES, REQUESTS = 20, 8
CHUNK = 256  # `chunk_elements` of the shipped config
DRAWN = HeadSettings(tuple(f"topic {number}" for number in range(20)), embedding_size=128)
EXPECTED = (BenchmarkError, CheckpointError, ClickLogError, GraphError, UnsupportedModelError)


@dataclass(frozen=True)
class HeadsResult:
    """The JSON document: pairs per second in every turn, and the median of `with_heads` by `without`."""

    outputs: tuple[str, ...]  # of the further heads
    without: tuple[float, ...]
    with_heads: tuple[float, ...]
    ratio: float
    environment: Environment


def run(options: argparse.Namespace, turns: int = 20, seconds: float = 1.0) -> int:
    """Measures so many turns of so many seconds for each graph, and prints the ratio.

    Raises:
        EXPECTED: the checkpoint or the click log cannot be used.
    """
    checkpoint = read_checkpoint(options.checkpoint, None)
    heads = checkpoint.heads
    if not heads.outputs:
        heads = Heads(DRAWN, checkpoint.model.config.hidden_size)
    tokenizer = PairTokenizer(checkpoint.tokenizer_json, checkpoint.max_length, checkpoint.user_tokens)
    packed = pack(tokenizer, Selection(options.data, CANDIDATES).read()[:REQUESTS])
    layout = CoreLayout(usable_cores(), 1, CHUNK)
    measured = []
    with tempfile.TemporaryDirectory(prefix="clickbert-heads-") as scratch:
        for own in (None, heads):
            write_click_model(checkpoint.model, Path(scratch) / MODEL_FILE, own)
            speed = partial(graph_speed, open_graph(Path(scratch) / MODEL_FILE, 1), layout)
            speed(packed)  # memory, caches
            measured.append(Ceiling(layout, {}, partial(speed, packed)))
    for turn in range(turns):
        for graph in measured if turn % 2 else reversed(measured):
            graph.measure(seconds)
    without, with_heads = (tuple(graph.rounds) for graph in measured)
    ratios = np.divide(with_heads, without)
    print(
        f"{median(without):.0f} pairs/s without further heads, {median(with_heads):.0f} with {', '.join(heads.outputs)}"
    )
    print(f"ratio: median {median(ratios):.4f} of {turns} turns, {ratios.min():.4f} to {ratios.max():.4f}")
    print(dump(HeadsResult(heads.outputs, without, with_heads, float(median(ratios)), find_environment())))
    return 0
