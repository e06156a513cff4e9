"""The packed graph of a checkpoint whose user text is computed once for all its candidates.

Its rule (`finetune.checkpoint.attention`): the user text's tokens and their [SEP] see each other only; [CLS], the
candidate's tokens and the last [SEP] see everything. So a user text has the same hidden states beside every candidate,
and a request brings it once: its segment `user [SEP]` and, behind it, the segment `[CLS] candidate [SEP]` of each of
its pairs. A single text is a pair without a user text.

Linear layers run on the tokens of all segments at once. For attention the candidates of a user lie in blocks of the
mean number of pairs a user has, so that a user with many candidates among users with few pads little: one user's
candidates are one block. Their scores against the user's keys are one dense product for a block, and their scores
among themselves a small one for each pair, both under one softmax.

A user text's keys and values in each layer are an output, too, and can be given instead of the text's tokens: so a
request that is cut into chunks computes it once (`serving/backends/packed_cpu`).

Requests are guarded from each other as in `packed_bert` (`segments`). `once_by_shapes` has the same for TensorRT.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from export.graph.packed.indexing import between, bounds, count, pick, take
from export.graph.packed.layers import PackedLayer, lay_side_by_side
from export.graph.packed.packed_bert import MASKED, PackedBert
from export.graph.packed.segments import Brought, find_segments, find_tokens


class OnceLayout(NamedTuple):
    """Where users' and candidates' segments lie in the packed vectors. All index tensors are int64.

    `block` is how many pairs a block has room for, `long` the tokens of the longest candidate's segment, `user` those
    of the longest user's, `own` those of the longest user's whose tokens are in the batch.
    """

    input_ids: Tensor  # [tokens], all inside the vocabulary: wrong ones are replaced by 0
    token_type_ids: Tensor  # [tokens]
    positions: Tensor  # [tokens]
    starts: Tensor  # [pairs], index of each pair's [CLS]
    own_grid: Tensor  # [users, own], index into [tokens] of each position of a user's segment
    own_mask: Tensor  # [users, 1, own, own] float32, 0 or MASKED
    grid: Tensor  # [blocks, block, long], index into [tokens] of each position of the candidates' segments
    user_of_block: Tensor  # [blocks], whose pairs a block has
    known_of_block: Tensor  # [blocks], which entry of `kept` is that user's, from 1; 0: its segment is in the batch
    user_offsets: Tensor  # [blocks, user], positions of the block's user segment, limited to those that there are
    mask: Tensor  # [blocks, 1, block, long, long + user] float32, 0 or MASKED
    pair_grid: Tensor  # [blocks, block], which pair lies where
    slots: Tensor  # [pairs], where each pair lies in `pair_grid`
    is_user: Tensor  # [tokens] bool, the token belongs to a user text
    places: Tensor  # [tokens], where a token lies in `own_grid` or in `grid`
    kept: Tensor  # `kept_earlier` of `OnceBert.forward`
    found: list[Tensor]  # keys and values of each layer, [users, heads, own, head_size], as they are computed
    malformed: Tensor  # [pairs] bool, the pair belongs to a malformed request, or to one behind an empty request

    def attend(self, layer: PackedLayer, fused: Tensor) -> Tensor:
        """Attention at every token; see `Layout.attend`."""
        own_query, own_key, own_value = self.read(self.own_grid, layer, fused, 3)
        fresh = [own_key, own_value]
        self.found.extend(fresh)
        users = torch.softmax(own_query @ own_key.transpose(2, 3) + self.own_mask, dim=-1) @ own_value
        query, key, value = self.read(self.grid, layer, fused, 3)
        candidates = self.see_both(query, key, value, *self.read_users(layer, fresh))
        rows = torch.cat([users.reshape(-1, layer.head_size), candidates.reshape(-1, layer.head_size)])
        return take(rows, self.back(layer.heads))

    def attend_first(self, layer: PackedLayer, query: Tensor, fused: Tensor) -> Tensor:
        """Attention at each pair's [CLS]; see `Layout.attend_first`."""
        heads, block = layer.heads, self.pair_grid.shape[1]
        fresh = self.read(self.own_grid, layer, fused, 2)
        self.found.extend(fresh)
        (query,) = self.read(self.pair_grid[:, :, None], layer, query, 1)
        key, value = self.read(self.grid, layer, fused, 2)
        candidates = self.see_both(query, key, value, *self.read_users(layer, fresh))
        first = self.slots + divide(self.slots, block) * (heads - 1) * block
        return take(candidates.reshape(-1, layer.head_size), first[:, None] + block * torch.arange(heads))

    def read(self, grid: Tensor, layer: PackedLayer, fused: Tensor, parts: int) -> list[Tensor]:
        """Each part at the positions of a grid [first, ...]: [first, heads, ..., head_size]."""
        return [take(fused, place) for place in lay_side_by_side(grid, layer.heads, parts)]

    def read_users(self, layer: PackedLayer, fresh: list[Tensor]) -> list[Tensor]:
        """Keys and values of each block's user, `fresh` or kept earlier: [blocks, heads, user, head_size]."""
        heads = layer.heads
        users, _, own, size = fresh[0].shape
        longest = self.kept.shape[3]
        user, known = self.user_of_block, self.known_of_block
        first = torch.where(known > 0, users * heads * own + (known - 1) * heads * longest, user * heads * own)
        stride = torch.where(known > 0, longest, own)
        place = first[:, None, None] + stride[:, None, None] * torch.arange(heads)[:, None]
        place = place + self.user_offsets[:, None]
        found = []
        for part, computed in enumerate(fresh):
            begin = (2 * layer.number + part) * heads
            kept = self.kept[0, :, begin : begin + heads]
            found.append(take(torch.cat([computed.reshape(-1, size), kept.reshape(-1, size)]), place))
        return found

    def back(self, heads: int) -> Tensor:
        """Where the rows of each token lie in what `attend` computes, first the users': int64 [tokens, heads]."""
        users, own = self.own_grid.shape
        room = self.grid.shape[1] * self.grid.shape[2]
        size = torch.where(self.is_user, own, room)  # of a user or a block, for one head
        first = torch.where(self.is_user, 0, users * heads * own) + self.places
        first = first + divide(self.places, size) * (heads - 1) * size
        return first[:, None] + size[:, None] * torch.arange(heads)

    def see_both(self, query: Tensor, key: Tensor, value: Tensor, user_key: Tensor, user_value: Tensor) -> Tensor:
        """Attention of candidates' tokens to their own segment and to their user's.

        Args:
            query: [blocks, heads, block, rows, head_size].
            key: [blocks, heads, block, long, head_size].
            value: as `key`.
            user_key: [blocks, heads, user, head_size].
            user_value: as `user_key`.

        Returns:
            As `query`.
        """
        blocks, heads, block, rows, size = query.shape
        long, user = key.shape[3], user_key.shape[2]
        to_user = query.reshape(blocks, heads, block * rows, size) @ user_key.transpose(2, 3)
        to_own = query @ key.transpose(3, 4)
        scores = torch.cat([to_own, to_user.reshape(blocks, heads, block, rows, user)], dim=-1)
        weights = torch.softmax(scores + self.mask[:, :, :, :rows], dim=-1)
        from_user = weights[..., long:].reshape(blocks, heads, block * rows, user) @ user_value
        return weights[..., :long] @ value + from_user.reshape(blocks, heads, block, rows, size)


