"""Evaluates a checkpoint or, for comparison, a base whose head is still untrained."""

from collections.abc import Sequence

import torch

from finetune.checkpoint.base_model import check_encoder, resolve_base
from finetune.checkpoint.load import label_names, load_incomplete
from finetune.data.clicklog import ClickRow
from finetune.evaluation.metrics import click_probability, evaluate_ranking
from finetune.evaluation.scoring import score_rows


def evaluate(
    name: str, rows: Sequence[ClickRow], click_label: str | int | None = None
) -> tuple[dict[str, float], list[str]]:
    """Evaluate a checkpoint folder, "minilm" or a hub name.

    Returns:
        The metrics, and the names of the weights that the model lacks, which are drawn from seed 0.

    Raises:
        CheckpointError: the model cannot be used, or its labels do not tell which one is the click.
        MetricError: a logit is NaN, or the rows cannot be evaluated.
    """
    folder = resolve_base(name)
    torch.manual_seed(0)
    model, tokenizer, max_length, missing = load_incomplete(folder, click_label)
    check_encoder(folder, missing)
    logits = score_rows(model, tokenizer, rows, max_length)
    return evaluate_ranking(rows, click_probability(logits, label_names(model))), missing
