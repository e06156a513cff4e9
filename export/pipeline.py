"""One export: load, build, gate, publish. Every step raises with what is wrong; only the last one changes anything.

All engines are made of one packed fp32 graph. They are published together under one number, or not at all.
"""

from __future__ import annotations

import filecmp
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors

from export.builder import EngineBuilder
from export.engines import find_engines
from export.engines.base import Engine, Run, Say
from export.engines.layers import check_layer_names
from export.graph.layer_names import LayerNameError
from export.graph.lint import LintError
from export.graph.onnx_export import GraphError, write_click_model, write_tokenizer
from export.graph.packed.packed_bert import UnsupportedModelError
from export.graph.packing import Feed, Logits
from export.graph.session import open_graph
from export.publish import PublishError, find_too_old, staged
from export.quantize.calibration import CalibrationError, calibration_batches
from export.report.report import About, check_writable, screen_table, write_report
from export.report.result import Result
from export.tensorrt.typed_graph import TypingError
from export.verify.comparison import compare
from export.verify.evaluation import (
    Checkpoint,
    Evaluation,
    TokenizerError,
    evaluate,
    read_checkpoint,
    read_evaluation,
)
from export.verify.exact import score_exactly
from export.verify.gates import (
    HEAD_TOLERANCE,
    LARGEST_ACTIVATION,
    TIE,
    TOLERANCE,
    GateError,
    Limits,
    check,
    check_finite,
    describe_failures,
)
from export.verify.heads import choose_texts, compare_heads
from export.verify.kept import prove_kept
from export.verify.parity import Parity, ParityError, prove, prove_heads, score_heads_merged, score_merged
from export.verify.sensitivity import describe_sensitivity, measure_sensitivity
from export.verify.speed import measure_speed
from finetune.checkpoint.load import CheckpointError
from finetune.data.clicklog import ClickLogError, ClickRow, find_split, read_click_log
from finetune.evaluation.metrics import MetricError
from finetune.evaluation.scoring import tokenize_pairs, tokenize_texts
from release.expected import Expected
from release.files import sha256
from release.lock import LockError
from release.manifest import EvaluationRecord, Manifest, Proof, write_manifest
from release.names import EMBEDDING, LOGITS, MODEL_FILE, TOKENIZER_MODEL, TOPIC_LOGITS
from release.stamp import PlanError

