"""The model in training: a click model with further heads, each reading the hidden state of [CLS]."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertForSequenceClassification

from finetune.checkpoint.attention import attended
from finetune.checkpoint.heads import Heads, Passages
from finetune.names import ATTENTION, MAX, MEAN
from finetune.objectives.position_bias import PositionBias
from finetune.objectives.understanding import TaskWeights
from finetune.training.first_token import first_states
from finetune.training.methods.few_weights import Method

Batch = dict[str, Any]
UNBIASED = "unbiased_logits"


class JointModel(nn.Module):
    """A `BertForSequenceClassification` with its further heads, and what is only there in training."""

    accepts_loss_kwargs = False  # the Trainer divides by the number of accumulated batches

    def __init__(
        self,
        click: BertForSequenceClassification,
        heads: Heads,
        bias: PositionBias | None,
        weights: TaskWeights,
        method: Method | None = None,
    ) -> None:
        super().__init__()
        self.click = click
        self.heads = heads
        self.bias = bias
        self.weights = weights
        self.method = method  # its weights are in `click` and `prefix`
        self.prefix = method.prefix if method else None
        # A training for `user_once` may begin with full attention (`finetune.training.loop.callbacks.SwitchAttention`):
        self.full_first = 0.0  # for that share of its steps,
        self.attends_fully = False  # and now

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """Computes a batch (see `finetune.training.batches.Collator`).

        Returns:
            `logits` [rows, labels] with the position's offset added, `unbiased_logits` without it, and the heads'
            outputs for `texts`.
        """
        pairs = batch["pairs"] if self.attends_fully else attended(self.click.config, batch["pairs"])
        first = self._first_states(pairs)
        pooler: Any = self.click.bert.pooler  # may be None in other models' types
        logits = self.click.classifier(self.click.dropout(pooler(first))).float()
        passages = self.heads.settings.passages
        if passages is not None:
            weights = None if self.heads.passage is None else self.heads.passage(first[:, 0])
            logits = aggregate(logits, weights, batch["row_of_pair"], batch["place_of_pair"], passages)
        unbiased = logits
        if self.bias is not None:
            # The last label is "click".
            logits = torch.cat([logits[:, :-1], logits[:, -1:] + self.bias(batch["positions"])[:, None]], dim=1)
        if "texts" not in batch:
            return {"logits": logits, UNBIASED: unbiased}
        texts = self._first_states(batch["texts"])[:, 0]
        others = {name: output.float() for name, output in self.heads(texts).items()}
        return {"logits": logits, UNBIASED: unbiased, **others}

    def _first_states(self, batch: Batch) -> Tensor:
        """[CLS]'s last state: [texts, 1, hidden]. A prefix comes in by the encoder's own pass (`few_weights`)."""
        if self.prefix is not None:
            states: Tensor = self.click.bert(**batch).last_hidden_state
            return states[:, :1]
        return first_states(self.click.bert, **batch)

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """What the Trainer calls for `activation_checkpointing`."""
        click: Any = self.click  # typed in part only
        click.activation_checkpointing_enable(**options)


def aggregate(logits: Tensor, weights: Tensor | None, rows: Tensor, places: Tensor, passages: Passages) -> Tensor:
    """One logit a row, of its passages' logits: `finetune.evaluation.scoring.aggregate`, differentiable.

    Args:
        logits: [passages, 1].
        weights: [passages, 1], passage_logits; None but for attention.
        rows: [passages], the row of each passage, from 0 without a gap.
        places: [passages], its place in its row.
        passages: how to aggregate.

    Returns:
        [rows, 1]
    """
    shape = (int(rows.max()) + 1, int(places.max()) + 1)
    table = logits.new_full(shape, -torch.inf).index_put((rows, places), logits[:, 0])
    if passages.aggregate == MAX:
        return table.amax(dim=1, keepdim=True)
    there = table > -torch.inf
    if passages.aggregate == MEAN:
        best = table.topk(min(passages.best, shape[1]), dim=1).values
        counted = best > -torch.inf
        return torch.where(counted, best, 0.0).sum(1, keepdim=True) / counted.sum(1, keepdim=True)
    if passages.aggregate != ATTENTION or weights is None:
        raise ValueError(f"{passages.aggregate} over passages needs their passage_logits")
    shares = logits.new_full(shape, -torch.inf).index_put((rows, places), weights[:, 0].float()).softmax(dim=1)
    return (shares * torch.where(there, table, 0.0)).sum(1, keepdim=True)
