"""The reference scores, and the checkpoints that are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizerFast

from finetune.checkpoint.load import CheckpointError, load_checkpoint
from finetune.data.clicklog import ClickRow
from finetune.scoring import score_rows, tokenize_pairs
from tests.finetune.conftest import make_config

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
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.5}))
    model, tokenizer, max_length = load_checkpoint(checkpoint)
    model.train()
    first, second = (score_rows(model, tokenizer, ROWS, max_length) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert score_rows(model, tokenizer, [], max_length).shape == (0, 1)


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, name: str, value: torch.Tensor | None) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights if value is None else {**weights, name: value}, folder / "model.safetensors", {"format": "pt"})


def test_refuses_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        load_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path)


def test_refuses_other_architectures(checkpoint: Path) -> None:
    edit_config(checkpoint, model_type="roberta")
    with pytest.raises(CheckpointError, match="model_type 'roberta'; only 'bert'"):
        load_checkpoint(checkpoint)


def test_refuses_pickled_weights(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    torch.save(load_file(weights), checkpoint / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(CheckpointError, match="pickled weights only"):
        load_checkpoint(checkpoint)
    (checkpoint / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        load_checkpoint(checkpoint)


def test_refuses_a_file_cut_short(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_refuses_a_broken_weight_by_name(checkpoint: Path, value: float) -> None:
    bias = torch.zeros(make_config().hidden_size)
    bias[3] = value
    edit_weights(checkpoint, "bert.pooler.dense.bias", bias)
    with pytest.raises(CheckpointError, match=r"weight bert\.pooler\.dense\.bias holds NaN or infinity"):
        load_checkpoint(checkpoint)


def test_refuses_missing_weights_by_name(checkpoint: Path, base: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no weights for classifier\.bias, classifier\.weight"):
        load_checkpoint(base)
    edit_weights(checkpoint, "bert.encoder.layer.1.output.dense.weight", None)
    with pytest.raises(CheckpointError, match=r"no weights for bert\.encoder\.layer\.1\.output\.dense\.weight"):
        load_checkpoint(checkpoint)


def test_refuses_weights_of_another_shape(checkpoint: Path) -> None:
    edit_weights(checkpoint, "classifier.weight", torch.zeros(2, make_config().hidden_size))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_checkpoint(checkpoint)


def test_refuses_another_models_tokenizer(checkpoint: Path) -> None:
    tokenizer = BertTokenizerFast.from_pretrained(checkpoint)
    tokenizer.add_tokens(["extra"])
    tokenizer.save_pretrained(checkpoint)
    with pytest.raises(CheckpointError, match="belong to different models"):
        load_checkpoint(checkpoint)
    (checkpoint / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="tokenizer cannot be loaded"):
        load_checkpoint(checkpoint)
