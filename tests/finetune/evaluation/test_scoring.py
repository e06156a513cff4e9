"""The reference scores: Hugging Face's own forward pass, in batches."""

from pathlib import Path

import numpy as np
import torch

from finetune.checkpoint.load import load_checkpoint
from finetune.data.clicklog import ClickRow
from finetune.evaluation.scoring import score_rows, tokenize_pairs, tokenize_passages
from tests.finetune.checkpoint.changes import set_config

ROWS = [ClickRow("g", "likes tea " * users, "new moon " * items, 0, 1) for users in (0, 1, 9) for items in (1, 4, 30)]


def test_scores_equal_one_pair_at_a_time(checkpoint: Path) -> None:
    model, tokenizer, max_length = load_checkpoint(checkpoint)
    assert max_length == 48
    logits = score_rows(model, tokenizer, ROWS, max_length, batch_size=4)
    assert logits.shape == (len(ROWS), 1)
    assert logits.dtype == np.float32
    for row, expected in zip(ROWS, logits, strict=True):
        encoded = tokenizer(row.query, row.document, truncation=True, max_length=max_length, return_tensors="pt")
        with torch.inference_mode():
            alone = model(**encoded).logits[0].numpy()
        np.testing.assert_allclose(expected, alone, rtol=0, atol=1e-6)


def test_pairs_are_cut_to_the_longest(checkpoint: Path) -> None:
    _, tokenizer, max_length = load_checkpoint(checkpoint)
    pairs = tokenize_pairs(tokenizer, ROWS, max_length)
    assert max(len(pair["input_ids"]) for pair in pairs) == max_length
    assert all(len(pair["input_ids"]) == len(pair["token_type_ids"]) for pair in pairs)
    assert min(len(pair["input_ids"]) for pair in pairs) == 5, "no padding: [CLS] [SEP] new moon [SEP]"


def test_dropout_is_off_and_no_rows_are_fine(checkpoint: Path) -> None:
    set_config(checkpoint, hidden_dropout_prob=0.5)
    model, tokenizer, max_length = load_checkpoint(checkpoint)
    model.train()
    first, second = (score_rows(model, tokenizer, ROWS, max_length) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert score_rows(model, tokenizer, [], max_length).shape == (0, 1)


def test_a_long_user_text_beside_an_empty_document_is_one_passage(checkpoint: Path) -> None:
    _, tokenizer, max_length = load_checkpoint(checkpoint)
    for words in (10, 100):
        (passage,) = tokenize_passages(tokenizer, "likes " * words, "", max_length, overlap=8)
        (pair,) = tokenize_pairs(tokenizer, [ClickRow("g", "likes " * words, "", 0, 1)], max_length)
        assert passage == pair
