"""The padding-free form of a Hugging Face `BertForSequenceClassification`.

The pairs of all requests of a batch lie one after another in one [tokens] vector; nothing is padding. The embeddings,
linear layers and layer norms run on the packed [tokens, hidden] matrix; attention alone gathers its queries, keys and
values into [pairs, longest, ...] and its result back. In the last layer only the [CLS] row of each pair goes on, since
the classifier and a jointly trained checkpoint's further heads read nothing else.

Here attention is full, as in any BERT. `user_once` has the graph of checkpoints whose user text is computed once.

A batch merges requests of strangers, so the graph also guards the borders between them: Triton tells it how many
elements each request brought (`batch_input` in config.pbtxt), and a malformed request (lengths that do not add up, an
id outside the vocabulary, ...) gets NaN outputs, while its neighbours get what they would get alone. Only the
requests behind an empty one get NaN, too: Triton's C++ backends do not copy their tensors.
See docs/decisions/0002-a-malformed-request-harms-only-itself.md.

What this module does not know: where the weights come from, ONNX, Triton.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import BertForSequenceClassification

from export.graph.packed.indexing import between, bounds, count, owners, pick, take
from export.graph.packed.layers import Layout, PackedLayer, lay_side_by_side
from finetune.checkpoint.heads import Heads, HeadSettings
from release.names import EMBEDDING, LOGITS, PASSAGE_LOGITS, TOPIC_LOGITS

# Added to the attention score of a position that is not there. exp(-1e4) is 0 in float32, and it fits float16.
MASKED = -1.0e4


class UnsupportedModelError(ValueError):
    """A BERT variant whose computation the packed graph does not reproduce."""


class PackedLayout(NamedTuple):
    """Where every pair lies in the packed vectors. All index tensors are int64."""

    input_ids: Tensor  # [tokens], all inside the vocabulary: wrong ones are replaced by 0
    token_type_ids: Tensor  # [tokens]
    positions: Tensor  # [tokens], 0 at each [CLS]
    starts: Tensor  # [pairs], index of each pair's [CLS]
    grid: Tensor  # [pairs, longest], index into [tokens] of each padded position
    pairs: Tensor  # [tokens], which pair a token belongs to
    mask: Tensor  # [pairs, 1, longest, longest] float32, 0 or MASKED
    malformed: Tensor  # [pairs] bool, the pair belongs to a malformed request, or to one behind an empty request

    def attend(self, layer: PackedLayer, fused: Tensor) -> Tensor:
        """Attention at every token; see `Layout.attend`."""
        heads, longest = layer.heads, self.grid.shape[1]
        query, key, value = (take(fused, place) for place in lay_side_by_side(self.grid, heads, 3))
        weights = torch.softmax(query @ key.transpose(2, 3) + self.mask, dim=-1)
        context = (weights @ value).reshape(-1, layer.head_size)
        return take(context, (self.pairs[:, None] * heads + torch.arange(heads)) * longest + self.positions[:, None])

    def attend_first(self, layer: PackedLayer, query: Tensor, fused: Tensor) -> Tensor:
        """Attention at each pair's [CLS]; see `Layout.attend_first`."""
        query = query.reshape(self.grid.shape[0], layer.heads, 1, layer.head_size)
        key, value = (take(fused, place) for place in lay_side_by_side(self.grid, layer.heads, 2))
        return torch.softmax(query @ key.transpose(2, 3) + self.mask[:, :, :1], dim=-1) @ value


