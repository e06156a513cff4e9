"""The padding-free form of a Hugging Face `BertForSequenceClassification`.

The pairs of all requests of a batch lie one after another in one [tokens] vector; nothing is padding. The embeddings,
linear layers and layer norms run on the packed [tokens, hidden] matrix; attention alone gathers its queries, keys and
values into [pairs, longest, ...] and its result back. In the last layer only the [CLS] row of each pair goes on, since
the classifier reads nothing else.

A batch merges requests of strangers, so the graph also guards the borders between them: Triton tells it how many
elements each request brought (`batch_input` in config.pbtxt), and a malformed request (lengths that do not add up, an
id outside the vocabulary, ...) gets NaN logits, while its neighbours get what they would get alone.
See docs/decisions/0002-a-malformed-request-harms-only-itself.md.

What this module does not know: where the weights come from, ONNX, Triton.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import BertForSequenceClassification
from transformers.models.bert.modeling_bert import BertLayer

# Added to the attention score of a position that is not there. exp(-1e4) is 0 in float32, and it fits float16.
MASKED = -1.0e4


class UnsupportedModelError(ValueError):
    """A BERT variant whose computation the packed graph does not reproduce."""


class Layout(NamedTuple):
    """Where every pair lies in the packed vectors. All index tensors are int64."""

    input_ids: Tensor  # [tokens], inside the vocabulary even where the request's were not
    token_type_ids: Tensor  # [tokens]
    positions: Tensor  # [tokens], 0 at each [CLS]
    starts: Tensor  # [pairs], index of each pair's [CLS]
    grid: Tensor  # [pairs, longest], index into [tokens] of each padded position
    inverse: Tensor  # [tokens], index into [pairs * longest] of each token
    mask: Tensor  # [pairs, 1, 1, longest] float32, 0 or MASKED
    malformed: Tensor  # [pairs] bool, the pair belongs to a malformed request


class PackedBert(nn.Module):
    """`BertForSequenceClassification` over packed pairs: the same logits without the padding.

    Source: transformers' `modeling_bert.py`; equality with its padded forward is what `export.parity` proves.

    Raises:
        UnsupportedModelError: relative position embeddings, a decoder, cross-attention.
    """

    def __init__(self, model: BertForSequenceClassification) -> None:
        super().__init__()
        config = model.config
        if getattr(config, "position_embedding_type", "absolute") not in ("absolute", None):
            raise UnsupportedModelError(
                f"position_embedding_type is {config.position_embedding_type!r}; the packed graph knows 'absolute' only"
            )
        if config.is_decoder or config.add_cross_attention:
            raise UnsupportedModelError(
                "the checkpoint is a BERT decoder; a click model is an encoder (is_decoder: false)"
            )
        self.max_length: int = config.max_position_embeddings
        self.vocabulary: int = config.vocab_size
        self.types: int = config.type_vocab_size
        self.embeddings = model.bert.embeddings
        layers: list[Any] = list(model.bert.encoder.layer)
        self.layers = nn.ModuleList(PackedLayer(layer, last=layer is layers[-1]) for layer in layers)
        if model.bert.pooler is None:
            raise UnsupportedModelError("the checkpoint has no pooler; export a BertForSequenceClassification")
        self.pooler = model.bert.pooler
        self.classifier = model.classifier

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        lengths: Tensor,
        token_counts: Tensor,
        type_counts: Tensor,
        pair_counts: Tensor,
    ) -> Tensor:
        """Logits of every pair, in order.

        Args:
            input_ids: int32 [tokens], the pairs of all requests one after another.
            token_type_ids: int32 [tokens], 0 for the user text, 1 for the candidate.
            lengths: int32 [pairs], tokens of each pair.
            token_counts: int32 [requests], elements of `input_ids` that each request brought.
            type_counts: int32 [requests], likewise of `token_type_ids`.
            pair_counts: int32 [requests], likewise of `lengths`.

        Returns:
            float32 [pairs, labels]; NaN for the pairs of a malformed request.
        """
        layout = self.lay_out(
            *(t.long() for t in (input_ids, token_type_ids, lengths, token_counts, type_counts, pair_counts))
        )
        embeddings = self.embeddings
        hidden = embeddings.word_embeddings(layout.input_ids)
        hidden = hidden + embeddings.token_type_embeddings(layout.token_type_ids)
        hidden = hidden + embeddings.position_embeddings(layout.positions)
        hidden = embeddings.LayerNorm(hidden)
        for layer in self.layers:
            hidden = layer(hidden, layout)
        pooled = self.pooler.activation(self.pooler.dense(hidden))
        logits: Tensor = self.classifier(pooled)
        return torch.where(layout.malformed[:, None], torch.full_like(logits, float("nan")), logits)

    def lay_out(
        self,
        ids: Tensor,
        types: Tensor,
        lengths: Tensor,
        token_counts: Tensor,
        type_counts: Tensor,
        pair_counts: Tensor,
    ) -> Layout:
        """Checks each request by itself and computes where its pairs lie (arguments as in `forward`, int64)."""
        tokens, pairs, requests = ids.shape[0], lengths.shape[0], pair_counts.shape[0]
        token_ends, pair_ends = token_counts.cumsum(0), pair_counts.cumsum(0)
        token_starts = token_ends - token_counts
        token_index = torch.arange(tokens)
        # Which request a token and a pair belong to, as an index and as a one-hot row to sum over.
        request_of_token = (token_index[:, None] >= token_ends).sum(1).clamp(max=requests - 1)
        request_of_pair = (torch.arange(pairs)[:, None] >= pair_ends).sum(1).clamp(max=requests - 1)
        token_rows = request_of_token[:, None] == torch.arange(requests)
        pair_rows = request_of_pair[:, None] == torch.arange(requests)

        type_starts = type_counts.cumsum(0) - type_counts
        type_index = token_index - token_starts[request_of_token] + type_starts[request_of_token]
        types = types[type_index.clamp(0, types.shape[0] - 1)]
        wrong_token = (ids < 0) | (ids >= self.vocabulary) | (types < 0) | (types >= self.types)
        wrong_length = (lengths < 1) | (lengths > self.max_length)
        added_up = (lengths[:, None] * pair_rows).sum(0)
        malformed_request = (
            ((wrong_token[:, None] & token_rows).sum(0) > 0)
            | ((wrong_length[:, None] & pair_rows).sum(0) > 0)
            | (added_up != token_counts)
            | (type_counts != token_counts)
        )
        malformed = malformed_request[request_of_pair]

        # A pair starts where its request starts, plus the pairs before it in the same request: whatever lengths the
        # requests before it claim, they cannot move it.
        before = lengths.cumsum(0) - lengths
        before_request = (added_up.cumsum(0) - added_up)[request_of_pair]
        starts = token_starts[request_of_pair] + torch.where(malformed, 0, before - before_request)
        longest = torch.where(malformed, 1, lengths).max().item()
        torch._check(longest >= 1)  # type: ignore[no-untyped-call]
        torch._check(longest <= self.max_length)  # type: ignore[no-untyped-call]
        offsets = torch.arange(longest)
        there = offsets < torch.where(malformed, 0, lengths)[:, None]
        grid = starts[:, None] + offsets
        # The padded positions all write to one spare element behind the tokens, which is then cut off.
        target = torch.where(there, grid, tokens).flatten()
        inverse = torch.zeros(tokens + 1, dtype=torch.int64).scatter(0, target, torch.arange(target.shape[0]))[:tokens]
        return Layout(
            input_ids=torch.where(wrong_token, 0, ids),
            token_type_ids=torch.where(wrong_token, 0, types),
            positions=offsets.expand(pairs, -1).flatten()[inverse],
            starts=starts.clamp(max=tokens - 1),
            grid=grid.clamp(max=tokens - 1),
            inverse=inverse,
            mask=torch.where(there, 0.0, MASKED)[:, None, None, :],
            malformed=malformed,
        )


class PackedLayer(nn.Module):
    """One encoder layer over packed tokens; the last layer computes the [CLS] rows only."""

    def __init__(self, layer: BertLayer, *, last: bool) -> None:
        super().__init__()
        attention = layer.attention.self
        self.last = last
        self.heads: int = attention.num_attention_heads
        self.head_size: int = attention.attention_head_size
        # The scale 1/sqrt(head_size) is folded into the query's weights: one multiplication less per score.
        query = linear([attention.query], scale=self.head_size**-0.5)
        # One matrix product, and one gather, for all that is read at every token.
        self.query = query if last else None
        self.joint = (
            linear([attention.key, attention.value]) if last else linear([query, attention.key, attention.value])
        )
        self.attention_output = layer.attention.output
        self.intermediate = layer.intermediate
        self.output = layer.output

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """[tokens, hidden] -> [tokens, hidden], or -> [pairs, hidden] in the last layer."""
        pairs, longest = layout.grid.shape[0], layout.grid.shape[1]
        parts = take(self.joint(hidden), layout.grid).reshape(pairs, longest, -1, self.heads, self.head_size)
        parts = parts.permute(2, 0, 3, 1, 4)  # [2 or 3, pairs, heads, longest, head_size]
        if self.query is not None:
            hidden = take(hidden, layout.starts)
            query = self.query(hidden).reshape(pairs, self.heads, 1, self.head_size)
            key, value = parts[0], parts[1]
        else:
            query, key, value = parts[0], parts[1], parts[2]
        weights = torch.softmax(query @ key.transpose(2, 3) + layout.mask, dim=-1)
        context = (weights @ value).transpose(1, 2).reshape(-1, self.heads * self.head_size)
        if not self.last:
            context = take(context, layout.inverse)
        attended = self.attention_output.LayerNorm(self.attention_output.dense(context) + hidden)
        expanded = self.intermediate.intermediate_act_fn(self.intermediate.dense(attended))
        result: Tensor = self.output.LayerNorm(self.output.dense(expanded) + attended)
        return result


def take(rows: Tensor, index: Tensor) -> Tensor:
    """rows[index] by rows, written so that the exporter makes a Gather of it (indexing becomes a slower GatherND)."""
    return nn.functional.embedding(index, rows)


def linear(layers: list[nn.Linear], scale: float = 1.0) -> nn.Linear:
    """One linear layer that computes those of `layers` side by side, times `scale`."""
    weight = torch.cat([layer.weight for layer in layers]) * scale
    joint = nn.Linear(weight.shape[1], weight.shape[0])
    joint.weight = nn.Parameter(weight.detach(), requires_grad=False)
    joint.bias = nn.Parameter((torch.cat([layer.bias for layer in layers]) * scale).detach(), requires_grad=False)
    return joint
