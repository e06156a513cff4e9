"""What float64 says where a graph and Hugging Face differ in float32: which of the two is off, and by how much.

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

from export.graph.packing import Pair
from export.verify.comparison import FLOOR
from finetune.checkpoint.attention import attended
from finetune.evaluation.scoring import pad

MOST = 16  # pairs that are computed: the worst ones; in float64 a long one takes seconds
# A graph adds up in another order, so its largest error is not Hugging Face's, but of the same size: 1.6e-6 beside
# 1.1e-6, and 1.9e-6 beside 2.8e-6, for two MiniLMs with logits of about 1. So much more than the other is no rounding:
MARGIN = 2  # of the graph's error
FAULT = 10  # of the reference's, which is only blamed where that is beyond doubt; errors below FLOOR are any model's

ExactScores = Callable[[Sequence[int]], NDArray[np.float64]]  # places of pairs -> their logits [pairs, labels]


@dataclass(frozen=True)
class Rounding:
    """The largest error of a logit beside float64's, on the same pairs: Hugging Face's float32, and the graph's."""

    reference: float
    graph: float

    @property
    def graph_is_right(self) -> bool:
        """Whether the graph is off by no more than rounding can explain."""
        return self.graph <= max(MARGIN * self.reference, FLOOR)

    @property
    def reference_is_wrong(self) -> bool:
        """Whether Hugging Face's float32 is off by more than rounding can explain."""
        return self.reference > max(FAULT * self.graph, FLOOR)

    @property
    def explains(self) -> bool:
        """Whether rounding explains the errors of both."""
        return self.graph_is_right and not self.reference_is_wrong

    def __str__(self) -> str:
        if self.explains:
            verdict = "so this looks like rounding, to which this model's logits are sensitive"
        elif self.graph_is_right:
            verdict = "so it is PyTorch's float32 that is wrong here, not the graph: run it again"
        else:
            verdict = f"over {MARGIN} times as much: this does not look like rounding, but like another computation"
        return (
            f"beside float64, Hugging Face's own float32 is off by up to {self.reference:.2g} on such pairs, and the "
            f"graph by {self.graph:.2g}, {verdict}"
        )


def measure_rounding(
    places: Sequence[int], exact: ExactScores, reference: NDArray[np.floating[Any]], found: NDArray[np.floating[Any]]
) -> Rounding:
    """Compares both, [pairs, labels], with float64 at the first `MOST` of `places`: the worst should come first."""
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
