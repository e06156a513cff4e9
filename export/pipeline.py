"""One export: load, build, gate, publish. Every step raises with what is wrong; only the last one changes anything.

All engines are made of one packed fp32 graph, and published together under one number, or not at all.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

from export.engines.base import ENGINES, Engine, EngineBuilder, runner
from export.graph.onnx_export import write_click_model, write_tokenizer
from export.graph.packing import Logits, Pair
from export.publish import left_behind, staged
from export.quantize.calibration import CalibrationError, calibration_batches
from export.tensorrt.build import rebuild
from export.tensorrt.runtime import load_tensorrt
from export.verify.comparison import compare
from export.verify.gates import FP32, LARGEST_ACTIVATION, GateError, Limits, check, check_finite, describe_failures
from export.verify.parity import prove, score_merged
from export.verify.report import Result, screen_table, write_report
from export.verify.saved_gate import gate, save_gate
from export.verify.sensitivity import describe_sensitivity, measure_sensitivity
from export.verify.speed import measure_speed
from finetune.checkpoint.load import label_names, load_checkpoint
from finetune.data.clicklog import ClickLogError, ClickRow, read_click_log
from finetune.metrics import click_column, click_probability, evaluate_ranking
from finetune.scoring import score_rows, tokenize_pairs
from finetune.training import find_split
from release.files import sha256
from release.manifest import CheckpointRecord, EvaluationRecord, Manifest, hash_checkpoint, write_manifest
from release.names import MODEL_FILE, TOKENIZER_MODEL
from release.stamp import PlanError, find_machine

TOOLS = ("torch", "transformers", "tokenizers", "onnx", "onnxscript", "onnxruntime", "numpy")


@dataclass(frozen=True)
class ExportRequest:
    """What is to be exported, and how good it must be."""

    checkpoint: Path  # Hugging Face folder of a BertForSequenceClassification, safetensors
    repository: Path
    evaluation: Path  # click log; its pairs and clicks are what the gates look at
    calibration: Path | None  # click log; INT8 is fitted to its pairs. None: train.jsonl[.gz] beside the evaluation
    engines: tuple[Engine, ...]
    limits: Limits = field(default_factory=Limits)
    keep_fp32: tuple[str, ...] = ()  # layers that stay in float32
    sensitivity: bool = False
    report: Path = Path("export/report.html")


@dataclass(frozen=True)
class Evaluation:
    """The checkpoint on the evaluation file, in PyTorch: what every engine is held against."""

    model: BertForSequenceClassification
    tokenizer: PreTrainedTokenizerFast
    max_length: int
    labels: list[str]
    rows: list[ClickRow]
    pairs: list[Pair]
    reference: Logits
    metrics: dict[str, float]


def export_checkpoint(order: ExportRequest, say: Callable[[str], None]) -> dict[str, Any]:
    """Publishes the checkpoint as the engines that were ordered, and as `clickbert_tokenizer`, once all passed.

    Args:
        order: what, where to, how good.
        say: is told each step.

    Returns:
        {"version", "models": {name: what its manifest says of its quality, size and speed}}

    Raises:
        GateError: an engine does not keep the ranking; the table and the report show by how much.
        CheckpointError, ClickLogError, MetricError, CalibrationError, LayerNameError, UnsupportedModelError,
        GraphError, TypingError, LintError, ParityError, PlanError, PublishError: as named by the module that raises it.
        Whatever is raised, nothing was published.
    """
    clear_report(order.report)
    calibration = read_calibration(order, say)
    reference = evaluate(order, say)
    models = [TOKENIZER_MODEL, *(engine.model for engine in order.engines)]
    with TemporaryDirectory(prefix="clickbert-export-") as scratch:
        source = Path(scratch) / MODEL_FILE
        builder, parity, exact = build_source(order, reference, calibration, source, say)
        with staged(order.repository, models, len(reference.labels)) as (version, folders):
            results = []
            for engine in order.engines:
                graph = folders[engine.model] / MODEL_FILE
                known = exact if engine.precision == FP32 else None
                results.append(make_and_compare(engine, graph, builder, reference, order, say, known))
            say("measure the speed of those that serve on CPUs")
            on_cpus = [engine for engine in order.engines if not engine.tensorrt]
            runs = {engine.model: runner(engine, folders[engine.model] / MODEL_FILE) for engine in on_cpus}
            speeds = measure_speed(runs, reference.pairs)
            results = [result.with_speed(speeds.get(result.engine.model, float("nan"))) for result in results]
            print(screen_table(results))
            write_report(order.report, results, reference.reference, reference.labels)
            say(f"the report with pictures is {order.report}")
            if order.sensitivity:
                show_sensitivity(order, builder, reference, Path(scratch), say)
            refuse_failures(results, order)
            tokenizer_sha256 = write_tokenizer(
                tokenizer_json(reference.tokenizer), reference.max_length, reference.labels,
                click_column(reference.labels), folders[TOKENIZER_MODEL] / MODEL_FILE,
            )  # fmt: skip
            manifest = describe_version(order, reference, version, tokenizer_sha256)
            write_manifest(folders[TOKENIZER_MODEL], manifest)
            for result in results:
                folder = folders[result.engine.model]
                if result.engine.tensorrt:
                    save_gate(folder, reference.rows, reference.pairs, reference.reference, reference.labels,
                              result.engine.precision, order.limits)  # fmt: skip
                write_manifest(folder, replace(manifest, model=result.engine.model, proof=result.proof(parity)))
                if result.engine.tensorrt:
                    build_plan(folder, result.engine.model, say)
            say(f"publish version {version}: {', '.join(models)}")
    for model in left_behind(order.repository, TOKENIZER_MODEL):
        say(
            f"{model} was not exported along, and the server no longer keeps its version's tokenizer: no client can "
            "ask it until it is exported again, too"
        )
    return {"version": version, "models": {r.engine.model: asdict(r.proof(parity)) for r in results}}


def evaluate(order: ExportRequest, say: Callable[[str], None]) -> Evaluation:
    """Reads what is to be exported, and scores the evaluation file in PyTorch."""
    say(f"read {order.checkpoint} and {order.evaluation}")
    model, tokenizer, max_length = load_checkpoint(order.checkpoint)
    labels = label_names(model)
    click_column(labels)  # refuses labels of which none ranks
    rows = read_click_log(order.evaluation)
    evaluate_ranking(rows, np.full(len(rows), 0.5))  # a file without clicks is found now, not after the scoring
    say(f"score {len(rows)} pairs in PyTorch, padded: the reference")
    pairs = tokenize_pairs(tokenizer, rows, max_length)
    reference = score_rows(model, tokenizer, rows, max_length)
    metrics = evaluate_ranking(rows, click_probability(reference, labels))
    return Evaluation(model, tokenizer, max_length, labels, rows, pairs, reference, metrics)


def clear_report(path: Path) -> None:
    """Makes sure that the report can be written, and that a former one is not taken for this export's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)


