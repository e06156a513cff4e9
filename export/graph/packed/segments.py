"""Where the segments of user texts and candidates lie in the packed vectors, and which requests are malformed.

Each request is laid out from its own beginning and checked by itself, as in `packed_bert`: no number that another
request claims can move its segments.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from export.graph.packed.indexing import between, bounds, count, owners, pick


class Brought(NamedTuple):
    """What a batch's requests bring, as in `OnceBert.forward`; int64 all."""

    input_ids: Tensor
    user_lengths: Tensor
    user_pairs: Tensor
    lengths: Tensor
    token_counts: Tensor
    user_counts: Tensor
    user_pair_counts: Tensor
    pair_counts: Tensor


class Longest(NamedTuple):
    """The tokens that the longest segments of well-formed requests have, at most."""

    user: int
    candidate: int


class Segments(NamedTuple):
    """The segments of well-formed requests. All index tensors are int64.

    What a malformed request brought is 0 in `user_pairs` and in both lengths, and starts where the request does.
    """

    user_pairs: Tensor  # [users], how many pairs each user has
    user_lengths: Tensor  # [users], tokens of a user's segment
    own_lengths: Tensor  # [users], those that are in this batch: 0 where the segment was computed earlier
    user_starts: Tensor  # [users], index into [tokens]
    first_pairs: Tensor  # [users], which pair is the user's first
    lengths: Tensor  # [pairs], tokens of a candidate's segment
    starts: Tensor  # [pairs], index into [tokens]
    user_of_pair: Tensor  # [pairs]
    malformed: Tensor  # [pairs] bool, the pair belongs to a malformed request, or to one behind an empty request


class Tokens(NamedTuple):
    """What each token of the packed vectors is; all are [tokens], int64 but for the first."""

    is_user: Tensor  # bool, it belongs to a user text
    user: Tensor  # whose segment it is in, or behind
    user_offset: Tensor  # from where that segment starts
    pair: Tensor  # the same of the candidates' segments
    offset: Tensor
    positions: Tensor  # its position embedding, not limited
    token_type_ids: Tensor


