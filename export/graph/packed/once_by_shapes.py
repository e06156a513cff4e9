"""The packed graph of a checkpoint whose user text is computed once, for TensorRT: every size is a size of an input.

What is computed, what requests bring and how they are guarded from each other is that of `user_once`. TensorRT fixes
every shape before it computes a value, and takes memory for the largest shapes that the profile allows. So

- the longest user text and the longest candidate are sizes of two inputs, as the longest pair is with full attention
  (docs/decisions/0006). A request with a longer segment than these is malformed;
- attention has a row of the grid for each pair, [pairs, candidate, candidate + user], and none for users with more
  places than they have pairs. A pair's keys and values are its own segment's, then its user's, in one Gather: one
  product each for scores and values;
- nothing is kept for later: a GPU computes a request whole.

No size is less than 2, so that no product of attention has one row or one column but those of the last layer's queries
(`export.tensorrt.typed_graph`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from export.graph.packed.indexing import between, pick, take
from export.graph.packed.layers import PackedLayer, lay_side_by_side
from export.graph.packed.packed_bert import MASKED, PackedBert
from export.graph.packed.segments import Brought, Longest, find_segments, find_tokens


class ShapedLayout(NamedTuple):
    """Where users' and candidates' segments lie in the packed vectors. All index tensors are int64.

    `user` is how many tokens the longest user's segment may have, `long` those of the longest candidate's.
    """

    input_ids: Tensor  # [tokens], all inside the vocabulary: wrong ones are replaced by 0
    token_type_ids: Tensor  # [tokens]
    positions: Tensor  # [tokens]
    starts: Tensor  # [pairs], index of each pair's [CLS]
    own_grid: Tensor  # [users, user], index into [tokens] of each position of a user's segment
    own_mask: Tensor  # [users, 1, user, user] float32, 0 or MASKED
    grid: Tensor  # [pairs, long], the same of the candidates' segments
    seen_grid: Tensor  # [pairs, long + user], the same of what a candidate sees: itself, then its user
    mask: Tensor  # [pairs, 1, long, long + user] float32, 0 or MASKED
    is_user: Tensor  # [tokens] bool, the token belongs to a user text
    owners: Tensor  # [tokens], which user or pair a token belongs to
    places: Tensor  # [tokens], its place in that segment
    malformed: Tensor  # [pairs] bool, the pair belongs to a malformed request, or to one behind an empty request

    def attend(self, layer: PackedLayer, fused: Tensor) -> Tensor:
        """Attention at every token; see `Layout.attend`."""
        heads, (users, own), long = layer.heads, self.own_grid.shape, self.grid.shape[1]
        query, key, value = (take(fused, place) for place in lay_side_by_side(self.own_grid, heads, 3))
        of_users = torch.softmax(query @ key.transpose(2, 3) + self.own_mask, dim=-1) @ value
        query = take(fused, lay_side_by_side(self.grid, heads, 3)[0])
        key, value = (take(fused, place) for place in lay_side_by_side(self.seen_grid, heads, 3)[1:])
        of_candidates = torch.softmax(query @ key.transpose(2, 3) + self.mask, dim=-1) @ value
        rows = torch.cat([of_users.reshape(-1, layer.head_size), of_candidates.reshape(-1, layer.head_size)])
        size = torch.where(self.is_user, own, long)  # of a segment, for one head
        first = torch.where(self.is_user, 0, users * heads * own) + self.owners * heads * size + self.places
        return take(rows, first[:, None] + size[:, None] * torch.arange(heads))

    def attend_first(self, layer: PackedLayer, query: Tensor, fused: Tensor) -> Tensor:
        """Attention at each pair's [CLS]; see `Layout.attend_first`."""
        query = query.reshape(self.grid.shape[0], layer.heads, 1, layer.head_size)
        key, value = (take(fused, place) for place in lay_side_by_side(self.seen_grid, layer.heads, 2))
        return torch.softmax(query @ key.transpose(2, 3) + self.mask[:, :, :1], dim=-1) @ value


class ShapedOnceBert(PackedBert):
    """`OnceBert` with sizes of inputs for the sizes of attention."""

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
        longest: Tensor,
        longest_user: Tensor,
        longest_shape: Tensor,
        longest_user_shape: Tensor,
    ) -> tuple[Tensor, ...]:
        """Logits of every pair, in order, and its further heads' outputs, in the order of `output_widths`.

        Args:
            input_ids: this, and all up to `pair_counts`, as in `OnceBert.forward`.
            user_lengths: int32 [users].
            user_pairs: int32 [users].
            lengths: int32 [pairs].
            token_counts: int32 [requests].
            user_counts: int32 [requests].
            user_pair_counts: int32 [requests].
            pair_counts: int32 [requests].
            longest: int32 [any]; what Triton makes `longest_shape` of. Not read, as the next.
            longest_user: int32 [any].
            longest_shape: int32 [the tokens of the longest candidate's segment]; only its size is read.
            longest_user_shape: int32 [the tokens of the longest user's segment]; the same.

        Returns:
            Each float32 [pairs, width]; NaN for the pairs of a malformed request, and for all pairs behind an empty
            one.
        """
        inputs = (
            input_ids, user_lengths, user_pairs, lengths, token_counts, user_counts, user_pair_counts, pair_counts
        )  # fmt: skip
        sizes = Longest(*(self.limit(shape.shape[0]) for shape in (longest_user_shape, longest_shape)))
        return self.compute(self.lay_out(Brought(*(t.long() for t in inputs)), sizes))

    def limit(self, size: int) -> int:
        """A size that requests claim, limited to 2..`max_length`."""
        limited: int = torch.sym_min(torch.sym_max(size, 2), self.max_length)  # type: ignore[no-untyped-call]
        return limited

    def lay_out(self, brought: Brought, longest: Longest) -> ShapedLayout:  # type: ignore[override]
        """Checks each request by itself and computes where its segments lie (`brought` as in `forward`, int64)."""
        ids = brought.input_ids
        tokens = ids.shape[0]
        wrong_id = (ids < 0) | (ids >= self.vocabulary)
        texts = find_segments(brought, wrong_id, None, self.max_length, longest)
        found = find_tokens(texts, tokens)
        own_offsets, offsets = torch.arange(longest.user), torch.arange(longest.candidate)
        own_grid = between(texts.user_starts[:, None] + own_offsets, tokens)
        own_there = own_offsets < texts.user_lengths[:, None]
        grid = between(texts.starts[:, None] + offsets, tokens)
        user_grid = between(pick(texts.user_starts, texts.user_of_pair)[:, None] + own_offsets, tokens)
        user_there = own_offsets < pick(texts.user_lengths, texts.user_of_pair)[:, None]
        there = torch.cat([offsets < texts.lengths[:, None], user_there], dim=1)
        user_place, place = between(found.user_offset, longest.user), between(found.offset, longest.candidate)
        return ShapedLayout(
            input_ids=torch.where(wrong_id, 0, ids),
            token_type_ids=between(found.token_type_ids, self.types),
            positions=between(found.positions, self.max_length),
            starts=between(texts.starts, tokens),
            own_grid=own_grid,
            own_mask=torch.where(own_there, 0.0, MASKED)[:, None, None, :].expand(-1, -1, longest.user, -1),
            grid=grid,
            seen_grid=torch.cat([grid, user_grid], dim=1),
            mask=torch.where(there, 0.0, MASKED)[:, None, None, :].expand(-1, -1, longest.candidate, -1),
            is_user=found.is_user,
            owners=torch.where(found.is_user, found.user, found.pair),
            places=torch.where(found.is_user, user_place, place),
            malformed=texts.malformed,
        )
