"""The packed graph of a checkpoint whose user text is computed once for all its candidates.

Its rule (`finetune.checkpoint.attention`): the user text's tokens and their [SEP] see each other only; [CLS], the
candidate's tokens and the last [SEP] see everything. So a user text has the same hidden states beside every candidate,
and a request brings it once: its segment `user [SEP]` and, behind it, the segment `[CLS] candidate [SEP]` of each of
its pairs. A single text is a pair without a user text.

Linear layers run on the tokens of all segments at once. For attention the candidates of a user lie in blocks of the
mean number of pairs a user has, so that a user with many candidates among users with few pads little: one user's
candidates are one block. Their scores against the user's keys are one dense product for a block, and their scores
among themselves a small one for each pair, both under one softmax.

Requests are guarded from each other as in `packed_bert` (`segments`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from export.graph.indexing import between, bounds, count, pick, take
from export.graph.layers import PackedLayer, lay_side_by_side
from export.graph.packed_bert import MASKED, PackedBert
from export.graph.segments import find_segments


class OnceLayout(NamedTuple):
    """Where users' and candidates' segments lie in the packed vectors. All index tensors are int64.

    `block` is how many pairs a block has room for, `long` the tokens of the longest candidate's segment, `user` those
    of the longest user's.
    """

    input_ids: Tensor  # [tokens], all inside the vocabulary: wrong ones are replaced by 0
    token_type_ids: Tensor  # [tokens]
    positions: Tensor  # [tokens]
    starts: Tensor  # [pairs], index of each pair's [CLS]
    user_grid: Tensor  # [blocks, user], index into [tokens] of each position of the block's user segment
    grid: Tensor  # [blocks, block, long], the same of the candidates' segments
    user_mask: Tensor  # [blocks, 1, user, user] float32, 0 or MASKED
    mask: Tensor  # [blocks, 1, block, long, long + user] float32, 0 or MASKED
    pair_grid: Tensor  # [blocks, block], which pair lies where
    slots: Tensor  # [pairs], where each pair lies in `pair_grid`
    is_user: Tensor  # [tokens] bool, the token belongs to a user text
    places: Tensor  # [tokens], where a token lies in `user_grid` or in `grid`
    malformed: Tensor  # [pairs] bool, the pair belongs to a malformed request, or to one behind an empty request

    def attend(self, layer: PackedLayer, fused: Tensor) -> Tensor:
        """Attention at every token; see `Layout.attend`."""
        user_query, user_key, user_value = (
            take(fused, place) for place in lay_side_by_side(self.user_grid, layer.heads, 3)
        )
        users = torch.softmax(user_query @ user_key.transpose(2, 3) + self.user_mask, dim=-1) @ user_value
        query, key, value = (take(fused, place) for place in lay_side_by_side(self.grid, layer.heads, 3))
        candidates = self.see_both(query, key, value, user_key, user_value)
        rows = torch.cat([users.reshape(-1, layer.head_size), candidates.reshape(-1, layer.head_size)])
        return take(rows, self.back(layer.heads))

    def back(self, heads: int) -> Tensor:
        """Where the rows of each token lie in what `attend` computes, first the users': int64 [tokens, heads]."""
        blocks, user = self.user_grid.shape
        room = self.grid.shape[1] * self.grid.shape[2]
        size = torch.where(self.is_user, user, room)  # of a block, for one head
        block = divide(self.places, size)
        first = torch.where(self.is_user, 0, blocks * heads * user) + block * (heads - 1) * size + self.places
        return first[:, None] + size[:, None] * torch.arange(heads)

    def attend_first(self, layer: PackedLayer, query: Tensor, fused: Tensor) -> Tensor:
        """Attention at each pair's [CLS]; see `Layout.attend_first`."""
        heads, block = layer.heads, self.pair_grid.shape[1]
        (place,) = lay_side_by_side(self.pair_grid, heads, 1)
        query = take(query, place[..., None])
        key, value = (take(fused, place) for place in lay_side_by_side(self.grid, heads, 2))
        user_key, user_value = (take(fused, place) for place in lay_side_by_side(self.user_grid, heads, 2))
        candidates = self.see_both(query, key, value, user_key, user_value).reshape(-1, layer.head_size)
        first = self.slots + divide(self.slots, block) * (heads - 1) * block
        return take(candidates, first[:, None] + block * torch.arange(heads))

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

        Returns:
            Each float32 [pairs, width]; NaN for the pairs of a malformed request, and for all pairs behind an empty
            one.
        """
        inputs = (
            input_ids, user_lengths, user_pairs, lengths, token_counts, user_counts, user_pair_counts, pair_counts
        )  # fmt: skip
        return self.compute(self.lay_out(*(t.long() for t in inputs)))

    def lay_out(  # type: ignore[override]
        self,
        ids: Tensor,
        user_lengths: Tensor,
        user_pairs: Tensor,
        lengths: Tensor,
        token_counts: Tensor,
        user_counts: Tensor,
        user_pair_counts: Tensor,
        pair_counts: Tensor,
    ) -> OnceLayout:
        """Checks each request by itself and computes where its segments lie (arguments as in `forward`, int64)."""
        tokens, pairs = ids.shape[0], lengths.shape[0]
        wrong_id = (ids < 0) | (ids >= self.vocabulary)
        texts = find_segments(
            wrong_id, user_lengths, user_pairs, lengths, token_counts, user_counts, user_pair_counts, pair_counts,
            self.max_length,
        )  # fmt: skip
        users = texts.user_pairs.shape[0]

        # The sizes of attention. A block holds the mean number of pairs of a user, rounded up, so there are less than
        # twice as many blocks as users.
        long = extent(texts.lengths.max(), self.max_length)
        user = extent(texts.user_lengths.max(), self.max_length)
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
        user_grid = between(pick(texts.user_starts, user_of_block)[:, None] + user_offsets, tokens)
        there = torch.cat(
            [
                pair_there[:, None, :, None, :].expand(-1, -1, -1, long, -1),
                user_there[:, None, None, None, :].expand(-1, -1, block, long, -1),
            ],
            dim=-1,
        )

        # The way back. A segment of a malformed request has no tokens. It may start where the next one does, but never
        # later.
        token_index = torch.arange(tokens)
        place_of_pair = torch.arange(pairs) - pick(texts.first_pairs, texts.user_of_pair)
        slots = between(pick(block_start, texts.user_of_pair) * block + place_of_pair, blocks * block)
        pair_of_token = between(count(token_index[:, None] >= texts.starts, 1) - 1, pairs)
        user_of_token = between(count(token_index[:, None] >= texts.user_starts, 1) - 1, users)
        user_length = pick(texts.user_lengths, user_of_token)
        user_offset = token_index - pick(texts.user_starts, user_of_token)
        is_user = user_offset < user_length
        offset = token_index - pick(texts.starts, pair_of_token)
        position = torch.where(is_user, user_offset + 1, torch.where(offset < 1, 0, user_length + offset))
        user_place = pick(block_start, user_of_token) * user + between(user_offset, user)
        pair_place = pick(slots, pair_of_token) * long + between(offset, long)
        candidate = (offset > 0) & (user_length > 0) & ~is_user
        return OnceLayout(
            input_ids=torch.where(wrong_id, 0, ids),
            token_type_ids=between(candidate.long(), self.types),
            positions=between(position, self.max_length),
            starts=between(texts.starts, tokens),
            user_grid=user_grid,
            grid=grid,
            user_mask=torch.where(user_there, 0.0, MASKED)[:, None, None, :].expand(-1, -1, user, -1),
            mask=torch.where(there, 0.0, MASKED),
            pair_grid=pair_grid,
            slots=slots,
            is_user=is_user,
            places=torch.where(is_user, between(user_place, blocks * user), pair_place),
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
