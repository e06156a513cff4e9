"""Averaging: the mean of every weight, and what has no mean."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune.__main__ import main
from finetune.checkpoint.files import CheckpointError
from finetune.checkpoint.heads import Heads, HeadSettings, read_heads
from finetune.checkpoint.load import load_checkpoint
from finetune.checkpoint.save import save_checkpoint
from finetune.training.recipes.averaging import average
from tests.tiny import make_checkpoint


def make(folder: Path, seed: int, heads: HeadSettings | None = None, **config: Any) -> Path:
    make_checkpoint(folder, seed=seed, **config)
    if heads:
        model, tokenizer, _ = load_checkpoint(folder)
        torch.manual_seed(seed)
        save_checkpoint(model, tokenizer, folder, Heads(heads, 32))
    return folder


def test_each_weight_is_the_mean_of_those_of_all(tmp_path: Path) -> None:
    heads = HeadSettings(topics=("a", "b"), embedding_size=4)
    folders = [make(tmp_path / str(seed), seed, heads) for seed in range(3)]
    average(folders, tmp_path / "mean")
    for name in ("model.safetensors", "heads.safetensors"):
        mean = load_file(tmp_path / "mean" / name)
        members = [load_file(folder / name) for folder in folders]
        assert mean.keys() == members[0].keys()
        for key, weight in mean.items():
            expected = torch.stack([member[key].double() for member in members]).mean(0).float()
            torch.testing.assert_close(weight, expected, rtol=0, atol=1e-7)
            assert not torch.equal(weight, members[0][key]) or weight.unique().numel() == 1
    assert read_heads(tmp_path / "mean", 32).settings == heads
    load_checkpoint(tmp_path / "mean")


def test_the_mean_of_one_and_the_same_is_itself(tmp_path: Path) -> None:
    folder = make(tmp_path / "one", 0)
    average([folder, folder], tmp_path / "mean")
    assert load_file(tmp_path / "mean" / "model.safetensors").keys() == load_file(folder / "model.safetensors").keys()
    torch.testing.assert_close(
        load_file(tmp_path / "mean" / "model.safetensors"), load_file(folder / "model.safetensors"), rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        ({"labels": 2}, "another labels, weights' shapes"),
        ({"num_hidden_layers": 3}, "another weights' shapes"),
        ({"num_attention_heads": 2}, "another num_attention_heads"),
        ({"hidden_act": "relu"}, "another hidden_act"),
        ({"words": [f"v{number}" for number in range(150)]}, "another tokenizer"),
        ({"heads": HeadSettings(topics=("a", "b"))}, "another heads, weights' shapes"),
    ],
)
def test_checkpoints_of_different_kinds_are_refused(other: dict[str, Any], fault: str, tmp_path: Path) -> None:
    folders = [make(tmp_path / "one", 0), make(tmp_path / "two", 1, **other)]
    with pytest.raises(CheckpointError, match=f"two: has {fault}"):
        average(folders, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(make(tmp_path / str(seed), seed)) for seed in range(2)]
    assert main(["average", "--checkpoints", *folders, "--output", str(tmp_path / "mean")]) == 0
    assert "the mean of 2 checkpoints" in capsys.readouterr().out
    assert main(["average", "--checkpoints", folders[0], "--output", str(tmp_path / "other")]) == 1
    assert "a mean takes two or more" in capsys.readouterr().err
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "love.txt").write_text(json.dumps("keep me"))
    assert main(["average", "--checkpoints", *folders, "--output", str(tmp_path / "letters")]) == 1
    assert "not empty and no checkpoint" in capsys.readouterr().err
