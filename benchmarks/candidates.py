"""The ways to compute a click model in 8 or 16 bits on a CPU, side by side: why `onnx_int8` is what it is.

Every candidate is made of the same packed fp32 graph, fitted to the same calibration pairs where it needs any, and held
against the same gate. Speed is `export.speed`'s: pairs per second in process, 32 pairs of similar length at a time, and
the evaluation's own requests as they come; all candidates take turns in one run.

    python -m benchmarks candidates
    python -m benchmarks candidates --bert-base
    pip install openvino==2026.4.1        adds OpenVINO's candidates

`--bert-base` measures a model of that size with random weights: its speeds mean something, its gate does not. The last
line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from transformers import BertConfig, BertForSequenceClassification

from export.calibration import calibration_batches
from export.comparison import compare
from export.engines import ENGINES, Workshop, runner
from export.gates import INT8, Limits, check
from export.graph import write_click_model
from export.linears import Constants, Linear, find_linears, rewrite
from export.packing import Feed, Logits, add_longest, pack
from export.parity import score_merged
from export.quantized import make_qdq
from export.speed import measure_speed, take_turns
from export.typed import take_longest_as_shape
from finetune.clicklog import read_click_log
from finetune.metrics import group_rows
from finetune.scoring import label_names, load_checkpoint, score_rows, tokenize_pairs

Run = Callable[[Feed], Logits]
LINEAR = ["MatMul", "Gemm"]
BLOCK = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/demo"), help="Hugging Face folder")
    parser.add_argument("--data", type=Path, default=Path("data/sample"), help="train.jsonl and test.jsonl")
    parser.add_argument("--bert-base", action="store_true", help="a random model of that size instead")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measures the candidates and prints a table; returns it by candidate."""
    model, tokenizer, max_length = load_checkpoint(options.checkpoint)
    if options.bert_base:
        torch.manual_seed(0)
        model = BertForSequenceClassification(BertConfig()).train(mode=False)  # two labels, as its config has
    rows = read_click_log(options.data / "test.jsonl")
    if options.bert_base:
        rows = rows[:120]  # a minute a candidate otherwise
    pairs = tokenize_pairs(tokenizer, rows, max_length)
    feeds = calibration_batches(tokenize_pairs(tokenizer, read_click_log(options.data / "train.jsonl"), max_length))
    labels = label_names(model)
    reference = score_rows(model, tokenizer, rows, max_length)
    requests = [pack([[pairs[index] for index in group]]) for group in group_rows(rows)]
    found: dict[str, Any] = {}
    with TemporaryDirectory(prefix="clickbert-candidates-") as scratch:
        source = Path(scratch) / "model.onnx"
        write_click_model(model, source)
        runs = dict(make_candidates(source, max_length, feeds))
        sorted_speed = measure_speed(runs, pairs)
        request_speed = take_turns(runs, requests[:40])
        for name, candidate in runs.items():
            comparison = compare(rows, reference, score_merged(candidate, pairs, len(labels)), labels, Limits().tie)
            found[name] = {
                "pairs_per_second_sorted": round(sorted_speed[name], 1),
                "pairs_per_second_requests": round(request_speed[name], 1),
                "mean_abs_diff": comparison.mean_abs_diff,
                "auc_difference": comparison.metrics["auc"].difference,
                "top1_changed": comparison.top1_changed,
                "passes_int8_gate": all(one.passed for one in check(INT8, comparison, Limits())),
            }
    print(table(found))
    return found


