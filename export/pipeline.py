"""One export: load, build, prove, publish. Every step raises with what is wrong; only the last one changes anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnxruntime
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from export.graph import write_click_model, write_tokenizer
from export.manifest import hash_checkpoint, sha256, write_manifest
from export.names import LOGITS, MODEL_FILE, ONNX_MODEL, TOKENIZER_MODEL
from export.packing import Feed
from export.parity import Logits, Parity, prove
from export.publish import staged
from finetune.clicklog import read_click_log
from finetune.metrics import click_column, click_probability, evaluate_ranking
from finetune.scoring import label_names, load_checkpoint, score_rows, tokenize_pairs


def export_checkpoint(
    checkpoint: Path, repository: Path, evaluation: Path, tolerance: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """Publishes `checkpoint` as `clickbert_onnx` and `clickbert_tokenizer`, once parity is proved.

    Args:
        checkpoint: Hugging Face folder of a `BertForSequenceClassification`, safetensors.
        repository: the model repository.
        evaluation: click log; its pairs prove parity, its clicks give the metrics.
        tolerance: largest |difference| of a logit to Hugging Face's.
        say: is told each step.

    Returns:
        {"model", "version", "parity", "metrics"}

    Raises:
        CheckpointError, ClickLogError, MetricError, UnsupportedModelError, GraphError, ParityError, PublishError: as
            named by the module that raises it. Nothing was published.
    """
    say(f"read {checkpoint} and {evaluation}")
    model, tokenizer, max_length = load_checkpoint(checkpoint)
    labels = label_names(model)
    click = click_column(labels)
    rows = read_click_log(evaluation)
    facts: dict[str, Any] = {
        "checkpoint": hash_checkpoint(checkpoint),
        "labels": labels,
        "click_label": click,
        "max_length": max_length,
    }
    say(f"score {len(rows)} pairs in PyTorch, padded: the reference")
    pairs = tokenize_pairs(tokenizer, rows, max_length)
    reference = score_rows(model, tokenizer, rows, max_length)
    pytorch_metrics = evaluate_ranking(rows, click_probability(reference, labels))
    with staged(repository, [TOKENIZER_MODEL, ONNX_MODEL], len(labels)) as (version, folders):
        say("build the packed graph")
        graph = folders[ONNX_MODEL] / MODEL_FILE
        write_click_model(model, graph)
        say("prove parity: the graph against PyTorch, in merged batches")
        parity, logits = prove(runner(graph), rows, pairs, reference, tolerance, click)
        metrics = evaluate_ranking(rows, click_probability(logits, labels))
        facts["tokenizer_sha256"] = write_tokenizer(
            tokenizer_json(tokenizer), max_length, labels, click, folders[TOKENIZER_MODEL] / MODEL_FILE
        )
        evaluated = {
            "file": evaluation.name,
            "sha256": sha256(evaluation),
            "metrics": metrics,
            "pytorch_metrics": pytorch_metrics,
        }
        write_manifest(folders[TOKENIZER_MODEL], {"model": TOKENIZER_MODEL, "version": version, **facts})
        proved = {"parity": asdict(parity), "evaluation": evaluated}
        write_manifest(folders[ONNX_MODEL], {"model": ONNX_MODEL, "version": version, **facts, **proved})
        say(f"publish version {version}: {describe(parity)}")
    return {"model": ONNX_MODEL, "version": version, "parity": asdict(parity), "metrics": metrics}


def tokenizer_json(tokenizer: PreTrainedTokenizerFast) -> bytes:
    """The checkpoint's tokenizer.json, without the truncation and padding that its last use left in it."""
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_truncation()
    plain.no_padding()
    return plain.to_str().encode()


def runner(graph: Path) -> Callable[[Feed], Logits]:
    """The graph as a function of one packed batch, on ONNX Runtime's CPU provider (as Triton would run it)."""
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])

    def run(feed: Feed) -> Logits:
        logits: Logits = session.run([LOGITS], feed)[0]
        return logits

    return run


def describe(parity: Parity) -> str:
    """The proof in one line."""
    return (
        f"max |difference| {parity.max_abs_diff:.2g} (allowed {parity.tolerance:g}) over {parity.pairs} pairs in "
        f"batches of {parity.smallest_batch} to {parity.largest_batch}, {parity.groups_in_order} groups in order"
    )