# Their versions go into the manifest.
TOOLS = ("torch", "transformers", "tokenizers", "onnx", "onnxscript", "onnxruntime", "numpy")
# What can be wrong with a request. Each says so in a sentence.
REFUSALS = (
    CalibrationError, CheckpointError, ClickLogError, GateError, GraphError, LayerNameError, LintError, LockError,
    MetricError, ParityError, PlanError, PublishError, TokenizerError, TypingError, UnsupportedModelError, OSError,
    *(getattr(onnxruntime_errors, name) for name in ("Fail", "InvalidArgument", "InvalidGraph", "RuntimeException")),
)  # fmt: skip


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and how good it must be."""

    checkpoint: Path  # Hugging Face folder of a BertForSequenceClassification, safetensors
    repository: Path
    evaluation: Path  # click log; the gates measure on its pairs and clicks
    engines: tuple[Engine, ...]
    calibration: Path | None = None  # click log that INT8 is fitted to; None: train.jsonl[.gz] beside the evaluation
    limits: Limits = field(default_factory=dict)
    keep_fp32: tuple[str, ...] = ()  # layers that stay in float32
    click_label: str | None = None  # name or index; None: the checkpoint's own names say it
    sensitivity: bool = False
    report: Path = Path("export/report.html")
    command: str = ""  # for the report


@dataclass(frozen=True)
class Published:
    """What the command prints as JSON."""

    version: int
    models: dict[str, Proof]


def export_checkpoint(request: ExportRequest, say: Say) -> Published:
    """Publishes the checkpoint as the requested engines and as `clickbert_tokenizer`, once all engines have passed.

    Raises:
        GateError: an engine does not keep the ranking, or the checkpoint has none.
        CheckpointError, ClickLogError, ...: one of REFUSALS. Nothing was published, whichever it is. Once the
            checkpoint is read, the report says so, with the figures of the engines that were compared; but not if the
            repository cannot be locked, because the report may then be another export's.
    """
    check_writable(request.report)
    calibration = read_calibration(request, say)
    say(f"read {request.evaluation} and {request.checkpoint}")
    rows = read_evaluation(request.evaluation)
    checkpoint = read_checkpoint(request.checkpoint, request.click_label)
    about = describe(request, checkpoint)
    once = checkpoint.user_tokens is not None
    models = [TOKENIZER_MODEL, *(engine.model for engine in request.engines)]
    results: list[Result] = []
    evaluation: Evaluation | None = None
    try:
        check_layer_names(request.keep_fp32, request.engines, checkpoint.linear_names)
        feeds = calibration_feeds(checkpoint, calibration)
        with (
            TemporaryDirectory(prefix="clickbert-export-") as scratch,
            staged(request.repository, models, checkpoint.output_widths, once=once) as (version, folders),
        ):
            say(f"score {len(rows)} pairs in PyTorch, padded: the reference")
            evaluation = evaluate(checkpoint, rows, request.limits)
            source = Path(scratch) / MODEL_FILE
            parity, logits = prove_source(request, checkpoint, evaluation, source, say)
            by_shapes = Path(scratch) / f"by-shapes-{MODEL_FILE}" if once and wants_shapes(request) else None
            parity_by_shapes = parity
            if by_shapes:
                parity_by_shapes, _ = prove_source(request, checkpoint, evaluation, by_shapes, say, by_shapes=True)
            builder = EngineBuilder(source, checkpoint.max_length, feeds, by_shapes)
            build_engines(request, builder, evaluation, logits, folders, results, say)
            print(screen_table(results))
            if request.sensitivity:
                show_sensitivity(request, builder, evaluation, Path(scratch), say)
            refuse_failures(results, request.sensitivity)
            proofs = {
                result.engine.model: result.proof(parity_by_shapes if result.engine.by_shapes else parity)
                for result in results
            }
            expected = {result.engine.model: evaluation.expect(result.logits) for result in results}
            fill_version(request, checkpoint, evaluation, version, proofs, expected, folders, say)
            say(f"publish version {version}: {', '.join(models)}")
    except LockError:  # the report may be that of the export which is at work there
        raise
    except Exception as exc:
        report(request, replace(about, refusal=str(exc)), results, evaluation, say)
        raise
    report(request, replace(about, version=version), results, evaluation, say)
    for model in find_too_old(request.repository, TOKENIZER_MODEL):
        say(f"{model} is too old: its tokenizer is no longer served. Export it again.")
    return Published(version, proofs)


def read_calibration(request: ExportRequest, say: Say) -> list[ClickRow]:
    """Reads the click log that INT8 is fitted to and FP16 is watched on; nothing if no engine needs one.

    Raises:
        CalibrationError: it cannot be read.
    """
    if not any(engine.needs_calibration for engine in request.engines):
        return []
    try:
        path = calibration_file(request)
        rows = read_click_log(path)
    except ClickLogError as exc:
        others = [name for name, engine in find_engines().items() if not engine.needs_calibration]
        raise CalibrationError(
            f"{exc}. INT8 and FP16 need a click log to be fitted to: give --calibration, or --engine "
            f"{' or '.join(others)}, which needs none"
        ) from exc
    if path.resolve() == request.evaluation.resolve():
        say("calibration and evaluation are the same file: the gates are kinder to INT8 than traffic will be")
    return rows


def calibration_feeds(checkpoint: Checkpoint, rows: Sequence[ClickRow]) -> list[Feed]:
    """What INT8 is fitted to: pairs of the calibration rows and, for heads that read single texts, such texts."""
    if not rows:
        return []
    pairs = tokenize_pairs(checkpoint.tokenizer, rows, checkpoint.max_length, checkpoint.user_tokens)
    texts = choose_texts(rows) if {TOPIC_LOGITS, EMBEDDING} & set(checkpoint.heads.outputs) else []
    singles = tokenize_texts(checkpoint.tokenizer, texts, checkpoint.max_length)
    return calibration_batches(pairs, singles, once=checkpoint.user_tokens is not None)


def calibration_file(request: ExportRequest) -> Path:
    """The click log for calibration. Raises ClickLogError if none was given and there is none."""
    return request.calibration or find_split(request.evaluation.parent, "train")


def wants_shapes(request: ExportRequest) -> bool:
    """Whether an engine takes its sizes from shapes."""
    return any(engine.by_shapes for engine in request.engines)


def prove_source(
    request: ExportRequest,
    checkpoint: Checkpoint,
    evaluation: Evaluation,
    source: Path,
    say: Say,
    *,
    by_shapes: bool = False,
) -> tuple[Parity, Logits]:
    """Writes the packed fp32 graph to `source` and proves it; returns the proof and the graph's logits.

    `by_shapes`: TensorRT's form of it, where the user text is computed once.
    """
    say("build the packed graph for TensorRT" if by_shapes else "build the packed graph")
    write_click_model(checkpoint.model, source, checkpoint.heads, by_shapes=by_shapes)
    say("prove its parity: the graph beside PyTorch, in merged batches")
    run, tolerance, rows = open_graph(source, for_gpu=by_shapes), TOLERANCE.of(request.limits), evaluation.rows
    once = evaluation.once

    def exact(places: Sequence[int]) -> NDArray[np.float64]:
        return score_exactly(checkpoint.model, checkpoint.tokenizer, [evaluation.pairs[place] for place in places])

    proved = prove(run, rows, evaluation.pairs, evaluation.logits, tolerance, checkpoint.click_label, exact, once=once)
    if once and not by_shapes:
        prove_kept(run, "the packed graph", evaluation.pairs, proved[1], tolerance)
    if evaluation.heads:
        prove_heads(run, evaluation.heads, HEAD_TOLERANCE.of(request.limits), once=once)
    return proved


def build_engines(
    request: ExportRequest,
    builder: EngineBuilder,
    evaluation: Evaluation,
    source_logits: Logits,
    folders: Mapping[str, Path],
    results: list[Result],
    say: Say,
) -> None:
    """Builds every engine, compares it with the reference and adds it to `results`; then measures their speed."""
    runs = {}
    once = evaluation.once
    for engine in request.engines:
        say(f"build {engine.model} and compare {len(evaluation.rows)} pairs")
        graph = folders[engine.model] / MODEL_FILE
        engine.write(builder, graph, request.keep_fp32)
        fp16_range = engine.fp16_range(builder, request.keep_fp32)
        run = engine.open(graph)
        if filecmp.cmp(graph, builder.source, shallow=False):
            logits = source_logits
        else:
            logits = score_merged(run, evaluation.pairs, {LOGITS: len(evaluation.labels)}, once=once)[LOGITS]
        check_finite(engine.model, {LOGITS: logits})
        tie = TIE.of(request.limits)
        comparison = compare(evaluation.rows, evaluation.pairs, evaluation.logits, logits, evaluation.labels, tie)
        if once and not engine.by_shapes and logits is not source_logits:  # the packed graph itself is proved
            # INT8 carries a difference in the last bits on until it is as large as the engine's own error.
            allowed = max(TOLERANCE.of(request.limits), comparison.max_abs_diff)
            prove_kept(run, engine.model, evaluation.pairs, logits, allowed)
        if heads := evaluation.heads:
            found = score_heads_merged(run, heads, once=once)
            check_finite(engine.model, found)
            comparison = replace(comparison, heads=compare_heads(found, heads))
        checks = check(engine.gates, comparison, request.limits, max(fp16_range.values(), default=None))
        results.append(Result(engine, comparison, checks, logits, graph.stat().st_size, fp16_range))
        if engine.serves_on_cpu:
            runs[engine.name] = run
    say("measure the speed of those that serve on CPUs")
    speeds = measure_speed(runs, evaluation.pairs, once=once)
    results[:] = [replace(result, pairs_per_second=speeds.get(result.engine.name)) for result in results]


def show_sensitivity(
    request: ExportRequest, builder: EngineBuilder, evaluation: Evaluation, scratch: Path, say: Say
) -> None:
    """Prints which layers cost most, for each engine that reduces any."""
    graph = scratch / f"sensitivity-{MODEL_FILE}"
    for engine in request.engines:

        def build(keep_fp32: Sequence[str], engine: Engine = engine) -> Run:
            engine.write(builder, graph, keep_fp32)
            return engine.open(graph)

        if layers := engine.reduced_layers([linear.name for linear in builder.linears]):
            say(f"sensitivity of {engine.model}: each layer kept in float32 in turn")
            costs = measure_sensitivity(
                build, layers, evaluation.pairs, evaluation.logits, request.keep_fp32, once=evaluation.once
            )
            print(describe_sensitivity(engine.model, costs))


def refuse_failures(results: Sequence[Result], sensitivity: bool) -> None:
    """Raises GateError if an engine failed a check, with every failure and what to do next."""
    failures = [line for result in results for line in describe_failures(result.engine.model, result.checks)]
    if not failures:
        return
    hint = "keep layers in float32 with --keep-fp32" if sensitivity else "--sensitivity shows which layers cost most"
    if any(not one.passed and one.name == LARGEST_ACTIVATION for result in results for one in result.checks):
        hint = "serve a checkpoint that overflows FP16 in fp32, or train it with more weight decay"
    lines = "".join(f"\n  {line}" for line in failures)
    raise GateError(f"the ranking is not kept:{lines}\n{hint}; or leave the engine out (--engine)")


def fill_version(
    request: ExportRequest,
    checkpoint: Checkpoint,
    evaluation: Evaluation,
    version: int,
    proofs: Mapping[str, Proof],
    expected: Mapping[str, Expected],
    folders: Mapping[str, Path],
    say: Say,
) -> None:
    """Writes what lies beside the graphs: the tokenizer, the manifests, and each engine's own files."""
    tokenizer_sha256 = write_tokenizer(
        checkpoint.tokenizer_json, checkpoint.max_length, checkpoint.labels, checkpoint.click_label,
        checkpoint.heads.settings, folders[TOKENIZER_MODEL] / MODEL_FILE, checkpoint.user_tokens,
        evaluation.expect(evaluation.logits),
    )  # fmt: skip
    manifest = Manifest(
        model=TOKENIZER_MODEL,
        version=version,
        checkpoint=checkpoint.origin,
        labels=tuple(checkpoint.labels),
        click_label=checkpoint.click_label,
        max_length=checkpoint.max_length,
        user_tokens=checkpoint.user_tokens,
        evaluation=EvaluationRecord(request.evaluation.name, sha256(request.evaluation), evaluation.metrics),
        calibration=calibration_file(request).name if any(e.needs_calibration for e in request.engines) else None,
        keep_fp32=request.keep_fp32,
        tokenizer_sha256=tokenizer_sha256,
        tools={"python": platform.python_version(), **{tool: installed_version(tool) for tool in TOOLS}},
    )
    write_manifest(folders[TOKENIZER_MODEL], manifest)
    for engine in request.engines:
        engine.add_files(folders[engine.model], evaluation, request.limits)
        model = engine.model
        own = replace(manifest, model=model, proof=proofs[model], expected=expected[model])
        write_manifest(folders[model], own)
        engine.finish(folders[engine.model], say)


def describe(request: ExportRequest, checkpoint: Checkpoint) -> About:
    """What the report says about this export."""
    return About(
        checkpoint=checkpoint.origin.name,
        checkpoint_sha256=checkpoint.origin.sha256,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        evaluation=request.evaluation.name,
        evaluation_sha256=sha256(request.evaluation),
        command=request.command,
    )


def report(
    request: ExportRequest,
    about: About,
    results: Sequence[Result],
    evaluation: Evaluation | None,
    say: Say,
) -> None:
    """Writes the report. If that fails, it says so and goes on: what was published stays published."""
    try:
        write_report(request.report, about, results, evaluation)
        say(f"the report with pictures is {request.report}")
    except (OSError, KeyboardInterrupt) as exc:
        say(f"the report {request.report} could not be written: {str(exc) or 'interrupted'}")