def make_candidates(source: Path, max_length: int, feeds: list[Feed]) -> Iterator[tuple[str, Run]]:
    """Each candidate as a function of one packed batch, by name, fp32 first."""
    yield "ONNX Runtime, fp32", runner(ENGINES["onnx"], source)
    workshop = Workshop(source, max_length, feeds)

    def file(name: str) -> Path:
        return source.with_name(f"{name}.onnx")

    workshop.make(ENGINES["onnx_int8"], file("int8"))
    yield "ONNX Runtime, fitted static INT8 (onnx_int8)", runner(ENGINES["onnx_int8"], file("int8"))
    constant: dict[str, Any] = {"extra_options": {"MatMulConstBOnly": True}, "op_types_to_quantize": LINEAR}
    quantize_dynamic(source, file("dynamic"), per_channel=True, weight_type=QuantType.QInt8, **constant)
    yield "ONNX Runtime, dynamic INT8 per channel", runner(ENGINES["onnx"], file("dynamic"))
    constant["extra_options"]["OpTypesToExcludeOutputQuantization"] = LINEAR
    quantize_static(
        source, file("static"), Reader(feeds), quant_format=QuantFormat.QDQ, per_channel=True,
        weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8, **constant,
    )  # fmt: skip
    yield "ONNX Runtime, static Q/DQ, max calibration", runner(ENGINES["onnx"], file("static"))
    blocks = MatMulNBitsQuantizer(
        gemm_as_matmul(onnx.load(source)),
        algo_config=DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, accuracy_level=4, bits=8),
    )
    blocks.process()
    blocks.model.save_model_to_file(str(file("blocks")), False)
    yield f"ONNX Runtime, INT8 in blocks of {BLOCK}", runner(ENGINES["onnx"], file("blocks"))
    qdq = onnx.load(source)
    take_longest_as_shape(qdq, max_length)
    make_qdq(qdq, workshop.fit(workshop.linears, signed=True))
    onnx.save(qdq, file("qdq"))
    try:
        openvino = importlib.import_module("openvino")
    except ImportError:
        return
    yield "OpenVINO, fp32", in_openvino(openvino, source, "f32")
    yield "OpenVINO, bf16", in_openvino(openvino, source, "bf16")
    yield "OpenVINO, fitted Q/DQ (the TensorRT graph)", in_openvino(openvino, file("qdq"), "f32")


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands ONNX Runtime's quantizer the calibration batches."""

    def __init__(self, feeds: list[Feed]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        """The next batch; None behind the last."""
        return next(self.feeds, None)


def gemm_as_matmul(model: onnx.ModelProto) -> onnx.ModelProto:
    """The linear layers as MatMul and Add, which is what the block quantizer looks for."""

    def nodes(linear: Linear, constants: Constants) -> list[onnx.NodeProto]:
        weight = constants.add(f"{linear.name}.turned", linear.weight.T)
        product = f"{linear.output}.product" if linear.bias else linear.output
        made = [onnx.helper.make_node("MatMul", [linear.input, weight], [product], name=product)]
        if linear.bias:
            made.append(onnx.helper.make_node("Add", [product, linear.bias], [linear.output]))
        return made

    rewrite(model, find_linears(model), nodes)
    return model


def in_openvino(openvino: Any, graph: Path, precision: str) -> Run:
    """A graph as OpenVINO runs it on the CPU, in the given precision."""
    compiled = openvino.Core().compile_model(str(graph), "CPU", {"INFERENCE_PRECISION_HINT": precision})
    request = compiled.create_infer_request()
    inputs = {name for entry in compiled.inputs for name in entry.names}

    def compute(feed: Feed) -> Logits:
        given = {name: values for name, values in add_longest(feed).items() if name in inputs}
        logits: Logits = request.infer(given)[0].copy()
        return logits

    return compute


def table(found: dict[str, Any]) -> str:
    """The candidates, a line each; speeds as multiples of the first's, too."""
    first = next(iter(found.values()))
    lines = [f"{'candidate':<46}{'sorted':>16}{'requests':>16}{'mean |Δlogit|':>15}{'Δ AUC':>10}{'top-1':>8}  gate"]
    for name, one in found.items():
        speeds = "".join(
            f"{one[key]:>9.0f} ({one[key] / first[key]:.2f}x)"
            for key in ("pairs_per_second_sorted", "pairs_per_second_requests")
        )
        lines.append(
            f"{name:<46}{speeds}{one['mean_abs_diff']:>15.4f}{one['auc_difference']:>+10.5f}"
            f"{100 * one['top1_changed']:>7.2f}%  {'passed' if one['passes_int8_gate'] else 'failed'}"
        )
    return "\n".join(lines)
