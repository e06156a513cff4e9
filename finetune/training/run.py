"""Fine-tunes a BERT on clicks: a plain PyTorch loop, AdamW, linear warm-up and decay, batches of similar length.

The loss is the negative log-likelihood of every impression's click or non-click, so a row with counts weighs as much as
that many single rows. The epoch with the best AUC on dev is kept.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from tqdm import tqdm
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

from finetune.checkpoint.base_model import FRESH, load_base, resolve_base
from finetune.checkpoint.load import label_names
from finetune.checkpoint.save import check_output, save_checkpoint
from finetune.checkpoint.tokenizer import SHORTEST
from finetune.data.clicklog import ClickRow, find_split, read_click_log
from finetune.evaluation.metrics import click_probability, evaluate_ranking
from finetune.evaluation.scoring import pad, score_rows, tokenize_pairs

WARM_UP = 0.1  # of all steps
WEIGHT_DECAY = 0.01
# The head starts untrained (and MiniLM's pooler nearly so): at the encoder's rate, it would slow learning down.
HEAD_RATE = 10
GRADIENT_NORM = 1.0
# A click log holds few of the vocabulary's words. Training would move those away from their synonyms, and updating the
# whole table, half of a small BERT, would cost as much as updating all the rest.
FROZEN = "bert.embeddings.word_embeddings.weight"
BUCKET = 64  # batches sorted by length together: little padding, and the batches still differ in each epoch


class TrainingError(ValueError):
    """Raised when training cannot go on; the message says at which step, and what to change."""


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How to fine-tune. `max_length` is the longest pair in tokens; None means what the base allows."""

    epochs: int = 2
    batch_size: int = 8
    learning_rate: float = 1e-4
    max_length: int | None = None
    labels: int = 1
    seed: int = 0


def train(data: Path, base: str, output: Path, settings: TrainSettings) -> dict[str, float]:
    """Fine-tune `base` on `data`/train.jsonl, and save the epoch with the best AUC on `data`/dev.jsonl as `output`.

    Either split may be gzipped. Returns the dev metrics of the saved epoch. Nothing is written before the end.

    Raises:
        ClickLogError, MetricError: a split is missing or broken, or dev cannot be evaluated.
        CheckpointError: the base cannot be used, or `output` exists and is no checkpoint.
        TrainingError: the loss became NaN or infinite, or `max_length` is out of range.
    """
    check_output(output)
    train_rows, dev_rows = (read_click_log(find_split(data, name)) for name in ("train", "dev"))
    evaluate_ranking(dev_rows, [0.5] * len(dev_rows))  # refuses a dev split without clicks now, not after an epoch
    model, tokenizer, longest = load_base(resolve_base(base), settings.labels, settings.seed)
    max_length = settings.max_length or longest
    if not SHORTEST <= max_length <= longest:
        raise TrainingError(f"--max-length is {max_length}; this base takes {SHORTEST} to {longest} tokens")
    tokenizer.model_max_length = max_length  # saved with the tokenizer, so the model is served as it was trained
    best: dict[str, float] = {}
    best_weights: dict[str, torch.Tensor] = {}
    labels = label_names(model)
    for epoch in _epochs(model, tokenizer, train_rows, max_length, settings):
        probabilities = click_probability(score_rows(model, tokenizer, dev_rows, max_length), labels)
        metrics = evaluate_ranking(dev_rows, probabilities)
        tqdm.write(f"epoch {epoch}: dev AUC {metrics['auc']:.4f}, log loss {metrics['log_loss']:.4f}")
        if not best or metrics["auc"] > best["auc"]:
            best = metrics
            best_weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.load_state_dict(best_weights)
    save_checkpoint(model, tokenizer, output)
    return best


def click_loss(logits: torch.Tensor, clicks: torch.Tensor, impressions: torch.Tensor) -> torch.Tensor:
    """Sum the negative log-likelihood over all impressions, in nats: a scalar.

    `logits` are [rows, 1] (binary cross-entropy) or [rows, 2] (cross-entropy of "no click", "click"); `clicks` and
    `impressions` are counts [rows].
    """
    if logits.shape[1] == 1:
        losses = functional.binary_cross_entropy_with_logits(logits[:, 0], clicks / impressions, reduction="none")
        return (losses * impressions).sum()
    likelihood = functional.log_softmax(logits, dim=1)
    return -((impressions - clicks) * likelihood[:, 0] + clicks * likelihood[:, 1]).sum()


def length_batches(lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """Draw one epoch's batches of row indices: every row once, similar lengths in a batch, batches shuffled."""
    order: list[int] = torch.randperm(len(lengths), generator=generator).tolist()
    span = batch_size * BUCKET
    batches = []
    for start in range(0, len(order), span):
        bucket = sorted(order[start : start + span], key=lambda row: lengths[row])
        batches += [bucket[first : first + batch_size] for first in range(0, len(bucket), batch_size)]
    return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]


def _epochs(
    model: BertForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[ClickRow],
    max_length: int,
    settings: TrainSettings,
) -> Iterator[int]:
    """Train, pausing after each epoch with its number (from 1)."""
    pairs = tokenize_pairs(tokenizer, rows, max_length)
    lengths = [len(pair["input_ids"]) for pair in pairs]
    clicks = torch.tensor([row.clicks for row in rows])
    impressions = torch.tensor([row.impressions for row in rows])
    # A batch's loss is divided by an average row's impressions, not by its own: rows beside busy ones count in full.
    row_weight = float(impressions.mean())
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer, schedule = _optimizer(model, settings, steps=settings.epochs * -(-len(rows) // settings.batch_size))
    for epoch in range(1, settings.epochs + 1):
        model.train()
        average = None
        with tqdm(length_batches(lengths, settings.batch_size, generator), f"epoch {epoch}", unit="batch") as bar:
            for step, batch in enumerate(bar, start=1):
                logits = model(**pad(tokenizer, [pairs[index] for index in batch])).logits
                loss = click_loss(logits, clicks[batch], impressions[batch]) / (len(batch) * row_weight)
                if not torch.isfinite(loss):
                    raise TrainingError(f"epoch {epoch}, step {step}: the loss is {loss:g}; lower --learning-rate")
                torch.autograd.backward(loss)
                torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
                bar.set_postfix(loss=f"{average:.4f}", refresh=False)
        yield epoch


def _optimizer(
    model: BertForSequenceClassification, settings: TrainSettings, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Make AdamW (no decay of biases and layer norms), and a rate that rises over the warm-up, then falls to 0."""
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = defaultdict(list)
    for name, weight in model.named_parameters():
        if name == FROZEN:
            weight.requires_grad = False
            continue
        groups[name.startswith(FRESH), weight.ndim >= 2].append(weight)
    parameter_groups: list[dict[str, Any]] = [
        {
            "params": weights,
            "lr": settings.learning_rate * (HEAD_RATE if in_head else 1),
            "weight_decay": WEIGHT_DECAY if is_matrix else 0.0,
        }
        for (in_head, is_matrix), weights in groups.items()
    ]
    warm_up = max(1, round(WARM_UP * steps))

    def rate(step: int) -> float:
        return (step + 1) / warm_up if step < warm_up else (steps - step) / max(1, steps - warm_up)

    optimizer = torch.optim.AdamW(parameter_groups, fused=True)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
