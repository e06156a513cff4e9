"""One encoder layer over packed tokens: all of it that does not depend on which tokens see which."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation
from transformers.models.bert.modeling_bert import BertLayer

from export.graph.packed.indexing import take


class Layout(Protocol):
    """Where the texts lie in the packed vectors, and how their tokens see each other."""

    @property
    def input_ids(self) -> Tensor:
        """int64 [tokens], all inside the vocabulary."""

    @property
    def token_type_ids(self) -> Tensor:
        """int64 [tokens]."""

    @property
    def positions(self) -> Tensor:
        """int64 [tokens], each token's position embedding."""

    @property
    def starts(self) -> Tensor:
        """Index of each pair's [CLS]: int64 [pairs]."""

    @property
    def malformed(self) -> Tensor:
        """Whether a pair is answered with NaN: bool [pairs]."""

    def attend(self, layer: PackedLayer, fused: Tensor) -> Tensor:
        """Attention at every token.

        Args:
            layer: for its sizes.
            fused: [tokens * 3 * heads, head_size], of each token its queries, its keys and its values.

        Returns:
            [tokens * heads, head_size].
        """

    def attend_first(self, layer: PackedLayer, query: Tensor, fused: Tensor) -> Tensor:
        """Attention at each pair's [CLS], for the last layer.

        Args:
            layer: for its sizes.
            query: [pairs * heads, head_size].
            fused: [tokens * 2 * heads, head_size], of each token its keys and its values.

        Returns:
            [pairs * heads, head_size].
        """


class PackedLayer(nn.Module):
    """One encoder layer over packed tokens; the last layer computes the [CLS] rows only."""

    def __init__(self, layer: BertLayer, number: int, *, last: bool) -> None:
        super().__init__()
        attention = layer.attention.self
        self.number = number
        self.last = last
        self.heads: int = attention.num_attention_heads
        self.head_size: int = attention.attention_head_size
        # The scale 1/sqrt(head_size) is folded into the query's weights: one multiplication less per score.
        query = fuse([attention.query], scale=self.head_size**-0.5)
        # One matrix product for all that is read at every token.
        if last:
            self.query = query
            self.fused_kv = fuse([attention.key, attention.value])
        else:
            self.fused_qkv = fuse([query, attention.key, attention.value])
        self.attention_output = layer.attention.output
        self.intermediate = layer.intermediate
        exact = isinstance(layer.intermediate.intermediate_act_fn, GELUActivation)
        self.activation = gelu if exact else layer.intermediate.intermediate_act_fn
        self.output = layer.output

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """[tokens, hidden] -> [tokens, hidden], or -> [pairs, hidden] in the last layer."""
        fused = (self.fused_kv if self.last else self.fused_qkv)(hidden).reshape(-1, self.head_size)
        if self.last:
            hidden = take(hidden, layout.starts)
            context = layout.attend_first(self, self.query(hidden).reshape(-1, self.head_size), fused)
        else:
            context = layout.attend(self, fused)
        context = context.reshape(-1, self.heads * self.head_size)
        attended = self.attention_output.LayerNorm(self.attention_output.dense(context) + hidden)
        expanded = self.activation(self.intermediate.dense(attended))
        result: Tensor = self.output.LayerNorm(self.output.dense(expanded) + attended)
        return result


def lay_side_by_side(grid: Tensor, heads: int, parts: int) -> list[Tensor]:
    """Where the rows of each part lie in `fused`, heads before positions, by the tokens of a grid.

    One Gather by it lays the heads side by side without a transposition.

    Args:
        grid: index into [tokens] of each position: int64 [first, ...].
        heads: of the layer.
        parts: 3 of queries, keys and values; 2 of keys and values.

    Returns:
        For each part int64 [first, heads, ...].
    """
    ones = (1,) * (grid.dim() - 1)
    place = grid[:, None] * (heads * parts) + torch.arange(heads).reshape(heads, *ones)
    return [place + part * heads if part else place for part in range(parts)]


def gelu(values: Tensor) -> Tensor:
    """torch's exact GELU, in the order of operations that ONNX Runtime fuses (torch's own becomes five operators)."""
    return (values * 0.5) * (torch.erf(values / 2**0.5) + 1.0)


def fuse(layers: list[nn.Linear], scale: float = 1.0) -> nn.Linear:
    """One linear layer with the outputs of all `layers` side by side, times `scale`."""
    weight = torch.cat([layer.weight for layer in layers]) * scale
    fused = nn.Linear(weight.shape[1], weight.shape[0])
    fused.weight = nn.Parameter(weight.detach(), requires_grad=False)
    fused.bias = nn.Parameter((torch.cat([layer.bias for layer in layers]) * scale).detach(), requires_grad=False)
    return fused
