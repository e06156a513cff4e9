"""Pairs of texts, and single texts, as packed token ids, equal to Hugging Face's `tokenizer(..., truncation=True)`.

A query is tokenized once however many documents it meets, and nothing is padded. Equality is with Hugging Face's batch
call: its call on a single pair drops an empty second text, this module keeps the pair's form, `[CLS] q [SEP] [SEP]`.

For a model that computes a query once, a query is cut to a length of its own, whatever its documents are
(`finetune.evaluation.scoring` has the same rule); pairs that fit are the same.

Not known here: truncation from the left (`truncation_side`), and pairs of another form than `[CLS] a [SEP] b [SEP]`.
"""

import json
import os
from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import Any, NamedTuple

# The tokenizers library starts threads of its own for batches, warns on every fork after that, and reads this variable
# on each call. The default here is "false": a thin client runs in servers that fork workers and have their own threads.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tokenizers import Encoding, Tokenizer

from clickbert.errors import InvalidInputError
from clickbert.wire.inputs import Inputs
from clickbert.wire.packing import Packed, TokenPair, pack_pairs, pack_texts, pack_users

# Characters that no BERT token spans, and that do not change the tokens before them. The last two end clauses in
# Chinese, which has no spaces.
_BREAKS = " \t\n\r\uff0c\u3002"

_BATCH = 100_000  # characters at a time, or one text: the library's own form of a token takes over a hundred bytes


class Window(NamedTuple):
    """A query beside one passage of a document, as token ids: `document[start:stop]`, which is not copied."""

    query: list[int]  # cut to its share of the room
    document: list[int]
    start: int
    stop: int
    is_query_cut: bool = False

    @property
    def tokens(self) -> int:
        """How many tokens it has when packed, the three special ones included."""
        return len(self.query) + self.stop - self.start + 3


