"""Evaluating a checkpoint, or for comparison a base whose head is still untrained."""

from collections.abc import Sequence

import torch

from finetune.checkpoint.base_model import check_config, check_encoder, resolve_base
from finetune.checkpoint.load import label_names, load_model, load_tokenizer, longest_pair
from finetune.data.clicklog import ClickRow
from finetune.metrics import click_probability, evaluate_ranking
from finetune.scoring import score_rows


def evaluate(name: str, rows: Sequence[ClickRow]) -> tuple[dict[str, float], list[str]]:
    """Evaluate a checkpoint folder, "minilm" or a hub name: the metrics, and the weights it lacks (drawn from seed 0).

    Raises:
        CheckpointError: the model cannot be used.
        MetricError: it answers NaN, has no label "click" among three or more, or the rows cannot be evaluated.
    """
    source = resolve_base(name)
    check_config(source)
    torch.manual_seed(0)
    model, missing = load_model(source)
    check_encoder(source, missing)
    tokenizer = load_tokenizer(source)
    logits = score_rows(model, tokenizer, rows, longest_pair(source, model, tokenizer))
    return evaluate_ranking(rows, click_probability(logits, label_names(model))), missing