def find_segments(
    brought: Brought, wrong_id: Tensor, known: Tensor | None, max_length: int, longest: Longest | None = None
) -> Segments:
    """Checks each request by itself, and computes where its segments lie.

    Args:
        brought: what the requests bring.
        wrong_id: bool [tokens], a token is none of the vocabulary's.
        known: bool [users], the segment was computed earlier, and its tokens are not in the batch; None: no one's.
        max_length: tokens of a user's segment and a candidate's together, at most.
        longest: a request with a longer segment is malformed; None: `max_length` is the limit.
    """
    longest = longest or Longest(max_length, max_length)
    _, user_lengths, user_pairs, lengths, token_counts, user_counts, user_pair_counts, pair_counts = brought
    users, pairs, requests = user_lengths.shape[0], lengths.shape[0], torch.arange(pair_counts.shape[0])
    user_index, pair_index = torch.arange(users), torch.arange(pairs)
    token_starts, token_ends = bounds(token_counts)
    user_starts, user_ends = bounds(user_counts)
    user_pair_starts, _ = bounds(user_pair_counts)
    pair_starts, pair_ends = bounds(pair_counts)
    request_of_user, request_of_pair = owners(users, user_ends), owners(pairs, pair_ends)
    # One-hot rows to sum over.
    token_rows = owners(wrong_id.shape[0], token_ends)[:, None] == requests
    user_rows, pair_rows = request_of_user[:, None] == requests, request_of_pair[:, None] == requests

    # A request's user_pairs are read from where it brought them, whatever the others brought.
    place = user_index - pick(user_starts, request_of_user) + pick(user_pair_starts, request_of_user)
    user_pairs = pick(user_pairs, between(place, user_pairs.shape[0]))
    wrong_user = (user_lengths < 0) | (user_lengths > longest.user) | (user_pairs < 1) | (user_pairs > pairs)
    wrong_pair = (lengths < 2) | (lengths > longest.candidate)
    added_up = count(torch.where(pair_rows, lengths[:, None], 0), 0)
    here = user_rows if known is None else user_rows & ~known[:, None]
    added_up = added_up + count(torch.where(here, user_lengths[:, None], 0), 0)
    # Behind an empty request Triton's C++ backends copy nothing (`packed_bert`).
    empty = (token_counts < 1) | (user_counts < 1) | (user_pair_counts < 1) | (pair_counts < 1)
    _, empty_so_far = bounds(empty.long())
    malformed_request = (
        (count(wrong_id[:, None] & token_rows, 0) > 0)
        | (count(wrong_user[:, None] & user_rows, 0) > 0)
        | (count(wrong_pair[:, None] & pair_rows, 0) > 0)
        | (added_up != token_counts)
        | (count(torch.where(user_rows, user_pairs[:, None], 0), 0) != pair_counts)
        | (user_pair_counts != user_counts)
        | (empty_so_far > 0)
    )

    # Which user a pair belongs to: the users before it in the same request say it, and nobody else.
    earlier_user = (request_of_user[:, None] == request_of_user) & (user_index[:, None] > user_index)
    user_pairs = torch.where(pick(malformed_request.long(), request_of_user) > 0, 0, user_pairs)
    first_pairs = pick(pair_starts, request_of_user) + count(torch.where(earlier_user, user_pairs, 0), 1)
    same_request = request_of_pair[:, None] == request_of_user
    begun = same_request & (pair_index[:, None] >= first_pairs)
    user_of_pair = between(pick(user_starts, request_of_pair) + count(begun, 1) - 1, users)
    too_long = lengths + pick(user_lengths, user_of_pair) > max_length
    malformed_request = malformed_request | (count(too_long[:, None] & pair_rows, 0) > 0)

    # What a malformed request claims does not count any more, neither in time nor in memory.
    malformed_user = pick(malformed_request.long(), request_of_user) > 0
    malformed_pair = pick(malformed_request.long(), request_of_pair) > 0
    user_pairs, user_lengths = torch.where(malformed_user, 0, user_pairs), torch.where(malformed_user, 0, user_lengths)
    own_lengths = user_lengths if known is None else torch.where(known, 0, user_lengths)
    lengths = torch.where(malformed_pair, 0, lengths)
    # A segment starts where its request starts, plus the segments before it in the same request.
    earlier_pair = (request_of_pair[:, None] == request_of_pair) & (pair_index[:, None] > pair_index)
    earlier = same_request & (pair_index[:, None] < first_pairs)  # than the user
    return Segments(
        user_pairs=user_pairs,
        user_lengths=user_lengths,
        own_lengths=own_lengths,
        user_starts=pick(token_starts, request_of_user)
        + count(torch.where(earlier_user, own_lengths, 0), 1)
        + count(torch.where(earlier, lengths[:, None], 0), 0),
        first_pairs=first_pairs,
        lengths=lengths,
        starts=pick(token_starts, request_of_pair)
        + count(torch.where(begun, own_lengths, 0), 1)
        + count(torch.where(earlier_pair, lengths, 0), 1),
        user_of_pair=user_of_pair,
        malformed=malformed_pair,
    )


def find_tokens(texts: Segments, tokens: int) -> Tokens:
    """What each of `tokens` tokens is.

    A segment of a malformed request has no tokens. It may start where the next one does, but never later.
    """
    users, pairs = texts.user_lengths.shape[0], texts.lengths.shape[0]
    index = torch.arange(tokens)
    pair = between(count(index[:, None] >= texts.starts, 1) - 1, pairs)
    user = between(count(index[:, None] >= texts.user_starts, 1) - 1, users)
    user_length = pick(texts.user_lengths, user)
    user_offset = index - pick(texts.user_starts, user)
    is_user = user_offset < pick(texts.own_lengths, user)
    offset = index - pick(texts.starts, pair)
    return Tokens(
        is_user=is_user,
        user=user,
        user_offset=user_offset,
        pair=pair,
        offset=offset,
        positions=torch.where(is_user, user_offset + 1, torch.where(offset < 1, 0, user_length + offset)),
        token_type_ids=((offset > 0) & (user_length > 0) & ~is_user).long(),
    )
