"""FGM, adversarial training on word embeddings (Miyato, Dai and Goodfellow, ICLR 2017).

Each batch is learned twice: as it is, and with each text's word vectors moved by `size` in the direction in which the
loss rises fastest. The vectors are moved as they leave the embedding table, so it works whether the table is frozen.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Adversary:
    """Moves what a table of word embeddings gives out."""

    def __init__(self, table: nn.Module, size: float) -> None:
        self.size = size
        self.seen: list[Tensor] = []  # what the table gave out, in the order of its calls
        self.moves: list[Tensor] = []
        table.register_forward_hook(self._hook)

    def step(self, learn: Callable[[], Tensor]) -> Tensor:
        """Run `learn`, which computes a loss and its gradients, on the batch and on the moved batch.

        Returns the loss of the batch as it is; the gradients of both are added up.
        """
        self.seen = []
        loss = learn()
        self.moves = [self._move(vectors) for vectors in self.seen]
        self.seen = []
        try:
            learn()
        finally:
            self.moves = []
            self.seen = []
        return loss

    def _move(self, vectors: Tensor) -> Tensor:
        gradient = vectors.grad
        if gradient is None:
            return torch.zeros_like(vectors)
        norm = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)
        moved: Tensor = self.size * gradient / norm[:, None, None]
        return moved.detach()

    def _hook(self, table: nn.Module, inputs: Any, vectors: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None  # an evaluation
        if self.moves:
            return vectors + self.moves.pop(0)
        if not vectors.requires_grad:  # the table is frozen
            vectors = vectors.detach().requires_grad_()
        vectors.retain_grad()
        self.seen.append(vectors)
        return vectors
