"""What is minimised to predict clicks: by row, by pair of rows, or by list of rows.

All three take one logit a row, and counts: a row that was shown 400 times says more than one that was shown once, and a
row with `click` is one impression. Each returns a mean, so that the learning rate does not depend on the batch's size.

    click      BCE of each impression, so a row counts as often as it was shown
    pairwise   BCE of each pair of one group; the target is the probability that the first row's rate is the higher one,
               and pairs weigh by how far that is from a toss
    listwise   cross-entropy of each click among its group's impressions, so a group counts by its clicks
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Objective = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
LEAST_VARIANCE = 1e-30  # where float32 rounds one to nothing; millions of impressions have some 1e-10


class ClickLoss:
    """BCE of every impression: the mean over rows, each weighing its impressions beside an average row of the log."""

    def __init__(self, mean_impressions: float) -> None:
        # Not the batch's own mean: a rarely shown row beside busy ones would count for less than beside others.
        self.mean_impressions = mean_impressions

    def __call__(self, logits: Tensor, clicks: Tensor, impressions: Tensor, groups: Tensor) -> Tensor:
        """Logits [rows, 1] or [rows, 2] ("no click", "click"), counts [rows] -> nats a row, a scalar."""
        if logits.shape[1] == 1:
            losses = functional.binary_cross_entropy_with_logits(logits[:, 0], clicks / impressions, reduction="none")
            total = (losses * impressions).sum()
        else:
            likelihood = functional.log_softmax(logits, dim=1)
            total = -((impressions - clicks) * likelihood[:, 0] + clicks * likelihood[:, 1]).sum()
        return total / (len(logits) * self.mean_impressions)


def pairwise_loss(logits: Tensor, clicks: Tensor, impressions: Tensor, groups: Tensor) -> Tensor:
    """BCE of every pair of rows of one group, a weighted mean over pairs: a scalar, 0 if no pair tells anything.

    The score of a pair is the difference of its logits. Its target is Phi(z), the probability that the first row's
    click rate is the higher one, where z is the statistic of the two-proportion test: near 0.5 where chance explains
    the difference, near 0 or 1 where it does not. Its weight is (2 target - 1)^2, so that pairs that tell nothing
    do not pull their scores together; a pair of equal rates has none. Two rows of one impression each have no rates to
    test: there the target is the click itself.

    Args:
        logits: [rows, labels]; the score is the only logit, or "click" minus "no click".
        clicks: counts [rows].
        impressions: counts [rows].
        groups: [rows], equal for rows that were shown together.
    """
    scores = click_scores(logits)
    first, second = torch.triu_indices(len(scores), len(scores), offset=1, device=scores.device)
    rates = clicks / impressions
    told = (groups[first] == groups[second]) & (rates[first] != rates[second])
    first, second = first[told], second[told]
    if not len(first):
        return scores.sum() * 0.0  # keeps the graph, for backward
    targets = higher_probability(clicks, impressions, first, second)
    weights = (2 * targets - 1) ** 2
    losses = functional.binary_cross_entropy_with_logits(scores[first] - scores[second], targets, reduction="none")
    return (weights * losses).sum() / weights.sum()


def higher_probability(clicks: Tensor, impressions: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The probability that `first`'s click rate is the higher one, by the two-proportion z test: [pairs].

    1 or 0 where both rows are single impressions, one of which was clicked.
    """
    rates = clicks / impressions
    pooled = (clicks[first] + clicks[second]) / (impressions[first] + impressions[second])
    variance = pooled * (1 - pooled) * (1 / impressions[first] + 1 / impressions[second])
    z = (rates[first] - rates[second]) / variance.clamp(min=LEAST_VARIANCE).sqrt()
    single = (impressions[first] <= 1) & (impressions[second] <= 1)
    return torch.where(single, (z > 0).to(z.dtype), 0.5 * (1 + torch.erf(z / math.sqrt(2))))


class ListwiseLoss:
    """Cross-entropy of every click among the impressions of its group: the mean over groups, by their clicks.

    A click falls on a row with a probability in proportion to impressions x exp(logit): a softmax of the logits plus
    the logarithm of the impressions.
    """

    def __init__(self, mean_clicks: float) -> None:
        self.mean_clicks = mean_clicks  # of a group of the log that has any

    def __call__(self, logits: Tensor, clicks: Tensor, impressions: Tensor, groups: Tensor) -> Tensor:
        """Logits [rows, labels], counts [rows], groups [rows] -> nats a group, a scalar."""
        scores = click_scores(logits) + impressions.log()
        _, group = torch.unique(groups, return_inverse=True)
        count = int(group.max()) + 1
        # The highest score of each group is taken out, so that exp never overflows.
        highest = scores.new_full((count,), -math.inf).scatter_reduce(0, group, scores.detach(), "amax")
        shares = scores.new_zeros(count).index_add(0, group, (scores - highest[group]).exp())
        likelihood = scores - highest[group] - shares.log()[group]
        return -(clicks * likelihood).sum() / (count * self.mean_clicks)


def click_scores(logits: Tensor) -> Tensor:
    """The log-odds of a click [rows], of logits [rows, 1] or [rows, 2] ("no click", "click")."""
    return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
