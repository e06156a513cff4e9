"""A click model and its tokenizer as a published version, small enough to read.

It computes logits from token ids by a formula, and the expected scores are computed by the tokenizers library directly,
so nothing of the client checks itself.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Encoding, Tokenizer, models, normalizers, pre_tokenizers, processors

from clickbert.wire.protocol import InferRequest

MODEL = "clickbert_onnx"
WORDS = ["the", "a", "cheap", "coffee", "tea", "bar", "cafe", "bank", "near", "me", "park", "museum", "of", "and", "in"]
WORDS += ["hotel", "pizza", "中", "文", "city", "##s", "##ing"]


def tokenizer_json(words: list[str] = WORDS) -> bytes:
    """A BERT tokenizer of the five special tokens, ASCII characters and some words."""
    characters = [chr(code) for code in range(33, 127)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *characters, *(f"##{char}" for char in characters)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special)
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return tokenizer.to_str().encode()


@dataclass
class Published:
    """One published version. `shift` tells one version's logits from another's."""

    tokenizer: bytes = field(default_factory=tokenizer_json)
    max_length: int = 32
    labels: tuple[str, ...] = ("click",)
    click_label: int = 0
    shift: float = 0.0
    sha256: str | None = None  # announced in place of the true one
    heads: dict | None = None  # what `heads_json` says; None: a server of an older release

    @property
    def user_tokens(self) -> int | None:
        """Of a query, which is sent once; None: queries are sent with every document."""
        return (self.heads or {}).get("user_tokens")

    def value(self, ids: list[int], types: list[int], salt: int = 1) -> float:
        total = sum(
            (place + salt) * (token + 7 * kind) for place, (token, kind) in enumerate(zip(ids, types, strict=True))
        )
        return (total % 997) / 997 * 6 - 3 + self.shift

    def logits(self, ids: list[int], types: list[int]) -> list[float]:
        value = self.value(ids, types)
        return [value if label == self.click_label else -value / 2 for label in range(len(self.labels))]

    def outputs(self, ids: list[int], types: list[int]) -> dict[str, list[float]]:
        """A row of every output that the model has."""
        heads = self.heads or {}
        rows = {"logits": self.logits(ids, types)}
        if heads.get("topics"):
            rows["topic_logits"] = [self.value(ids, types, 3 * topic + 2) for topic in range(len(heads["topics"]))]
        if heads.get("embedding_size"):
            vector = [self.value(ids, types, 5 * place + 3) for place in range(heads["embedding_size"])]
            rows["embedding"] = [number / math.hypot(*vector) for number in vector]
        if heads.get("passages") and heads["passages"]["aggregate"] == "attention":
            rows["passage_logits"] = [self.value(ids, types, 4)]
        return rows

    def expected(self, query: str, document: str) -> float:
        """The click probability, by way of the tokenizers library's own pairs and truncation."""
        tokenizer = Tokenizer.from_str(self.tokenizer.decode())
        if self.user_tokens is None:
            tokenizer.enable_truncation(self.max_length)
            encoding = tokenizer.encode(query, document)
        else:  # the query is cut to a length of its own
            user, text = (tokenizer.encode(each, add_special_tokens=False) for each in (query, document))
            user.truncate(self.user_tokens)
            text.truncate(self.max_length - 3 - len(user))
            encoding = tokenizer.post_process(user, text)
        logits = [float(np.float32(logit)) for logit in self.logits(encoding.ids, encoding.type_ids)]
        if len(logits) == 1:
            return sigmoid(logits[0])
        return math.exp(logits[self.click_label]) / sum(math.exp(logit) for logit in logits)

    def of_text(self, text: str) -> dict[str, list[float]]:
        """The outputs of a single text, by way of the tokenizers library's own form and truncation."""
        tokenizer = Tokenizer.from_str(self.tokenizer.decode())
        tokenizer.enable_truncation(self.max_length)
        encoding = tokenizer.encode(text)
        assert not any(encoding.type_ids)
        return self.outputs(encoding.ids, encoding.type_ids)

    def passages(self, query: str, document: str) -> list[Encoding]:
        """The pair's passages, by way of the tokenizers library's own windows."""
        tokenizer = Tokenizer.from_str(self.tokenizer.decode())
        user, text = (tokenizer.encode(each, add_special_tokens=False) for each in (query, document))
        room = self.max_length - 3
        if self.user_tokens is not None or len(user) + len(text) > room:
            user.truncate(self.user_tokens or max(room // 2, room - len(text)))
            size = room - len(user)
            if len(text) > size:
                text.truncate(size, stride=min(self.heads["passages"]["overlap"], size - 1))
        return [tokenizer.post_process(user, window) for window in (text, *text.overflowing)]


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


class FakeStatusError(Exception):
    """Makes the fake server answer with a gRPC status."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(status, message)
        self.status, self.message = status, message


def tokenizer_outputs(published: Published) -> dict[str, np.ndarray]:
    digest = published.sha256 or hashlib.sha256(published.tokenizer).hexdigest()
    texts = {"tokenizer_json": published.tokenizer, "tokenizer_sha256": digest.encode()}
    texts["labels_json"] = json.dumps(list(published.labels)).encode()
    if published.heads is not None:
        texts["heads_json"] = json.dumps(published.heads).encode()
    numbers = {"max_length": published.max_length, "click_label": published.click_label}
    return {name: np.frombuffer(text, np.uint8) for name, text in texts.items()} | {
        name: np.array([number], np.int32) for name, number in numbers.items()
    }


def model_outputs(published: Published, request: InferRequest) -> dict[str, np.ndarray]:
    assert {tensor.dtype for tensor in request.inputs.values()} == {np.dtype(np.int32)}
    columns = {name: tensor[0].tolist() for name, tensor in request.inputs.items()}
    limit = Tokenizer.from_str(published.tokenizer.decode()).get_vocab_size()
    found = []
    for ids, types in _pairs(columns) if published.user_tokens is None else _pairs_of_users(columns):
        rows = published.outputs(ids, types)
        readable = max(ids) < limit and len(ids) <= published.max_length
        found.append(rows if readable else {name: [math.nan] * len(row) for name, row in rows.items()})
    for name in request.outputs:
        if name not in found[0]:
            raise FakeStatusError(
                "INVALID_ARGUMENT", f"unexpected inference output '{name}' for model '{request.model}'"
            )
    return {name: np.array([[rows[name] for rows in found]], np.float32) for name in request.outputs or found[0]}


def _pairs(columns: dict[str, list[int]]) -> Iterator[tuple[list[int], list[int]]]:
    """The ids and types of each pair."""
    ids, types, lengths = (columns[name] for name in ("input_ids", "token_type_ids", "lengths"))
    assert sum(lengths) == len(ids) == len(types)
    start = 0
    for length in lengths:
        yield ids[start : start + length], types[start : start + length]
        start += length


def _pairs_of_users(columns: dict[str, list[int]]) -> Iterator[tuple[list[int], list[int]]]:
    """The ids and types of each pair, of a request that has each query once; pairs as Hugging Face has them."""
    ids, lengths = iter(columns["input_ids"]), iter(columns["lengths"])
    for length, pairs in zip(columns["user_lengths"], columns["user_pairs"], strict=True):
        assert pairs > 0
        user = [next(ids) for _ in range(length)]
        for _ in range(pairs):
            cls, *document = [next(ids) for _ in range(next(lengths))]
            yield [cls, *user, *document], [0] * (1 + length) + [1 if length else 0] * len(document)
    assert not [*ids, *lengths]