def read_calibration(order: ExportRequest, say: Callable[[str], None]) -> list[ClickRow]:
    """Reads the click log that INT8 and FP16 are fitted to and watched on; nothing where no engine needs it.

    Raises:
        CalibrationError: it cannot be read.
    """
    if all(engine.precision == FP32 for engine in order.engines):
        return []
    try:
        path = calibration_file(order)
        rows = read_click_log(path)
    except ClickLogError as exc:
        raise CalibrationError(
            f"{exc}. INT8 and FP16 need a click log to be fitted to: give --calibration, or --engine onnx, which "
            "needs none"
        ) from exc
    if path.resolve() == order.evaluation.resolve():
        say("calibration and evaluation are the same file: the gate is kinder to INT8 than traffic will be")
    return rows


def calibration_file(order: ExportRequest) -> Path:
    """The click log for calibration. Raises ClickLogError where none was given and there is none."""
    return order.calibration or find_split(order.evaluation.parent, "train")


def build_source(
    order: ExportRequest, reference: Evaluation, calibration: list[ClickRow], source: Path, say: Callable[[str], None]
) -> tuple[EngineBuilder, dict[str, Any], Logits]:
    """Writes the packed fp32 graph, proves it, and packs the calibration pairs; returns the graph's logits, too."""
    say("build the packed graph")
    write_click_model(reference.model, source)
    pairs = tokenize_pairs(reference.tokenizer, calibration, reference.max_length)
    builder = EngineBuilder(source, reference.max_length, calibration_batches(pairs) if calibration else [])
    builder.check_names(order.keep_fp32, order.engines)
    say("prove its parity: the graph against PyTorch, in merged batches")
    run = runner(ENGINES["onnx"], source)
    column = click_column(reference.labels)
    parity, logits = prove(run, reference.rows, reference.pairs, reference.reference, order.limits.tolerance, column)
    return builder, asdict(parity), logits


