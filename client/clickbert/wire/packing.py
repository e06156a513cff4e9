"""How token ids lie in a request: pairs end to end, or each user text once with its candidates behind it.

The fields of a packed request bear the names of the model's inputs. `model_repository/` describes both forms.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]
TokenPair = tuple[list[int], list[int]]  # a query and a document, cut


@dataclass(frozen=True)
class PackedPairs:
    """Token ids of all pairs (or single texts), one after another, without padding."""

    input_ids: Int32Array  # [tokens]
    token_type_ids: Int32Array  # [tokens], 0 for `[CLS] query [SEP]`, 1 for `document [SEP]`
    lengths: Int32Array  # [pairs], tokens of each pair; they add up to `tokens`


@dataclass(frozen=True)
class PackedUsers:
    """Token ids of each query once, `query [SEP]`, and behind it those of its documents, `[CLS] document [SEP]`."""

    input_ids: Int32Array  # [tokens]
    user_lengths: Int32Array  # [users], tokens of each query; 0: single texts follow
    user_pairs: Int32Array  # [users], documents of each query; they add up to `pairs`
    lengths: Int32Array  # [pairs], tokens of each document; with `user_lengths` they add up to `tokens`


Packed = PackedPairs | PackedUsers


def pack_pairs(pairs: Sequence[TokenPair], cls: int, sep: int) -> PackedPairs:
    """Pack pairs in the order given."""
    ids: list[int] = []
    segments = np.empty((len(pairs), 2), np.int32)
    for index, (query, document) in enumerate(pairs):
        segments[index] = len(query) + 2, len(document) + 1
        ids.append(cls)
        ids.extend(query)
        ids.append(sep)
        ids.extend(document)
        ids.append(sep)
    types = np.tile(np.array([0, 1], np.int32), len(pairs))
    return PackedPairs(
        np.array(ids, np.int32), np.repeat(types, segments.reshape(-1)), segments.sum(axis=1, dtype=np.int32)
    )


def pack_users(pairs: Sequence[TokenPair], cls: int, sep: int) -> PackedUsers:
    """Pack pairs in the order given; those side by side that share their query share its tokens."""
    ids: list[int] = []
    users: list[int] = []
    shares: list[int] = []
    before: list[int] | None = None
    for query, document in pairs:
        if query != before:
            users.append(len(query) + 1)
            shares.append(0)
            ids.extend(query)
            ids.append(sep)
            before = query
        shares[-1] += 1
        ids.append(cls)
        ids.extend(document)
        ids.append(sep)
    lengths = [len(document) + 2 for _, document in pairs]
    return PackedUsers(*(np.array(values, np.int32) for values in (ids, users, shares, lengths)))


def pack_texts(texts: Sequence[list[int]], cls: int, sep: int, *, by_user: bool) -> Packed:
    """Pack single texts, each `[CLS] text [SEP]`, in the order given."""
    ids = np.array([token for text in texts for token in (cls, *text, sep)], np.int32)
    lengths = np.array([len(text) + 2 for text in texts], np.int32)
    if by_user:
        return PackedUsers(ids, np.zeros(1, np.int32), np.array([len(texts)], np.int32), lengths)
    return PackedPairs(ids, np.zeros_like(ids), lengths)
