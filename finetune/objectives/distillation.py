"""What a student learns from its teachers: their click log-odds, by row, by pair of rows, or by list of rows.

A teacher's log-odds say how sure it is, of every row and pair, where clicks of a few impressions say little. They are
about the text alone: the student's offset of a position is not in them, and not learned from them.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from finetune.objectives.clicks import click_scores

TeacherLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Distillation:
    """Mixes the loss of the clicks with that of the teachers."""

    def __init__(self, loss: TeacherLoss, weight: float) -> None:
        """`weight`: the teachers' share, from 0 to 1; the rest is the clicks'."""
        self.loss = loss
        self.weight = weight

    def __call__(self, clicks: Tensor, logits: Tensor, teacher: Tensor, groups: Tensor) -> Tensor:
        """The clicks' loss, logits [rows, labels] without positions' offsets, log-odds and groups [rows] -> scalar."""
        return (1 - self.weight) * clicks + self.weight * self.loss(click_scores(logits), teacher, groups)


def click_distillation(scores: Tensor, teacher: Tensor, groups: Tensor) -> Tensor:
    """BCE of each row against the teacher's probability, the mean over rows: log-odds, twice, and groups [rows]."""
    return functional.binary_cross_entropy_with_logits(scores, teacher.sigmoid())


def pairwise_distillation(scores: Tensor, teacher: Tensor, groups: Tensor) -> Tensor:
    """BCE of each pair of a group against the sigmoid of the teacher's difference: the mean over pairs, or 0."""
    first, second = torch.triu_indices(len(scores), len(scores), offset=1, device=scores.device)
    together = groups[first] == groups[second]
    first, second = first[together], second[together]
    if not len(first):
        return scores.sum() * 0.0  # keeps the graph, for backward
    targets = (teacher[first] - teacher[second]).sigmoid()
    return functional.binary_cross_entropy_with_logits(scores[first] - scores[second], targets)


def listwise_distillation(scores: Tensor, teacher: Tensor, groups: Tensor) -> Tensor:
    """Cross-entropy of a group's softmax against the teacher's softmax, the mean over groups."""
    losses = []
    for group in set(groups.tolist()):
        rows = groups == group
        losses.append(-(teacher[rows].softmax(0) * functional.log_softmax(scores[rows], 0)).sum())
    return torch.stack(losses).mean()
