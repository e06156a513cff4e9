"""What the encoder learns beside the click: which topic a text has, and which texts belong together."""

import torch
from torch import Tensor, nn
from torch.nn import functional

NO_TOPIC = -100  # cross_entropy leaves it out
TEMPERATURE = 0.05  # as in SimCSE (Gao et al., 2021) and in the base model's own training


def topic_loss(logits: Tensor, topics: Tensor) -> Tensor:
    """Cross-entropy of texts' topics, the mean over the texts that have any: a scalar, 0 if none has.

    `logits` are [texts, topics]. `topics` are either one index a text [texts], NO_TOPIC for none; or, where texts have
    several, 0 and 1 for each topic [texts, topics], NaN for none.
    """
    if topics.ndim == 1:
        if not bool((topics != NO_TOPIC).any()):
            return logits.sum() * 0.0
        return functional.cross_entropy(logits, topics, ignore_index=NO_TOPIC)
    known = ~topics.isnan().any(dim=1)
    if not bool(known.any()):
        return logits.sum() * 0.0
    return functional.binary_cross_entropy_with_logits(logits[known], topics[known])


def similarity_loss(embeddings: Tensor, queries: Tensor, documents: Tensor, clicks: Tensor) -> Tensor:
    """In-batch contrastive loss: a user text is closer to the documents that were clicked for it than to any other.

    The mean, over rows with a click, of the cross-entropy of the row's document among all documents of the batch.
    Other documents that were clicked for the same user text are left out of its rivals. A scalar, 0 without clicks.

    Args:
        embeddings: [texts, size], of length 1.
        queries: [rows], the place of each row's user text among the texts; -1 for an empty one, which has no meaning.
        documents: [rows], the same for its document.
        clicks: [rows].
    """
    chosen = ((clicks > 0) & (queries >= 0)).nonzero()[:, 0]
    if not len(chosen):
        return embeddings.sum() * 0.0
    candidates, place = torch.unique(documents, return_inverse=True)
    similarity = embeddings[queries[chosen]] @ embeddings[candidates].T / TEMPERATURE
    liked = torch.zeros(len(embeddings), len(candidates), dtype=torch.bool, device=embeddings.device)
    liked[queries[chosen], place[chosen]] = True
    own = functional.one_hot(place[chosen], len(candidates)).bool()
    similarity = similarity.masked_fill(liked[queries[chosen]] & ~own, -torch.inf)
    return functional.cross_entropy(similarity, place[chosen])


class TaskWeights(nn.Module):
    """Weighs several losses: by given weights, or by learned uncertainty.

    Learned: sum of exp(-s) x loss + s with one s a task, after Kendall, Gal and Cipolla (CVPR 2018). A task whose loss
    stays high gets less weight.
    """

    def __init__(self, tasks: tuple[str, ...], given: dict[str, float] | None) -> None:
        super().__init__()
        self.tasks = tasks
        self.given = given
        self.uncertainty = nn.Parameter(torch.zeros(len(tasks))) if given is None else None

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum of one scalar for each task."""
        if self.uncertainty is None:
            assert self.given is not None
            return sum((self.given[task] * losses[task] for task in self.tasks), torch.zeros(()).to(losses["click"]))
        stacked = torch.stack([losses[task] for task in self.tasks])
        return ((-self.uncertainty).exp() * stacked + self.uncertainty).sum()

    def weights(self) -> dict[str, float]:
        """The weight of each task now."""
        if self.uncertainty is None:
            return dict(self.given or {})
        return dict(zip(self.tasks, (-self.uncertainty.detach()).exp().tolist(), strict=True))
