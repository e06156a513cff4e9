"""Which tokens see which: the mask, what a checkpoint says of it, and that everybody's BERT computes what it did."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

from finetune.checkpoint.attention import (
    attended,
    default_user_tokens,
    set_user_tokens,
    user_once_mask,
    user_tokens,
)
from finetune.checkpoint.base_model import load_base
from finetune.checkpoint.heads import read_heads
from finetune.checkpoint.load import CheckpointError, load_checkpoint
from finetune.checkpoint.save import save_checkpoint
from finetune.data.clicklog import ClickRow
from finetune.evaluation.scoring import pad, score_rows, score_texts, tokenize_pairs, tokenize_texts
from tests.finetune.checkpoint.changes import PAIRS, set_config
from tests.tiny import JOINT, MAX_LENGTH, make_checkpoint, make_once_checkpoint

ROWS = [ClickRow("g", user, document, 0, 1) for user, document in PAIRS]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_once_checkpoint(tmp_path / "once", user_tokens=10)


def test_who_sees_whom() -> None:
    #                      CLS  u  SEP  c  SEP pad      a single text
    types = torch.tensor([[0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]])
    real = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]])
    mask = user_once_mask(types, real)
    assert mask.shape == (2, 1, 6, 6)
    everything, user = [1, 1, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0]
    seen = (mask == 0)[:, 0].int().tolist()
    assert seen[0] == [everything, user, user, everything, everything, everything]
    assert seen[1] == [[1, 1, 1, 1, 0, 0]] * 6
    assert set(mask.flatten().tolist()) == {0.0, -torch.inf}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_users_hidden_states_do_not_depend_on_the_candidate(folder: Path, implementation: str) -> None:
    model, tokenizer, length = load_checkpoint(folder)
    model.set_attn_implementation(implementation)
    pairs = [("w1 w2 w3", "w4"), ("w1 w2 w3", "w5 w6 w7 w8"), ("w1 w2 w3", "")]
    rows = [ClickRow("g", user, document, 0, 1) for user, document in pairs]
    batch = pad(tokenizer, tokenize_pairs(tokenizer, rows, length, user_tokens(model.config)))
    with torch.inference_mode():
        once = model.bert(**attended(model.config, batch)).last_hidden_state
        full = model.bert(**batch).last_hidden_state
    for other in (1, 2):
        torch.testing.assert_close(once[0, 1:5], once[other, 1:5], rtol=0, atol=1e-5)
        assert (full[0, 1:5] - full[other, 1:5]).abs().max() > 0.01
        assert (once[0, 0] - once[other, 0]).abs().max() > 0.01, "[CLS] sees the candidate"


def test_both_implementations_and_a_pair_alone_give_the_same_scores(folder: Path) -> None:
    model, tokenizer, length = load_checkpoint(folder)
    together = score_rows(model, tokenizer, ROWS, length)
    alone = np.concatenate([score_rows(model, tokenizer, [row], length) for row in ROWS])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    model.set_attn_implementation("eager")
    np.testing.assert_allclose(score_rows(model, tokenizer, ROWS, length), together, rtol=0, atol=1e-5)


def test_the_mask_matters_beside_a_user_text_alone(tmp_path: Path, folder: Path) -> None:
    plain = make_checkpoint(tmp_path / "plain")  # the same weights
    scores = []
    for each in (plain, folder):
        model, tokenizer, length = load_checkpoint(each)
        scores.append(score_rows(model, tokenizer, ROWS, length))
    difference = np.abs(scores[0] - scores[1])[:, 0]
    assert (difference[[bool(row.query) for row in ROWS]] > 1e-3).all()


def test_without_the_fields_the_batch_is_untouched(tmp_path: Path) -> None:
    model, tokenizer, length = load_checkpoint(make_checkpoint(tmp_path / "plain"))
    batch = pad(tokenizer, tokenize_pairs(tokenizer, ROWS, length))
    assert attended(model.config, batch) is batch
    assert user_tokens(model.config) is None


def test_single_texts_have_full_attention(tmp_path: Path) -> None:
    texts = ["w1 w2", "w3 w4 w5 " * 20, ""]
    found = []
    for folder in (
        make_checkpoint(tmp_path / "plain", heads=JOINT),
        make_once_checkpoint(tmp_path / "once", user_tokens=10, heads=JOINT),
    ):
        model, tokenizer, length = load_checkpoint(folder)
        found.append(score_texts(model, read_heads(folder, 32), tokenizer, texts, length))
        batch = pad(tokenizer, tokenize_texts(tokenizer, texts, length))
        with torch.inference_mode():
            masked = model.bert(**attended(model.config, batch)).last_hidden_state[:, 0]
            torch.testing.assert_close(masked, model.bert(**batch).last_hidden_state[:, 0], rtol=0, atol=1e-5)
    for name in found[0]:
        np.testing.assert_array_equal(found[0][name], found[1][name])


def test_the_fields_survive_saving_and_loading(folder: Path, tmp_path: Path) -> None:
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (stored["clickbert_attention"], stored["clickbert_user_tokens"]) == ("user_once", 10)
    model, tokenizer, _ = load_checkpoint(folder)
    assert user_tokens(model.config) == 10
    save_checkpoint(model, tokenizer, tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text(encoding="utf-8"))
    assert {name: again[name] for name in again if name.startswith("clickbert")} == {
        "clickbert_attention": "user_once",
        "clickbert_user_tokens": 10,
    }
    assert user_tokens(load_base(folder, 1, seed=0)[0].config) == 10
    plain = BertForSequenceClassification.from_pretrained(folder)
    assert plain.config.clickbert_attention == "user_once", "any tool loads it, and can ask"


def test_the_fields_can_be_set_and_taken_away(tmp_path: Path) -> None:
    config = BertConfig()
    set_user_tokens(config, None)
    set_user_tokens(config, 7)
    assert user_tokens(config) == 7
    set_user_tokens(config, None)
    assert user_tokens(config) is None
    assert not [name for name in config.to_dict() if name.startswith("clickbert")]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clickbert_attention": "user_twice"}, "clickbert_attention is 'user_twice'; it must be 'user_once'"),
        ({"clickbert_attention": "full"}, "clickbert_attention is 'full'"),
        ({"clickbert_attention": None}, "clickbert_attention is None"),
        ({"clickbert_attention": ["user_once"]}, "clickbert_attention is"),
        ({"clickbert_user_tokens": 0}, "clickbert_user_tokens is 0; it must be a whole number over 0"),
        ({"clickbert_user_tokens": "10"}, "clickbert_user_tokens is '10'"),
        ({"clickbert_user_tokens": True}, "clickbert_user_tokens is True"),
        ({"clickbert_user_tokens": 2.0}, "clickbert_user_tokens is 2.0"),
        ({"clickbert_user_tokens": MAX_LENGTH - 3}, "clickbert_user_tokens is 45, which leaves a candidate nothing"),
        ({"clickbert_user_tokens": 10**9}, "clickbert_user_tokens is 1000000000, which leaves a candidate nothing"),
    ],
)
def test_a_wrong_field_is_refused_by_name(folder: Path, fields: dict[str, object], message: str) -> None:
    set_config(folder, **fields)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)
    with pytest.raises(CheckpointError, match=message):
        load_base(folder, 1, seed=0)


@pytest.mark.parametrize(
    ("field", "value", "missing"),
    [
        ("clickbert_attention", "user_once", "clickbert_user_tokens"),
        ("clickbert_user_tokens", 10, "clickbert_attention"),
    ],
)
def test_one_field_without_the_other_is_refused(tmp_path: Path, field: str, value: object, missing: str) -> None:
    folder = make_checkpoint(tmp_path / "half")
    set_config(folder, **{field: value})
    with pytest.raises(CheckpointError, match=rf"config\.json: has {field} but no {missing}"):
        load_checkpoint(folder)


@given(st.integers(16, 4096))
@settings(max_examples=30)
def test_the_default_leaves_room_for_both(length: int) -> None:
    kept = default_user_tokens(length)
    assert 1 <= kept <= length - 3 - kept
