"""What float64 says where a graph and Hugging Face differ in float32: that both only round, or that the graph is wrong.

A model whose logits change much with little (long training, large weights) rounds by more than others do, in every
program that computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

from export.graph.packing import Logits, Pair
from finetune.checkpoint.attention import attended
from finetune.evaluation.scoring import pad

MOST = 16  # pairs that are computed: the worst ones; in float64 a long one takes seconds
# A graph adds up in another order, so it may round by more than Hugging Face on a pair, but not by much more on all.
MARGIN = 2

Exact = Callable[[Sequence[int]], NDArray[np.float64]]  # places of pairs -> their logits [pairs, labels]


@dataclass(frozen=True)
class Rounding:
    """The largest error of a logit beside float64's, on the same pairs: Hugging Face's float32, and the graph's."""

    reference: float
    graph: float

    @property
    def explains(self) -> bool:
        """Whether the graph is off by no more than what rounding can do to this model."""
        return self.graph <= MARGIN * self.reference

    def __str__(self) -> str:
        verdict = (
            "so this is rounding, to which this model's logits are sensitive"
            if self.explains
            else "which is more than rounding: the graph computes something else"
        )
        return (
            f"beside float64, Hugging Face's own float32 is off by up to {self.reference:.2g} on such pairs, and the "
            f"graph by {self.graph:.2g}, {verdict}"
        )


def measure_rounding(places: Sequence[int], exact: Exact, reference: Logits, found: Logits) -> Rounding:
    """Compares both with float64 at `places`, of which the first `MOST` are computed: the worst should come first."""
    chosen = list(dict.fromkeys(places))[:MOST]
    truth = exact(chosen)
    return Rounding(*(float(np.abs(logits[chosen] - truth).max()) for logits in (reference, found)))


def score_exactly(
    model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]
) -> NDArray[np.float64]:
    """Scores tokenized pairs by Hugging Face's forward pass in float64, one by one: [pairs, labels]."""
    double: Any = deepcopy(model).double()  # has no types
    double.train(mode=False)
    logits = []
    with torch.inference_mode():
        for pair in pairs:
            batch = attended(double.config, pad(tokenizer, [pair]))
            mask = batch["attention_mask"]
            if mask.is_floating_point():  # one that is added to the scores has their type
                batch = {**batch, "attention_mask": mask.double()}
            logits.append(double(**batch).logits[0].numpy())
    return np.array(logits, dtype=np.float64)