class PairTokenizer:
    """A BERT tokenizer for (query, document) pairs and single texts. Safe to share between threads.

    `tokenizer_json` is the content of `tokenizer.json`; its own settings of truncation and padding are ignored. A pair
    has at most `max_length` tokens, the three special ones included. With `user_tokens` queries are packed once, each
    with at most that many tokens. Raises ValueError if the content is not a BERT tokenizer, or if `max_length` leaves
    no room.
    """

    def __init__(self, tokenizer_json: bytes, max_length: int, user_tokens: int | None = None) -> None:
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer_json.decode("utf-8"))
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            single, empty = self._tokenizer.encode(""), self._tokenizer.encode("", "")
            # Too long a word for any vocabulary: a tokenizer without its [UNK] fails here, not on some user's text.
            filled = self._tokenizer.encode("a" * 1000, "a")
        except Exception as exc:  # the library raises nothing more special
            raise ValueError(f"not a usable tokenizer.json: {exc}") from exc
        self._cls, self._sep = _special_ids(single, empty, filled)
        self.max_length = max_length
        self._room = max_length - 3
        if self._room < 0:
            raise ValueError(f"max_length is {max_length}, but a pair has three special tokens")
        self.user_tokens = user_tokens
        if user_tokens is not None and not 1 <= user_tokens <= self._room:
            raise ValueError(f"user_tokens is {user_tokens}, but a pair has room for 1 to {self._room}")
        parsed = json.loads(tokenizer_json)
        self._word_local = _is_word_local(parsed)
        name = (parsed.get("model") or {}).get("unk_token")
        self._unknown = self._tokenizer.token_to_id(name) if isinstance(name, str) else None

    def pack(self, query: str, documents: Sequence[str]) -> Packed:
        """Pack one query with each document."""
        return self.pack_pairs([(query, document) for document in documents])

    def pack_pairs(
        self, pairs: Sequence[tuple[str, str]], inputs: Inputs | None = None, *, keep_queries: bool = False
    ) -> Packed:
        """Pack (query, document) pairs, in order; a query that repeats is tokenized once.

        With `keep_queries` only documents are cut, as by Hugging Face's `truncation="only_second"`. Raises
        `InvalidInputError` if a query leaves its document no room.

        This and the other methods that pack count in `inputs` what the model is to read, if it is given.
        """
        by_query: dict[str, list[int]] = {}
        for index, (query, _) in enumerate(pairs):
            by_query.setdefault(query, []).append(index)
        assembled: list[TokenPair] = [([], [])] * len(pairs)
        # Of a very long query only a start is tokenized; one token more than is kept shows that something is cut.
        starts = self._encode_starts(list(by_query), (self.user_tokens or self._room) + 1)
        for (query, indices), query_ids in zip(by_query.items(), starts, strict=True):
            texts = [pairs[index][1] for index in indices]
            documents = self._encode_documents(texts, query_ids)
            if self._is_length_wanted(query, query_ids, documents, keep_queries):
                (query_ids,) = self._encode([query])  # noqa: PLW2901
                documents = self._encode_documents(texts, query_ids)
            for index, ids in zip(indices, documents, strict=True):
                assembled[index] = self._cut(query_ids, ids, keep_queries)
                if inputs is not None:
                    inputs.truncated += len(query_ids) + len(ids) > sum(map(len, assembled[index]))
        return self._assemble(assembled, inputs)

    def pack_texts(self, texts: Sequence[str], inputs: Inputs | None = None) -> Packed:
        """Pack single texts, each `[CLS] text [SEP]` with token types 0, at most `max_length` tokens."""
        room = self.max_length - 2
        encoded = self._encode_starts(texts, room + 1)  # one more shows that something is cut
        cut = [ids[:room] for ids in encoded]
        packed = pack_texts(cut, self._cls, self._sep, by_user=self.user_tokens is not None)
        if inputs is not None:
            inputs.note(packed, self._unknown)
            inputs.truncated += sum(len(ids) > room for ids in encoded)
        return packed

    def split_into_windows(self, pairs: Sequence[tuple[str, str]], overlap: int) -> list[list[Window]]:
        """Tokenize pairs whose documents may be too long; returns one window or more for each.

        A pair that fits is one window, the same tokens as `pack_pairs` gives. Else the query keeps half of the room, or
        what the document leaves of it (with `user_tokens`, as many as ever), and the document is cut into windows that
        fill the rest, each sharing `overlap` tokens with the one before (or as many as leave a step of one). Training
        has the same rule (`finetune.evaluation.scoring.tokenize_passages`).
        """
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        tokens = dict(zip(texts, self._encode(texts), strict=True))
        return [self._windows(tokens[query], tokens[document], overlap) for query, document in pairs]

    def pack_windows(self, windows: Sequence[Window], inputs: Inputs | None = None) -> Packed:
        """Pack windows, in order."""
        if inputs is not None:  # a document that is cut into windows is read to its end
            inputs.truncated += sum(window.is_query_cut and not window.start for window in windows)
        pairs = [(window.query, window.document[window.start : window.stop]) for window in windows]
        return self._assemble(pairs, inputs)

    def _windows(self, query: list[int], document: list[int], overlap: int) -> list[Window]:
        whole = len(query)
        if self.user_tokens is not None:
            query = query[: self.user_tokens]
        elif len(query) + len(document) > self._room:
            query = query[: max(self._room // 2, self._room - len(document))]
        size = self._room - len(query)
        step = max(size - overlap, 1)
        starts = range(0, max(len(document) - size, 0) + step, step)
        is_cut = len(query) < whole
        return [Window(query, document, start, min(start + size, len(document)), is_cut) for start in starts]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        ids = []
        sized = zip(accumulate(map(len, texts)), texts, strict=True)
        for _, batch in groupby(sized, lambda each: each[0] // _BATCH):
            # "fast" leaves out the character offsets, which nobody reads here.
            encodings = self._tokenizer.encode_batch_fast([text for _, text in batch], add_special_tokens=False)
            ids += [encoding.ids for encoding in encodings]
        return ids

    def _encode_documents(self, documents: Sequence[str], query: list[int]) -> list[list[int]]:
        """Tokenize the documents, but of a very long one only as much as can matter.

        Truncation drops what exceeds the room. The longer of two long texts gets the odd token, so a document must also
        be tokenized up to the query's length.
        """
        query_length = min(len(query), self.user_tokens or len(query))
        return self._encode_starts(documents, max(self._room, query_length) + 1)

    def _is_length_wanted(self, query: str, start: list[int], documents: list[list[int]], keep_query: bool) -> bool:
        """Tell whether it matters how long the query is of which this start was tokenized.

        `longest_first` looks only at which text is the longer one as soon as one of them exceeds the room, and not even
        at that if both do and the room is even. A document that is shorter than the start is the shorter one.
        """
        return (
            self.user_tokens is None
            and not keep_query
            and self._room % 2 == 1
            and any(len(ids) >= len(start) > self._room for ids in documents)
            and len(self._head(query, self._room + 1)) < len(query)
        )

    def _encode_starts(self, texts: Sequence[str], enough: int) -> list[list[int]]:
        """Tokenize texts, but of a very long one only a start of this many tokens or more."""
        heads = [self._head(text, enough) for text in texts]
        encoded = self._encode(heads)
        short = [
            index
            for index, (head, ids) in enumerate(zip(heads, encoded, strict=True))
            if len(head) < len(texts[index]) and len(ids) < enough
        ]
        for index, ids in zip(short, self._encode([texts[index] for index in short]), strict=True):
            encoded[index] = ids
        return encoded

    def _head(self, text: str, tokens: int) -> str:
        """Return the start of a very long text, cut at a break, that most likely has this many tokens."""
        reach = 16 * tokens
        if not self._word_local or len(text) <= 2 * reach:
            return text
        ends = [end for mark in _BREAKS if (end := text.find(mark, reach, 2 * reach)) > 0]
        return text[: min(ends)] if ends else text

    def _cut(self, query: list[int], document: list[int], keep_query: bool) -> TokenPair:
        if self.user_tokens is None and not keep_query:
            first, second = longest_first(len(query), len(document), self._room)
            return query[:first], document[:second]
        longest = self._room - 1 if self.user_tokens is None else self.user_tokens
        if keep_query and len(query) > longest:
            raise InvalidInputError(
                f"a query has more than {longest} tokens, and truncate='document' cuts none: shorten it, or leave"
                " truncate out"
            )
        query = query[:longest]
        return query, document[: self._room - len(query)]

    def _assemble(self, pairs: Sequence[TokenPair], inputs: Inputs | None) -> Packed:
        """Pack pairs of token ids that fit."""
        pack = pack_pairs if self.user_tokens is None else pack_users
        packed = pack(pairs, self._cls, self._sep)
        if inputs is not None:
            inputs.note(packed, self._unknown)
        return packed


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


def _special_ids(single: Encoding, empty: Encoding, filled: Encoding) -> tuple[int, int]:
    """Return the ids of [CLS] and [SEP], as they occur in empty texts and a filled pair: names may differ."""
    parts = list(zip(filled.sequence_ids, filled.type_ids, strict=True))
    runs = [part for part, _ in groupby(parts)]
    # [CLS] a [SEP] b [SEP], seen as (text or None, type): the query's [SEP] is of type 0, the document's of type 1.
    if len(empty.ids) != 3 or empty.ids[1] != empty.ids[2] or runs != [(None, 0), (0, 0), (None, 0), (1, 1), (None, 1)]:
        raise ValueError("not BERT's tokenizer: a pair must become [CLS] a [SEP] b [SEP] with token types 0 and 1")
    if single.ids != empty.ids[:2] or any(single.type_ids):
        raise ValueError("not BERT's tokenizer: a single text must become [CLS] a [SEP] with token types 0")
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
