"""Loads a Hugging Face folder as a click model, and refuses, with the reason, what cannot be served as one."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from finetune.checkpoint.adapter import merge_adapter, read_adapter_shapes
from finetune.checkpoint.config import check_shapes, make_config, read_config, read_shapes
from finetune.checkpoint.files import CheckpointError, Sources, find_sources, find_weights, hash_checkpoint
from finetune.checkpoint.labels import MULTI_LABEL, choose_click, name_click, read_labels
from finetune.checkpoint.quiet import quiet_transformers
from finetune.checkpoint.tokenizer import load_tokenizer, longest_pair

__all__ = ["CheckpointError", "hash_checkpoint", "label_names", "load_checkpoint", "load_tokenizer"]

Loaded = tuple[BertForSequenceClassification, PreTrainedTokenizerFast, int]


def load_checkpoint(folder: str | Path, click_label: str | int | None = None) -> Loaded:
    """Load a fine-tuned checkpoint: model (FP32, evaluation mode), tokenizer, and the longest pair in tokens.

    `click_label` (a name or an index) is for models whose label names do not tell which one is the click; the chosen
    label is renamed "click", so `click_column` finds it from then on. A multi-label model is reduced to its click
    label: one logit, whose sigmoid is the click probability, as for every model of one label. The sigmoid of a model
    trained with `problem_type: regression` keeps its ranking, but is no calibrated probability.

    The longest pair is min(tokenizer.model_max_length, config.max_position_embeddings). Nothing is downloaded.

    Raises:
        CheckpointError: the folder is missing, is no BERT, holds pickled weights only, cannot be read, lacks the
            classifier's weights or the model's tokenizer, a weight is NaN or infinite, or the labels do not tell.
    """
    model, tokenizer, longest, missing = load_incomplete(folder, click_label)
    if missing:
        raise CheckpointError(
            f"{folder}: no weights for {', '.join(missing)}; this is not a fine-tuned click model, "
            "fine-tune it first with `python -m finetune train`"
        )
    return model, tokenizer, longest


def load_incomplete(
    folder: str | Path, click_label: str | int | None = None
) -> tuple[BertForSequenceClassification, PreTrainedTokenizerFast, int, list[str]]:
    """Load as `load_checkpoint` does, but draw the weights that the folder lacks, and return their names, too.

    Raises:
        CheckpointError: as `load_checkpoint`, but not for missing weights.
    """
    folder = Path(folder)
    sources = find_sources(folder)
    fields = read_config(sources.config)
    try:
        labels = _read_labels(sources, fields)
        column = choose_click(labels, click_label, fields.get("problem_type"))
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    config = make_config(fields, name_click(labels, column))
    tokenizer = load_tokenizer(sources.tokenizer)
    longest = longest_pair(folder, config, tokenizer)
    model, missing = load_model(sources, config)
    if fields.get("problem_type") == MULTI_LABEL:
        _keep_label(model, column)
    return model, tokenizer, longest, missing


def label_names(model: BertForSequenceClassification) -> list[str]:
    """Return the label names in the order of their ids, as `click_probability` takes them."""
    names: dict[Any, Any] = dict(model.config.id2label or {})
    return [str(names[index]) for index in range(len(names))]


def load_model(sources: Sources, config: BertConfig) -> tuple[BertForSequenceClassification, list[str]]:
    """Load a classifier in FP32 and evaluation mode; returns it and the names of the weights that the folder lacks.

    A classifier of another shape than `config` asks for counts as lacking.

    Raises:
        CheckpointError: the weights cannot be read or do not fit the config, or one is NaN or infinite.
    """
    folder = sources.weights
    check_shapes(folder, config, read_shapes(find_weights(folder)))
    try:
        with quiet_transformers():
            loaded: Any = BertForSequenceClassification.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                local_files_only=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: the model cannot be loaded: {error}; save or download it again") from error
    model: BertForSequenceClassification
    model, report = loaded
    missing = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    if sources.adapter:
        missing -= merge_adapter(model, sources.adapter)
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{folder}: the weight {name} holds NaN or infinity; use an earlier checkpoint")
    model.train(mode=False)
    return model, sorted(missing)


def _read_labels(sources: Sources, fields: dict[str, Any]) -> list[str]:
    """Read the labels' names, as many as the classifier has rows."""
    shapes = read_shapes(find_weights(sources.weights))
    if sources.adapter:
        shapes |= read_adapter_shapes(sources.adapter)
    rows = shapes["classifier.weight"][0] if shapes.get("classifier.weight") else None
    labels = read_labels(fields)
    if rows in (None, len(labels)):
        return labels
    if sources.adapter and sources.config != sources.adapter:
        return read_labels({"num_labels": rows})  # the adapter has a head of its own; the names are its base's
    raise CheckpointError(f"config.json names {len(labels)} labels {labels}, but the classifier has {rows} rows")


def _keep_label(model: BertForSequenceClassification, column: int) -> None:
    """Reduce the classifier to one label's row: everything downstream then sees a model of one label."""
    row = nn.Linear(model.classifier.in_features, 1)
    with torch.no_grad():
        row.weight.copy_(model.classifier.weight[column : column + 1])
        row.bias.copy_(model.classifier.bias[column : column + 1])
    model.classifier = row
    model.num_labels = 1
    model.config.id2label, model.config.label2id = {0: "click"}, {"click": 0}
