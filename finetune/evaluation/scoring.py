"""The reference implementation: a checkpoint's logits by Hugging Face's own padded forward pass, in FP32.

Cuts and attention are those that the model's config asks for (`finetune.checkpoint.attention`).

`export` proves its graphs against `score_rows`, so the code is plain: evaluation mode (no dropout), FP32 weights, one
padded batch after another. Rows are sorted by length first, which saves padding and changes no result.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

from finetune.checkpoint.attention import SPECIAL_TOKENS, attended, user_tokens
from finetune.checkpoint.heads import Heads, Passages
from finetune.checkpoint.quiet import quiet_transformers
from finetune.data.clicklog import ClickRow
from finetune.names import MAX, MEAN

KEYS = ("input_ids", "token_type_ids")


def score_rows(
    model: BertForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[ClickRow],
    max_length: int,
    batch_size: int = 32,
) -> NDArray[np.float32]:
    """Score every row's pair `[CLS] user [SEP] candidate [SEP]`: FP32 logits [rows, labels] in the rows' order.

    Pairs longer than `max_length` are cut (`tokenize_pairs`). Leaves the model in evaluation mode.
    """
    model.train(mode=False)
    pairs = tokenize_pairs(tokenizer, rows, max_length, user_tokens(model.config))
    logits = np.zeros((len(rows), int(model.config.num_labels or 0)), dtype=np.float32)
    with torch.inference_mode():
        for chosen, batch in batches_by_length(model, tokenizer, pairs, batch_size):
            logits[chosen] = model(**attended(model.config, batch)).logits.float().cpu().numpy()
    return logits


def score_documents(
    model: BertForSequenceClassification,
    heads: Heads,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[ClickRow],
    max_length: int,
    batch_size: int = 32,
) -> NDArray[np.float32]:
    """Score rows as the checkpoint is to be served: in passages if it was trained so, else as `score_rows` does.

    Returns FP32 logits [rows, labels]; in passages, [rows, 1]. Leaves both in evaluation mode.
    """
    settings = heads.settings.passages
    if settings is None:
        return score_rows(model, tokenizer, rows, max_length, batch_size)
    kept = user_tokens(model.config)
    read = [tokenize_passages(tokenizer, row.query, row.document, max_length, settings.overlap, kept) for row in rows]
    flat = [passage for passages in read for passage in passages]
    logits, weights = score_passages(model, heads, tokenizer, flat, batch_size)
    ends = np.cumsum([len(passages) for passages in read])
    spans = [slice(end - len(passages), end) for end, passages in zip(ends, read, strict=True)]
    found = [aggregate(logits[span], None if weights is None else weights[span], settings) for span in spans]
    return np.array(found, dtype=np.float32)[:, None]


def score_passages(
    model: BertForSequenceClassification,
    heads: Heads,
    tokenizer: PreTrainedTokenizerFast,
    passages: Sequence[dict[str, list[int]]],
    batch_size: int = 32,
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Compute the click logits [passages] of tokenized passages, and their `passage_logits` if there is such a head."""
    model.train(mode=False)
    heads.train(mode=False)
    logits = np.zeros(len(passages), dtype=np.float32)
    weights = None if heads.passage is None else np.zeros(len(passages), dtype=np.float32)
    with torch.inference_mode():
        for chosen, batch in batches_by_length(model, tokenizer, passages, batch_size):
            states = model.bert(**attended(model.config, batch))
            logits[chosen] = model.classifier(states.pooler_output)[:, 0].float().cpu().numpy()
            if weights is not None and heads.passage is not None:
                weights[chosen] = heads.passage(states.last_hidden_state[:, 0])[:, 0].float().cpu().numpy()
    return logits, weights


def score_texts(
    model: BertForSequenceClassification,
    heads: Heads,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    max_length: int,
    batch_size: int = 32,
) -> dict[str, NDArray[np.float32]]:
    """Compute the further heads' outputs of single texts `[CLS] text [SEP]`, token types 0: FP32, by output's name.

    Texts longer than `max_length` are cut. Leaves both in evaluation mode.
    """
    model.train(mode=False)
    heads.train(mode=False)
    singles = tokenize_texts(tokenizer, texts, max_length)
    nothing = np.zeros(0, np.float32)
    found: dict[str, list[NDArray[np.float32]]] = {name: [nothing] * len(texts) for name in heads.outputs}
    with torch.inference_mode():
        for chosen, batch in batches_by_length(model, tokenizer, singles, batch_size):
            first = model.bert(**batch).last_hidden_state[:, 0]
            for name, rows in heads(first).items():
                for index, row in zip(chosen, rows.float().cpu().numpy(), strict=True):
                    found[name][index] = row
    return {name: np.stack(rows) if rows else np.zeros((0, 0), np.float32) for name, rows in found.items()}


