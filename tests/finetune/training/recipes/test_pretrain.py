"""Continued pre-training: masked words are guessed better, and the result is a base."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertForMaskedLM

from finetune.__main__ import main
from finetune.checkpoint.files import CheckpointError
from finetune.checkpoint.tokenizer import load_tokenizer
from finetune.data.clicklog import ClickLogError
from finetune.training.build import build
from finetune.training.recipes.pretrain import Masking, PretrainSettings, pretrain, read_texts
from finetune.training.run import train
from finetune.training.settings import SettingsError, TrainSettings
from tests.finetune.training.interrupt import CtrlC

SETTINGS = PretrainSettings(epochs=4, batch_size=8, learning_rate=3e-3)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts in which a word tells the next ones: "tea" is always "new", "moon" always "about"."""
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    letters = "abcdefghijklmnopqrst"
    path.write_text(
        "".join(
            f"likes {a} tea new tea new {b}\nlikes {b} moon about moon about {a}\n" for a in letters for b in "xyz"
        ),
        encoding="utf-8",
    )
    return path


@pytest.mark.slow
def test_masked_words_of_held_out_texts_are_guessed_better(texts: Path, base: Path, tmp_path: Path) -> None:
    before, after = pretrain(texts, str(base), tmp_path / "model", SETTINGS)
    assert before > 3, "a new head knows nothing"
    assert after < before - 0.5
    again, _ = pretrain(texts, str(base), tmp_path / "other", SETTINGS)
    assert again == before, "the same texts, the same masks"


@pytest.mark.slow
def test_the_result_is_a_base_for_train(texts: Path, base: Path, click_folder: Path, tmp_path: Path) -> None:
    pretrain(texts, str(base), tmp_path / "model", SETTINGS)
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert files == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert not list((tmp_path / "model-run").glob("checkpoint-*"))
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "model" / "model.safetensors")
    assert before.keys() == after.keys(), "no head for words"
    same = {name for name, weight in after.items() if torch.equal(weight, before[name])}
    assert same == {"pooler.dense.weight", "pooler.dense.bias"}
    model, _, _ = build(str(tmp_path / "model"), [], TrainSettings())
    torch.testing.assert_close(model.click.bert.state_dict(), after)
    settings = TrainSettings(epochs=2, batch_size=16, learning_rate=3e-3)
    train(click_folder, str(tmp_path / "model"), tmp_path / "click", settings)


@pytest.mark.slow
def test_a_head_of_the_base_is_used(texts: Path, base: Path, tmp_path: Path) -> None:
    """As most bases of the hub have one: it begins where the last run ended."""
    model = BertForMaskedLM.from_pretrained(base)
    with torch.no_grad():
        model.cls.predictions.bias[load_tokenizer(base).convert_tokens_to_ids("likes")] = 20.0
    model.save_pretrained(tmp_path / "base")
    load_tokenizer(base).save_pretrained(tmp_path / "base")
    drawn, _ = pretrain(texts, str(base), tmp_path / "model", replace(SETTINGS, epochs=1))
    own, _ = pretrain(texts, str(tmp_path / "base"), tmp_path / "other", replace(SETTINGS, epochs=1))
    assert own > drawn + 5, "it believes that every word is 'likes'"


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_weights(texts: Path, base: Path, tmp_path: Path) -> None:
    whole = pretrain(texts, str(base), tmp_path / "whole", SETTINGS)
    with pytest.raises(KeyboardInterrupt, match="give the same command again"):
        pretrain(texts, str(base), tmp_path / "stopped", SETTINGS, callbacks=[CtrlC(20)])
    with pytest.raises(SettingsError, match="another mask was stopped"):
        pretrain(texts, str(base), tmp_path / "stopped", PretrainSettings(4, 8, 3e-3, mask=0.2))
    assert pretrain(texts, str(base), tmp_path / "stopped", SETTINGS) == pytest.approx(whole, abs=1e-5)
    for name, weight in load_file(tmp_path / "whole" / "model.safetensors").items():
        stopped = load_file(tmp_path / "stopped" / "model.safetensors")[name]
        torch.testing.assert_close(stopped, weight, rtol=1e-4, atol=1e-5)


def test_masks_are_new_in_each_epoch_and_leave_other_randomness_alone(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    encoded = [dict(tokenizer("likes new tea about moon " * 4)) for _ in range(8)]
    masking = Masking(tokenizer, PretrainSettings(mask=0.3), encoded)
    state = torch.get_rng_state()
    first, again = (masking(range(8))["input_ids"] for _ in range(2))
    masking.epoch = 1
    other = masking(range(8))["input_ids"]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())
    shares = [(masking([place])["labels"] >= 0).float().mean() for place in range(8)]
    assert 0.1 < float(torch.stack(shares).mean()) < 0.5


def test_texts_are_those_of_a_file_or_of_a_log(click_folder: Path, texts: Path, tmp_path: Path) -> None:
    assert set(read_texts(click_folder)) == {
        *(f"likes {topic}" for topic in ("tea", "bike", "moon", "soup")),
        *(f"new {topic} {topic}" for topic in ("tea", "bike", "moon", "soup")),
    }
    (tmp_path / "few.txt").write_text("one\n\n  one \ntwo\n", encoding="utf-8")
    assert read_texts(tmp_path / "few.txt") == ["one", "two"]
    (tmp_path / "few.txt").write_text("one\none", encoding="utf-8")
    with pytest.raises(ClickLogError, match=r"few\.txt: has 1 texts"):
        read_texts(tmp_path / "few.txt")
    (tmp_path / "few.txt").write_bytes("één".encode("latin-1"))
    with pytest.raises(ClickLogError, match=r"few\.txt: cannot be read as text"):
        read_texts(tmp_path / "few.txt")
    with pytest.raises(ClickLogError, match="cannot be read"):
        read_texts(tmp_path / "nothing.txt")


def test_refuses_a_base_without_a_mask_token_and_a_length_that_it_does_not_take(
    texts: Path, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="--max-length is 49; this base takes 8 to 48"):
        pretrain(texts, str(checkpoint), tmp_path / "model", PretrainSettings(max_length=49))
    path = checkpoint / "tokenizer_config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**fields, "mask_token": None}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="no mask token"):
        pretrain(texts, str(checkpoint), tmp_path / "model", SETTINGS)
    assert not (tmp_path / "model-run").exists()


def test_command(texts: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "model"
    command = ["pretrain", "--base-model", str(base), "--output", str(output), "--epochs", "1"]
    assert main([*command, "--texts", str(texts)]) == 0
    assert "masked-word loss on held-out texts" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(command)
    assert "--texts --data is required" in capsys.readouterr().err
