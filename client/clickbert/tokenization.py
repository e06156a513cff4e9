"""Pairs of texts as packed token ids, equal to Hugging Face's `tokenizer(queries, documents, truncation=True)`.

A query is tokenized once however many documents it meets, and nothing is padded. Equality is with Hugging Face's batch
call: its call on a single pair drops an empty second text, this module keeps the pair's form, `[CLS] q [SEP] [SEP]`.

Not known here: truncation from the left (`truncation_side`), and pairs of another form than `[CLS] a [SEP] b [SEP]`.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

# The tokenizers library starts threads of its own for batches, warns on every fork after that, and reads this variable
# on each call. The default here is "false": a thin client runs in servers that fork workers and have their own threads.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tokenizers import Encoding, Tokenizer

Int32Array = npt.NDArray[np.int32]

# Characters that no BERT token spans, and that do not change the tokens before them. The last two end clauses in
# Chinese, which has no spaces.
_BREAKS = " \t\n\r\uff0c\u3002"


@dataclass(frozen=True)
class PackedPairs:
    """Token ids of all pairs, one after another, without padding."""

    input_ids: Int32Array  # [tokens]
    token_type_ids: Int32Array  # [tokens], 0 for `[CLS] query [SEP]`, 1 for `document [SEP]`
    lengths: Int32Array  # [pairs], tokens of each pair; they add up to `tokens`


class PairTokenizer:
    """A BERT tokenizer for (query, document) pairs. Safe to share between threads.

    `tokenizer_json` is the content of `tokenizer.json`; its own settings of truncation and padding are ignored. A pair
    has at most `max_length` tokens, the three special ones included. Raises ValueError if the content is not a BERT
    tokenizer, or if `max_length` leaves no room.
    """

    def __init__(self, tokenizer_json: bytes, max_length: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer_json.decode("utf-8"))
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            empty = self._tokenizer.encode("", "")
            # Too long a word for any vocabulary: a tokenizer without its [UNK] fails here, not on some user's text.
            filled = self._tokenizer.encode("a" * 1000, "a")
        except Exception as exc:  # the library raises nothing more special
            raise ValueError(f"not a usable tokenizer.json: {exc}") from exc
        self._cls, self._sep = _special_ids(empty, filled)
        self.max_length = max_length
        self._room = max_length - 3
        if self._room < 0:
            raise ValueError(f"max_length is {max_length}, but a pair has three special tokens")
        self._word_local = _is_word_local(json.loads(tokenizer_json))

    def pack(self, query: str, documents: Sequence[str]) -> PackedPairs:
        """Pack one query with each document."""
        (query_ids,) = self._encode([query])
        return self._assemble([(query_ids, ids) for ids in self._encode_documents(documents, len(query_ids))])

    def pack_pairs(self, pairs: Sequence[tuple[str, str]]) -> PackedPairs:
        """Pack (query, document) pairs, in order; a query that repeats is tokenized once."""
        by_query: dict[str, list[int]] = {}
        for index, (query, _) in enumerate(pairs):
            by_query.setdefault(query, []).append(index)
        assembled: list[tuple[list[int], list[int]]] = [([], [])] * len(pairs)
        for indices, query_ids in zip(by_query.values(), self._encode(list(by_query)), strict=True):
            documents = self._encode_documents([pairs[index][1] for index in indices], len(query_ids))
            for index, ids in zip(indices, documents, strict=True):
                assembled[index] = (query_ids, ids)
        return self._assemble(assembled)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        # "fast" leaves out the character offsets, which nobody reads here.
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _encode_documents(self, documents: Sequence[str], query_length: int) -> list[list[int]]:
        """Tokenize the documents, but of a very long one only as much as can matter.

        Truncation drops what exceeds the room. The longer of two long texts gets the odd token, so a document must also
        be tokenized up to the query's length.
        """
        enough = max(self._room, query_length) + 1
        heads = [self._head(document, enough) for document in documents]
        encoded = self._encode(heads)
        short = [
            index
            for index, (head, ids) in enumerate(zip(heads, encoded, strict=True))
            if len(head) < len(documents[index]) and len(ids) < enough
        ]
        for index, ids in zip(short, self._encode([documents[index] for index in short]), strict=True):
            encoded[index] = ids
        return encoded

    def _head(self, text: str, tokens: int) -> str:
        """Return the start of a very long text, cut at a break, that most likely has this many tokens."""
        reach = 16 * tokens
        if not self._word_local or len(text) <= 2 * reach:
            return text
        ends = [end for mark in _BREAKS if (end := text.find(mark, reach, 2 * reach)) > 0]
        return text[: min(ends)] if ends else text

    def _assemble(self, pairs: list[tuple[list[int], list[int]]]) -> PackedPairs:
        ids: list[int] = []
        kept = np.empty((len(pairs), 2), np.int32)
        for index, (query, document) in enumerate(pairs):
            kept[index] = first, second = longest_first(len(query), len(document), self._room)
            ids.append(self._cls)
            ids.extend(query[:first])
            ids.append(self._sep)
            ids.extend(document[:second])
            ids.append(self._sep)
        segments = kept + np.array([2, 1], np.int32)
        types = np.tile(np.array([0, 1], np.int32), len(pairs))
        return PackedPairs(
            np.array(ids, np.int32), np.repeat(types, segments.reshape(-1)), segments.sum(axis=1, dtype=np.int32)
        )


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of each text are kept, by the tokenizers library's strategy `longest_first`.

    The shorter text stays whole while the longer one can make room. Otherwise both get half, and the longer one gets
    the odd token (the second text, if they tie).
    """
    if first + second <= room:
        return first, second
    shorter = min(first, second)
    longer = room - shorter
    if longer < shorter:
        shorter = room // 2
        longer = room - shorter
    return (longer, shorter) if first > second else (shorter, longer)


def _special_ids(empty: Encoding, filled: Encoding) -> tuple[int, int]:
    """Return the ids of [CLS] and [SEP], as they occur in an empty and a filled pair: names may differ."""
    parts = list(zip(filled.sequence_ids, filled.type_ids, strict=True))
    runs = [part for part, _ in groupby(parts)]
    # [CLS] a [SEP] b [SEP], seen as (text or None, type): the query's [SEP] is of type 0, the document's of type 1.
    if len(empty.ids) != 3 or empty.ids[1] != empty.ids[2] or runs != [(None, 0), (0, 0), (None, 0), (1, 1), (None, 1)]:
        raise ValueError("not BERT's tokenizer: a pair must become [CLS] a [SEP] b [SEP] with token types 0 and 1")
    return empty.ids[0], empty.ids[1]


def _is_word_local(tokenizer: dict[str, Any]) -> bool:
    """Tell whether cutting a text before a break leaves the tokens before the cut as they are.

    True for BERT's normalizer, pre-tokenizer and WordPiece, which look at one word at a time, unless an added token
    spans words.
    """
    parts = [(tokenizer.get(name) or {}).get("type") for name in ("normalizer", "pre_tokenizer", "model")]
    added = [token.get("content", "") for token in tokenizer.get("added_tokens") or []]
    return parts == ["BertNormalizer", "BertPreTokenizer", "WordPiece"] and not any(
        mark in content for content in added for mark in _BREAKS
    )