class PackedBert(nn.Module):
    """`BertForSequenceClassification` over packed pairs: the same logits without the padding, and its further heads.

    Source: transformers' `modeling_bert.py`; equality with its padded forward is what `export.verify.parity` proves.

    Args:
        model: the click model.
        heads: what else the checkpoint has; None: nothing.

    Raises:
        UnsupportedModelError: relative position embeddings, a decoder, cross-attention.
    """

    def __init__(self, model: BertForSequenceClassification, heads: Heads | None = None) -> None:
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
        self.layers = nn.ModuleList(
            PackedLayer(layer, place, last=layer is layers[-1]) for place, layer in enumerate(layers)
        )
        if model.bert.pooler is None:
            raise UnsupportedModelError("the checkpoint has no pooler; export a BertForSequenceClassification")
        self.pooler = model.bert.pooler
        self.classifier = model.classifier
        self.heads = heads or Heads(HeadSettings(), config.hidden_size)  # `HEADS` in layer_names.py names this

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        lengths: Tensor,
        token_counts: Tensor,
        type_counts: Tensor,
        pair_counts: Tensor,
    ) -> tuple[Tensor, ...]:
        """Logits of every pair, in order, and its further heads' outputs, in the order of `output_widths`.

        Args:
            input_ids: int32 [tokens], the pairs of all requests one after another.
            token_type_ids: int32 [tokens], 0 for the user text, 1 for the candidate.
            lengths: int32 [pairs], tokens of each pair.
            token_counts: int32 [requests], elements of `input_ids` that each request brought.
            type_counts: int32 [requests], the same for `token_type_ids`.
            pair_counts: int32 [requests], the same for `lengths`.

        Returns:
            Each float32 [pairs, width]; NaN for the pairs of a malformed request, and for all pairs behind an empty
            one.
        """
        inputs = (input_ids, token_type_ids, lengths, token_counts, type_counts, pair_counts)
        return self.compute(self.lay_out(*(t.long() for t in inputs)))

    def compute(self, layout: Layout) -> tuple[Tensor, ...]:
        """The outputs of texts that are laid out."""
        embeddings = self.embeddings
        hidden = embeddings.word_embeddings(layout.input_ids)
        hidden = hidden + embeddings.token_type_embeddings(layout.token_type_ids)
        hidden = hidden + embeddings.position_embeddings(layout.positions)
        hidden = embeddings.LayerNorm(hidden)
        for layer in self.layers:
            hidden = layer(hidden, layout)
        pooled = self.pooler.activation(self.pooler.dense(hidden))
        outputs = (self.classifier(pooled), *self.heads(hidden).values())
        wrong = layout.malformed[:, None]
        return tuple(torch.where(wrong, torch.full_like(output, float("nan")), output) for output in outputs)

    def lay_out(
        self,
        ids: Tensor,
        types: Tensor,
        lengths: Tensor,
        token_counts: Tensor,
        type_counts: Tensor,
        pair_counts: Tensor,
    ) -> PackedLayout:
        """Checks each request by itself and computes where its pairs lie (arguments as in `forward`, int64)."""
        tokens, pairs, requests = ids.shape[0], lengths.shape[0], pair_counts.shape[0]
        token_starts, token_ends = bounds(token_counts)
        type_starts, _ = bounds(type_counts)
        _, pair_ends = bounds(pair_counts)
        token_index = torch.arange(tokens)
        # Which request a token and a pair belong to, as an index and as a one-hot row to sum over.
        request_of_token, request_of_pair = owners(tokens, token_ends), owners(pairs, pair_ends)
        token_rows = request_of_token[:, None] == torch.arange(requests)
        pair_rows = request_of_pair[:, None] == torch.arange(requests)

        type_index = token_index - pick(token_starts, request_of_token) + pick(type_starts, request_of_token)
        types = pick(types, between(type_index, types.shape[0]))
        wrong_token = (ids < 0) | (ids >= self.vocabulary) | (types < 0) | (types >= self.types)
        wrong_length = (lengths < 1) | (lengths > self.max_length)
        added_up = count(torch.where(pair_rows, lengths[:, None], 0), 0)
        # Triton's C++ backends stop copying an input at the first request that has no element of it; behind that, the
        # merged tensor is uninitialised memory, which may look like anything.
        empty = (token_counts < 1) | (type_counts < 1) | (pair_counts < 1)
        _, empty_so_far = bounds(empty.long())
        malformed_request = (
            (count(wrong_token[:, None] & token_rows, 0) > 0)
            | (count(wrong_length[:, None] & pair_rows, 0) > 0)
            | (added_up != token_counts)
            | (type_counts != token_counts)
            | (empty_so_far > 0)
        )
        malformed = pick(malformed_request.long(), request_of_pair) > 0
        # Time and memory grow with the longest pair, so a malformed request is ignored.
        longest: int = torch.where(malformed, 1, lengths).max().item()  # type: ignore[assignment]
        torch._check(longest >= 1)  # type: ignore[no-untyped-call]
        torch._check(longest <= self.max_length)  # type: ignore[no-untyped-call]
        # No length exceeds the longest here, but some may in a TensorRT graph, where the requests claim the longest
        # themselves (`export.tensorrt.typed_graph`).
        malformed_request = malformed_request | (count((lengths > longest)[:, None] & pair_rows, 0) > 0)
        malformed = pick(malformed_request.long(), request_of_pair) > 0

        # A pair starts where its request starts, plus the pairs before it in the same request: no length that another
        # request claims can move it.
        same_request = request_of_pair[:, None] == request_of_pair
        earlier = torch.arange(pairs)[:, None] > torch.arange(pairs)
        before = count(torch.where(same_request & earlier, lengths, 0), 1)
        starts = pick(token_starts, request_of_pair) + torch.where(malformed, 0, before)
        offsets = torch.arange(longest)
        there = offsets < torch.where(malformed, 0, lengths)[:, None]
        # A pair of a malformed request has no tokens of its own. It may start where the next one does, but never later.
        pair_of_token = between(count(token_index[:, None] >= starts, 1) - 1, pairs)
        positions = between(token_index - pick(starts, pair_of_token), longest)
        return PackedLayout(
            input_ids=torch.where(wrong_token, 0, ids),
            token_type_ids=torch.where(wrong_token, 0, types),
            positions=positions,
            starts=between(starts, tokens),
            grid=between(starts[:, None] + offsets, tokens),
            pairs=pair_of_token,
            # As wide as the scores of one head: adding it row by row took ONNX Runtime as long as the products did.
            mask=torch.where(there, 0.0, MASKED)[:, None, None, :].expand(-1, -1, longest, -1),
            malformed=malformed,
        )


def output_widths(model: BertForSequenceClassification, heads: Heads) -> dict[str, int]:
    """The packed graph's outputs in order, each with how many numbers a pair has."""
    settings = heads.settings
    sizes = {TOPIC_LOGITS: len(settings.topics), EMBEDDING: settings.embedding_size, PASSAGE_LOGITS: 1}
    return {LOGITS: model.classifier.out_features} | {name: sizes[name] for name in heads.outputs}
