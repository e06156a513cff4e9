"""The reference implementation: a checkpoint's logits by Hugging Face's own padded forward pass, in FP32.

`export` proves its graphs against `score_rows`, so the code is plain: evaluation mode (no dropout), FP32 weights, one
padded batch after another. Rows are sorted by length first, which saves padding and changes no result.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

from finetune.checkpoint.quiet import quiet_transformers
from finetune.data.clicklog import ClickRow


def score_rows(
    model: BertForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[ClickRow],
    max_length: int,
    batch_size: int = 32,
) -> NDArray[np.float32]:
    """Score every row's pair `[CLS] user [SEP] candidate [SEP]`: FP32 logits [rows, labels] in the rows' order.

    Pairs longer than `max_length` are cut by Hugging Face's "longest_first". Leaves the model in evaluation mode.
    """
    model.train(mode=False)
    pairs = tokenize_pairs(tokenizer, rows, max_length)
    logits = np.zeros((len(rows), int(model.config.num_labels or 0)), dtype=np.float32)
    by_length = sorted(range(len(pairs)), key=lambda index: len(pairs[index]["input_ids"]))
    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            chosen = by_length[start : start + batch_size]
            logits[chosen] = model(**pad(tokenizer, [pairs[index] for index in chosen])).logits.float().numpy()
    return logits


def tokenize_pairs(
    tokenizer: PreTrainedTokenizerFast, rows: Sequence[ClickRow], max_length: int
) -> list[dict[str, list[int]]]:
    """Tokenize every row's pair, unpadded: `input_ids` and `token_type_ids`, at most `max_length` tokens."""
    if not rows:
        return []
    encoded = tokenizer(
        [row.query for row in rows],
        [row.document for row in rows],
        truncation=True,
        max_length=max_length,
        return_attention_mask=False,
        return_token_type_ids=True,
    )
    keys = ("input_ids", "token_type_ids")
    return [{key: encoded[key][index] for key in keys} for index in range(len(rows))]


def pad(tokenizer: PreTrainedTokenizerFast, pairs: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pad pairs on the right to the longest of them: the model's three inputs, each int64 [pairs, longest].

    The tokenizer's own `padding_side` is ignored: padding on the left would shift BERT's position ids.
    """
    with quiet_transformers():  # a fast tokenizer warns that pad() is slow; sorting by length needs it
        padded = tokenizer.pad(
            list(pairs), padding=True, padding_side="right", return_attention_mask=True, return_tensors="pt"
        )
    return {key: padded[key] for key in ("input_ids", "token_type_ids", "attention_mask")}
