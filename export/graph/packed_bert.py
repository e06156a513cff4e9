"""The padding-free form of a Hugging Face `BertForSequenceClassification`.

The pairs of all requests of a batch lie one after another in one [tokens] vector; nothing is padding. The embeddings,
linear layers and layer norms run on the packed [tokens, hidden] matrix; attention alone gathers its queries, keys and
values into [pairs, longest, ...] and its result back. In the last layer only the [CLS] row of each pair goes on, since
the classifier and a jointly trained checkpoint's further heads read nothing else.

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
from transformers.activations import GELUActivation
from transformers.models.bert.modeling_bert import BertLayer

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
        self.layers = nn.ModuleList(PackedLayer(layer, last=layer is layers[-1]) for layer in layers)
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
        request_of_token = between(count(token_index[:, None] >= token_ends, 1), requests)
        request_of_pair = between(count(torch.arange(pairs)[:, None] >= pair_ends, 1), requests)
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


def count(values: Tensor, dim: int) -> Tensor:
    """The sum over a dimension, int64. It sums in float32, exact up to 2^24: TensorRT cannot sum integers."""
    return values.float().sum(dim).long()


def bounds(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Where each request's elements start and end, by how many each has: int64 [requests] both."""
    # Not cumsum: TensorRT cannot accumulate integers either, and requests are few.
    index = torch.arange(counts.shape[0])
    ends = count(torch.where(index[:, None] >= index, counts, 0), 1)
    return ends - counts, ends


def between(index: Tensor, size: int) -> Tensor:
    """`index`, limited to 0..size-1."""
    return torch.where(index < 0, 0, torch.where(index < size, index, size - 1))


class PackedLayer(nn.Module):
    """One encoder layer over packed tokens; the last layer computes the [CLS] rows only."""

    def __init__(self, layer: BertLayer, *, last: bool) -> None:
        super().__init__()
        attention = layer.attention.self
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

    def forward(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """[tokens, hidden] -> [tokens, hidden], or -> [pairs, hidden] in the last layer."""
        pairs, longest = layout.grid.shape[0], layout.grid.shape[1]
        heads = torch.arange(self.heads)
        fused = (self.fused_kv if self.last else self.fused_qkv)(hidden)
        fused = fused.reshape(-1, self.head_size)  # [tokens * parts * heads, head_size]
        width = self.heads * (2 if self.last else 3)
        # One Gather lays the heads side by side, [pairs, heads, longest, head_size], without a transposition.
        place = layout.grid[:, None, :] * width + heads[:, None]
        if self.last:
            hidden = take(hidden, layout.starts)
            query = self.query(hidden).reshape(pairs, self.heads, 1, self.head_size)
            key, value = take(fused, place), take(fused, place + self.heads)
        else:
            query, key = take(fused, place), take(fused, place + self.heads)
            value = take(fused, place + 2 * self.heads)
        weights = torch.softmax(
            query @ key.transpose(2, 3) + (layout.mask[:, :, :1] if self.last else layout.mask), dim=-1
        )
        context = (weights @ value).reshape(-1, self.head_size)
        if not self.last:
            back = (layout.pairs[:, None] * self.heads + heads) * longest + layout.positions[:, None]
            context = take(context, back)
        context = context.reshape(-1, self.heads * self.head_size)
        attended = self.attention_output.LayerNorm(self.attention_output.dense(context) + hidden)
        expanded = self.activation(self.intermediate.dense(attended))
        result: Tensor = self.output.LayerNorm(self.output.dense(expanded) + attended)
        return result


def gelu(values: Tensor) -> Tensor:
    """torch's exact GELU, in the order of operations that ONNX Runtime fuses (torch's own becomes five operators)."""
    return (values * 0.5) * (torch.erf(values / 2**0.5) + 1.0)


def pick(values: Tensor, index: Tensor) -> Tensor:
    """values[index] of vectors, as a Gather (indexing becomes a GatherND)."""
    return values.index_select(0, index)


def take(rows: Tensor, index: Tensor) -> Tensor:
    """rows[index] by rows, written so that the exporter makes a Gather of it (indexing becomes a slower GatherND)."""
    return nn.functional.embedding(index, rows)


def fuse(layers: list[nn.Linear], scale: float = 1.0) -> nn.Linear:
    """One linear layer with the outputs of all `layers` side by side, times `scale`."""
    weight = torch.cat([layer.weight for layer in layers]) * scale
    fused = nn.Linear(weight.shape[1], weight.shape[0])
    fused.weight = nn.Parameter(weight.detach(), requires_grad=False)
    fused.bias = nn.Parameter((torch.cat([layer.bias for layer in layers]) * scale).detach(), requires_grad=False)
    return fused