def make_and_compare(
    engine: Engine,
    graph: Path,
    builder: EngineBuilder,
    reference: Evaluation,
    order: ExportRequest,
    say: Callable[[str], None],
    logits: Logits | None,
) -> Result:
    """Makes one engine's graph and holds it against the reference; `logits` if it is the source, scored already."""
    say(f"build {engine.model} and compare {len(reference.rows)} pairs")
    builder.make(engine, graph, order.keep_fp32)
    largest = builder.watch(engine, order.keep_fp32)
    if logits is None:
        logits = score_merged(runner(engine, graph), reference.pairs, len(reference.labels))
    check_finite(engine.model, logits)
    comparison = compare(reference.rows, reference.reference, logits, reference.labels, order.limits.tie)
    checks = check(engine.precision, comparison, order.limits, max(largest.values(), default=None))
    return Result(engine, comparison, checks, logits, graph.stat().st_size, largest)


def build_plan(folder: Path, model: str, say: Callable[[str], None]) -> None:
    """Builds the plan into the version, and gates it, where a GPU is; elsewhere `python -m export plan` does it."""
    try:
        trt = load_tensorrt()
        machine = find_machine(str(trt.__version__))
    except PlanError as exc:
        say(f"{model}: no plan is built here ({exc}); `python -m export plan` builds it where it will be served")
        return
    say(f"{model}: build its plan for {machine}, and hold it against the gate")
    rebuild(trt, folder, machine, partial(gate, folder))


def show_sensitivity(
    order: ExportRequest, builder: EngineBuilder, reference: Evaluation, scratch: Path, say: Callable[[str], None]
) -> None:
    """Prints, for each engine that is not fp32, which layers cost most."""
    for engine in order.engines:
        if engine.precision != FP32:
            say(f"sensitivity of {engine.model}: each layer kept in float32 in turn")
            costs = measure_sensitivity(engine, builder, reference.pairs, reference.reference, order.keep_fp32, scratch)
            print(describe_sensitivity(engine.model, costs))


def refuse_failures(results: Sequence[Result], order: ExportRequest) -> None:
    """Raises GateError if an engine failed a check, with every failure and what to do next."""
    failures = [line for r in results for line in describe_failures(r.engine.model, r.checks)]
    if not failures:
        return
    hint = "spare layers with --keep-fp32" if order.sensitivity else "--sensitivity tells which layers cost most"
    if any(not one.passed and one.name == LARGEST_ACTIVATION for r in results for one in r.checks):
        hint = "a checkpoint that overflows FP16 is served in fp32, or trained with more weight decay"
    lines = [
        "the ranking is not kept:",
        *(f"  {line}" for line in failures),
        f"{hint}; or leave the engine out (--engine)",
    ]
    raise GateError("\n".join(lines))


def describe_version(order: ExportRequest, reference: Evaluation, version: int, tokenizer_sha256: str) -> Manifest:
    """The tokenizer's manifest; those of the click models say the same, and how each engine was proved."""
    return Manifest(
        model=TOKENIZER_MODEL,
        version=version,
        checkpoint=CheckpointRecord(**hash_checkpoint(order.checkpoint)),
        labels=tuple(reference.labels),
        click_label=click_column(reference.labels),
        max_length=reference.max_length,
        evaluation=EvaluationRecord(order.evaluation.name, sha256(order.evaluation), reference.metrics),
        calibration=calibration_file(order).name if any(e.quantized for e in order.engines) else None,
        keep_fp32=order.keep_fp32,
        tokenizer_sha256=tokenizer_sha256,
        tools={"python": platform.python_version(), **{tool: installed_version(tool) for tool in TOOLS}},
    )


def tokenizer_json(tokenizer: PreTrainedTokenizerFast) -> bytes:
    """The checkpoint's tokenizer.json, without the truncation and padding that its last use left in it."""
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_truncation()
    plain.no_padding()
    return plain.to_str().encode()