def batches_by_length(
    model: BertForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[dict[str, list[int]]],
    batch_size: int,
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Give tokenized pairs as padded batches of similar length: their places, and the batch where the model is."""
    by_length = sorted(range(len(pairs)), key=lambda index: len(pairs[index]["input_ids"]))
    for start in range(0, len(pairs), batch_size):
        chosen = by_length[start : start + batch_size]
        batch = pad(tokenizer, [pairs[index] for index in chosen])
        yield chosen, {name: tensor.to(model.device) for name, tensor in batch.items()}


def tokenize_passages(
    tokenizer: PreTrainedTokenizerFast,
    query: str,
    document: str,
    max_length: int,
    overlap: int,
    kept: int | None = None,
) -> list[dict[str, list[int]]]:
    """Tokenize a pair that may be too long as pairs of the user text with each passage of the document.

    A pair that fits is one passage, the same tokens as `tokenize_pairs` gives. Else the user text keeps half of the
    room, or what the document leaves of it, and the document is cut into windows that fill the rest, each sharing
    `overlap` tokens with the one before (or as many as leave a step of one). With `kept` (`user_tokens`), the user text
    keeps at most so many tokens, whatever the document is. The client has the same
    rule (`clickbert.wire.tokenization`).
    """
    plain = tokenizer.backend_tokenizer
    plain.no_truncation()
    plain.no_padding()
    user = plain.encode(query, add_special_tokens=False)
    text = plain.encode(document, add_special_tokens=False)
    room = max_length - SPECIAL_TOKENS
    if kept is not None:
        user.truncate(kept)
    if len(user) + len(text) > room:
        if kept is None:
            user.truncate(max(room // 2, room - len(text)))
        left = room - len(user)
        if len(text) > left:  # an empty document leaves the user text all of the room
            text.truncate(left, stride=min(overlap, left - 1))
    passages = [plain.post_process(user, window) for window in (text, *text.overflowing)]
    return [{"input_ids": passage.ids, "token_type_ids": passage.type_ids} for passage in passages]


def aggregate(logits: NDArray[np.float32], weights: NDArray[np.float32] | None, passages: Passages) -> float:
    """Aggregate the logits [passages] of one document's passages (see `Passages`); `weights` are `passage_logits`."""
    values = logits.astype(np.float64)
    if passages.aggregate == MAX:
        return float(values.max())
    if passages.aggregate == MEAN:
        return float(np.sort(values)[-passages.best :].mean())
    if weights is None:
        raise ValueError("attention over passages needs their passage_logits")
    exponents = np.exp(weights.astype(np.float64) - weights.max())
    return float((values * exponents).sum() / exponents.sum())


def tokenize_pairs(
    tokenizer: PreTrainedTokenizerFast, rows: Sequence[ClickRow], max_length: int, kept: int | None = None
) -> list[dict[str, list[int]]]:
    """Tokenize every row's pair, unpadded: `input_ids` and `token_type_ids`, at most `max_length` tokens.

    Longer pairs are cut by Hugging Face's "longest_first". With `kept` (`user_tokens`), a user text keeps at most so
    many tokens, whatever the candidate is, and the candidate what is left.
    """
    queries, documents = [row.query for row in rows], [row.document for row in rows]
    if kept is None:
        return _tokenize(tokenizer, max_length, queries, documents)
    plain = tokenizer.backend_tokenizer
    plain.no_truncation()
    plain.no_padding()
    sides = (plain.encode_batch(texts, add_special_tokens=False) for texts in (queries, documents))
    pairs = []
    for user, candidate in zip(*sides, strict=True):
        user.truncate(kept)
        candidate.truncate(max_length - SPECIAL_TOKENS - len(user))
        pair = plain.post_process(user, candidate)
        pairs.append({"input_ids": pair.ids, "token_type_ids": pair.type_ids})
    return pairs


def tokenize_texts(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], max_length: int
) -> list[dict[str, list[int]]]:
    """Tokenize single texts as `tokenize_pairs` does pairs."""
    return _tokenize(tokenizer, max_length, list(texts))


def _tokenize(tokenizer: PreTrainedTokenizerFast, max_length: int, *sides: list[str]) -> list[dict[str, list[int]]]:
    if not sides[0]:
        return []
    encoded = tokenizer(
        *sides,
        truncation=True,
        max_length=max_length,
        return_attention_mask=False,
        return_token_type_ids=True,
    )
    return [{key: encoded[key][index] for key in KEYS} for index in range(len(sides[0]))]


def pad(tokenizer: PreTrainedTokenizerFast, pairs: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pad pairs on the right to the longest of them: the model's three inputs, each int64 [pairs, longest].

    The tokenizer's own `padding_side` is ignored: padding on the left would shift BERT's position ids.
    """
    with quiet_transformers():  # a fast tokenizer warns that pad() is slow; sorting by length needs it
        padded = tokenizer.pad(
            list(pairs), padding=True, padding_side="right", return_attention_mask=True, return_tensors="pt"
        )
    return {key: padded[key] for key in ("input_ids", "token_type_ids", "attention_mask")}