class OnceBert(PackedBert):
    """`BertForSequenceClassification` with the mask of `finetune.checkpoint.attention`, over packed segments."""

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        user_lengths: Tensor,
        user_pairs: Tensor,
        lengths: Tensor,
        token_counts: Tensor,
        user_counts: Tensor,
        user_pair_counts: Tensor,
        pair_counts: Tensor,
        kept_prefixes: Tensor | None = None,
        kept_earlier: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Logits of every pair, in order, and its further heads' outputs, in the order of `output_widths`.

        Args:
            input_ids: int32 [tokens], of each user `user [SEP]`, then of each of its pairs `[CLS] candidate [SEP]`.
            user_lengths: int32 [users], tokens of each user's segment; 0: its pairs are single texts.
            user_pairs: int32 [users], how many pairs each user has, at least one.
            lengths: int32 [pairs], tokens of each candidate's segment, at least two.
            token_counts: int32 [requests], elements of `input_ids` that each request brought.
            user_counts: int32 [requests], the same for `user_lengths`.
            user_pair_counts: int32 [requests], the same for `user_pairs`.
            pair_counts: int32 [requests], the same for `lengths`.
            kept_prefixes: int32 [users], which entry of `kept_earlier` is the user's, from 1. 0: none, as by default.
            kept_earlier: float32 [1, known, layers * 2 * heads, longest, head_size], what earlier executions returned
                of users whose segments are missing in `input_ids`.

        Returns:
            Each float32 [pairs, width]; NaN for the pairs of a malformed request, and for all pairs behind an empty
            one. The last is what `kept_earlier` will be for this batch's users, as far as their segments were in it.
        """
        inputs = (
            input_ids, user_lengths, user_pairs, lengths, token_counts, user_counts, user_pair_counts, pair_counts
        )  # fmt: skip
        brought = Brought(*(t.long() for t in inputs))
        nothing = self.nothing_kept()
        kept_prefixes = nothing[0] if kept_prefixes is None else kept_prefixes
        kept_earlier = nothing[1] if kept_earlier is None else kept_earlier
        layout = self.lay_out(brought, kept_prefixes.long(), kept_earlier)
        outputs = self.compute(layout)
        return (*outputs, torch.cat([part[None] for part in layout.found], dim=2))

    def nothing_kept(self) -> tuple[Tensor, Tensor]:
        """The defaults of `kept_prefixes` and `kept_earlier`."""
        first: PackedLayer = self.layers[0]  # type: ignore[assignment]
        shape = (1, 1, 2 * len(self.layers) * first.heads, 1, first.head_size)
        return torch.zeros(1, dtype=torch.int32), torch.zeros(shape)

    def lay_out(  # type: ignore[override]
        self, brought: Brought, kept_prefixes: Tensor, kept: Tensor
    ) -> OnceLayout:
        """Checks each request by itself and computes where its segments lie.

        Args:
            brought: what the requests bring.
            kept_prefixes: as in `forward`, int64.
            kept: `kept_earlier` of `forward`.
        """
        ids = brought.input_ids
        tokens, users, pairs = ids.shape[0], brought.user_lengths.shape[0], brought.lengths.shape[0]
        wrong_id = (ids < 0) | (ids >= self.vocabulary)
        known = pick(kept_prefixes, between(torch.arange(users), kept_prefixes.shape[0]))
        texts = find_segments(brought, wrong_id, known > 0, self.max_length)

        # The sizes of attention. A block holds the mean number of pairs of a user, rounded up, so there are less than
        # twice as many blocks as users.
        long = extent(texts.lengths.max(), self.max_length)
        user = extent(texts.user_lengths.max(), self.max_length)
        own = extent(texts.own_lengths.max(), self.max_length)
        good = count(texts.user_pairs > 0, 0)
        block = extent(divide(count(texts.user_pairs, 0) + good - 1, torch.where(good < 1, 1, good)), pairs)
        blocks_of_user = divide(texts.user_pairs + block - 1, block)
        block_start, _ = bounds(blocks_of_user)
        blocks = extent(count(blocks_of_user, 0), users + pairs)

        # The blocks, and what lies in them.
        block_index = torch.arange(blocks)
        user_of_block = between(count(block_index[:, None] >= block_start, 1) - 1, users)
        place = (block_index - pick(block_start, user_of_block))[:, None] * block + torch.arange(block)
        filled = place < pick(texts.user_pairs, user_of_block)[:, None]
        pair_grid = between(pick(texts.first_pairs, user_of_block)[:, None] + place, pairs)
        flat = pair_grid.reshape(-1)
        offsets, user_offsets = torch.arange(long), torch.arange(user)
        pair_there = offsets < torch.where(filled, pick(texts.lengths, flat).reshape(blocks, block), 0)[:, :, None]
        user_there = user_offsets < pick(texts.user_lengths, user_of_block)[:, None]
        grid = between(pick(texts.starts, flat).reshape(blocks, block)[:, :, None] + offsets, tokens)
        own_offsets = torch.arange(own)
        own_there = own_offsets < texts.own_lengths[:, None]
        known_of_block = between(pick(known, user_of_block), kept.shape[1] + 1)
        rows_of_block = torch.where(known_of_block > 0, kept.shape[3], own)
        there = torch.cat(
            [
                pair_there[:, None, :, None, :].expand(-1, -1, -1, long, -1),
                user_there[:, None, None, None, :].expand(-1, -1, block, long, -1),
            ],
            dim=-1,
        )

        # The way back.
        place_of_pair = torch.arange(pairs) - pick(texts.first_pairs, texts.user_of_pair)
        slots = between(pick(block_start, texts.user_of_pair) * block + place_of_pair, blocks * block)
        found = find_tokens(texts, tokens)
        user_place = found.user * own + between(found.user_offset, own)
        pair_place = pick(slots, found.pair) * long + between(found.offset, long)
        return OnceLayout(
            input_ids=torch.where(wrong_id, 0, ids),
            token_type_ids=between(found.token_type_ids, self.types),
            positions=between(found.positions, self.max_length),
            starts=between(texts.starts, tokens),
            own_grid=between(texts.user_starts[:, None] + own_offsets, tokens),
            own_mask=torch.where(own_there, 0.0, MASKED)[:, None, None, :].expand(-1, -1, own, -1),
            grid=grid,
            user_of_block=user_of_block,
            known_of_block=known_of_block,
            user_offsets=torch.minimum(user_offsets, rows_of_block[:, None] - 1),
            mask=torch.where(there, 0.0, MASKED),
            pair_grid=pair_grid,
            slots=slots,
            is_user=found.is_user,
            places=torch.where(found.is_user, user_place, pair_place),
            kept=kept,
            found=[],
            malformed=texts.malformed,
        )


def divide(values: Tensor, by: Tensor | int) -> Tensor:
    """Integers of 0 or more divided, rounded down."""
    return torch.div(values, by, rounding_mode="trunc")


def extent(value: Tensor, largest: int) -> int:
    """A size that the values of a batch decide: 1 to `largest`."""
    size: int = torch.where(value < 1, 1, value).item()  # type: ignore[assignment]
    torch._check(size >= 1)  # type: ignore[no-untyped-call]
    torch._check(size <= largest)  # type: ignore[no-untyped-call]
    return size
