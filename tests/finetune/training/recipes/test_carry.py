"""A checkpoint that was fine-tuned with full attention, carried over to `user_once` on its own scores."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.__main__ import main
from finetune.checkpoint.attention import user_tokens
from finetune.checkpoint.base_model import load_base
from finetune.checkpoint.heads import read_heads
from finetune.checkpoint.load import CheckpointError, label_names, load_checkpoint
from finetune.data.clicklog import read_click_log
from finetune.evaluation.checkpoint import evaluate
from finetune.training import run
from finetune.training.recipes.averaging import average
from finetune.training.recipes.carry import carry
from finetune.training.recipes.distil import click_log_odds
from finetune.training.run import train
from finetune.training.settings import SettingsError, TrainSettings
from tests.finetune.checkpoint.changes import name_labels
from tests.finetune.training.interrupt import CtrlC
from tests.tiny import WORDS, make_checkpoint, make_click_log, make_once_checkpoint

SETTINGS = TrainSettings(epochs=2, batch_size=16, learning_rate=1e-3)


@pytest.fixture(scope="module")
def full(base: Path, click_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full") / "checkpoint"
    settings = replace(SETTINGS, epochs=6, learning_rate=3e-3, labels=2, max_length=40)
    assert train(click_folder, str(base), folder, settings)["auc"] > 0.95
    return folder


@pytest.fixture(scope="module")
def joint(base: Path, joint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joint") / "checkpoint"
    settings = replace(
        SETTINGS, epochs=4, learning_rate=3e-3, understanding=("topic", "similarity"), embedding_size=16,
        passages="mean", passage_overlap=3, passage_best=2,
    )  # fmt: skip
    train(joint_folder, str(base), folder, settings)
    return folder


@pytest.mark.slow
def test_it_gives_the_same_scores_under_the_other_mask(tmp_path: Path) -> None:
    full = make_checkpoint(tmp_path / "full")  # random: every token of both texts counts
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train", "dev"):  # the same texts, so that they can be learned by heart
        make_click_log(data / f"{name}.jsonl", 12, WORDS[:30])
    rows = read_click_log(data / "dev.jsonl")
    before = click_log_odds(full, rows)
    unadapted = make_once_checkpoint(tmp_path / "unadapted")
    carry(data, full, tmp_path / "once", TrainSettings(epochs=6))
    gaps = [np.abs(click_log_odds(folder, rows) - before).mean() for folder in (unadapted, tmp_path / "once")]
    assert gaps[1] < 0.8 * gaps[0]


@pytest.mark.slow
def test_it_is_the_same_model_but_for_its_attention(full: Path, click_folder: Path, tmp_path: Path) -> None:
    metrics = carry(click_folder, full, tmp_path / "once", SETTINGS)
    assert metrics["auc"] > 0.95
    model, _, longest = load_checkpoint(tmp_path / "once")
    assert (label_names(model), longest, user_tokens(model.config)) == (["no click", "click"], 40, 18)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [None, 1])
def test_heads_and_passages_stay(layers: int | None, joint: Path, joint_folder: Path, tmp_path: Path) -> None:
    carry(joint_folder, joint, tmp_path / "once", replace(SETTINGS, epochs=1, learning_rate=1e-5, layers=layers))
    before, after = (read_heads(folder, 32) for folder in (joint, tmp_path / "once"))
    assert after.settings == before.settings
    for name, weight in before.state_dict().items():
        assert (weight - after.state_dict()[name]).abs().max() < 0.05, "they were not drawn anew"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "full"}, "but --from-checkpoint {} gets 'user_once', unless --layers is below 2"),
        ({"max_length": 20}, "--max-length is 20, but --from-checkpoint {} has 40; leave it out"),
        ({"layers": 3}, "--layers is 3, but --from-checkpoint {} has 2; leave it out"),
        ({"layers": 2, "attention": "full"}, "--attention is 'full', but"),
        ({"passages": "max"}, "--passages is 'max', but"),
        ({"understanding": ("topic",)}, "--understanding is ('topic',), but"),
        ({"position_bias": "estimated"}, "--position-bias is 'estimated', but"),
        ({"full_first": 0.2}, "--full-first is 0.2, but"),
        ({"method": "prefix"}, "--attention user_once does not go with --method prefix"),
    ],
)
def test_settings_that_contradict_the_checkpoint_are_refused(
    options: dict[str, Any], message: str, full: Path, click_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=re.escape(message.format(full))):
        carry(click_folder, full, tmp_path / "once", replace(SETTINGS, **options))
    assert not list(tmp_path.iterdir())


def test_its_own_metrics_are_shown_and_held_against_what_it_becomes(
    full: Path, click_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(run, "plateau", lambda *arguments: given.append(arguments) or "it is stuck")
    carry(click_folder, full, tmp_path / "once", replace(SETTINGS, epochs=1))
    printed = capsys.readouterr().err
    own = evaluate(str(full), read_click_log(click_folder / "dev.jsonl")).metrics
    assert f"{full}: dev auc {own['auc']:.4f}" in printed
    assert "ensemble" not in printed
    assert "warning: it is stuck" in printed
    ((_, _, taught),) = given
    assert taught["auc"] == pytest.approx(own["auc"])


@pytest.mark.parametrize("attention", [None, "full", "user_once"])
def test_it_begins_with_its_own_layers(
    attention: str | None, full: Path, base: Path, click_folder: Path, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, epochs=1, learning_rate=1e-6, layers=1, attention=attention)
    carry(click_folder, full, tmp_path / "small", settings)
    whole, *_ = load_checkpoint(full)
    small, *_ = load_checkpoint(tmp_path / "small")
    assert small.config.num_hidden_layers == 1
    assert (user_tokens(small.config) is None) == (attention == "full")
    untouched, *_ = load_base(base, labels=2, seed=0)
    before, own, kept = (model.bert.encoder.layer[0].output.dense.weight for model in (untouched, whole, small))
    assert (own - kept).abs().max() < 1e-3 < (before - kept).abs().max()


def test_one_that_has_its_user_text_once_can_lose_layers(full: Path, click_folder: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=1)
    carry(click_folder, full, tmp_path / "once", settings)
    with pytest.raises(SettingsError, match="--attention is 'full', but"):
        carry(click_folder, tmp_path / "once", tmp_path / "small", replace(settings, layers=1, attention="full"))
    carry(click_folder, tmp_path / "once", tmp_path / "small", replace(settings, layers=1))
    small, *_ = load_checkpoint(tmp_path / "small")
    assert (small.config.num_hidden_layers, user_tokens(small.config)) == (1, 18)


def test_data_without_the_heads_topics_are_refused(
    joint: Path, click_folder: Path, joint_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="--understanding topic needs rows with a 'topic'"):
        carry(click_folder, joint, tmp_path / "once", SETTINGS)
    (tmp_path / "data").mkdir()
    for name in ("train", "dev"):
        text = (joint_folder / f"{name}.jsonl").read_text(encoding="utf-8")
        (tmp_path / "data" / f"{name}.jsonl").write_text(text.replace('"topic": "soup"', '"topic": "salad"'))
    with pytest.raises(SettingsError, match=r"has the topics bike, moon, soup, tea; .* must have the same ones"):
        carry(tmp_path / "data", joint, tmp_path / "once", SETTINGS)


def test_checkpoints_that_cannot_be_carried_over_are_refused(
    full: Path, base: Path, click_folder: Path, tmp_path: Path
) -> None:
    carry(click_folder, full, tmp_path / "once", replace(SETTINGS, epochs=1))
    with pytest.raises(
        CheckpointError, match=r"has the attention user_once already; .* --layers with fewer than its 2"
    ):
        carry(click_folder, tmp_path / "once", tmp_path / "twice", SETTINGS)
    with pytest.raises(CheckpointError, match="not a fine-tuned click model"):
        carry(click_folder, base, tmp_path / "twice", SETTINGS)
    with pytest.raises(CheckpointError, match="has another attention than"):
        average([full, tmp_path / "once"], tmp_path / "mean")
    other = tmp_path / "other"
    other.mkdir()
    for path in full.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    name_labels(other, "clicked", "skipped")
    with pytest.raises(CheckpointError, match=r"its labels are \['clicked', 'skipped'\]; only a checkpoint of"):
        carry(click_folder, other, tmp_path / "twice", SETTINGS)


@pytest.mark.slow
def test_an_option_that_says_its_default_is_the_checkpoints(full: Path, click_folder: Path, tmp_path: Path) -> None:
    command = [
        "train", "--from-checkpoint", str(full), "--data", str(click_folder), "--output", str(tmp_path / "once"),
        "--epochs", "1", "--labels", "1", "--full-first", "0.5",
    ]  # fmt: skip
    assert main(command) == 0
    model, *_ = load_checkpoint(tmp_path / "once")
    assert label_names(model) == ["no click", "click"]


@pytest.mark.slow
def test_a_folder_with_a_bases_name_is_the_folder(
    full: Path, click_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(full, tmp_path / "minilm")
    settings = replace(SETTINGS, epochs=1)
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(
            "finetune.training.recipes.carry.train",
            lambda *places, **options: train(*places, **options, callbacks=[CtrlC(7)]),
        )
        with pytest.raises(KeyboardInterrupt):
            carry(click_folder, Path("minilm"), tmp_path / "once", settings)
    carry(click_folder, tmp_path / "minilm", tmp_path / "once", settings)  # goes on, else it would be refused
    described = json.loads((tmp_path / "once-run" / "settings.json").read_text(encoding="utf-8"))
    assert described["base"] == str(tmp_path / "minilm")
    model, *_ = load_checkpoint(tmp_path / "once")
    assert model.config.hidden_size == 32, "MiniLM has 384"


@pytest.mark.slow
def test_the_command_goes_on_where_it_was_stopped(
    full: Path, click_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(name: str) -> list[str]:
        return [
            "train", "--from-checkpoint", str(full), "--data", str(click_folder), "--output", str(tmp_path / name),
            "--epochs", "1",
        ]  # fmt: skip

    assert main(command("whole")) == 0
    settings = TrainSettings(epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(
            "finetune.training.recipes.carry.train",
            lambda *places, **options: train(*places, **options, callbacks=[CtrlC(7)]),
        )
        with pytest.raises(KeyboardInterrupt):
            carry(click_folder, full, tmp_path / "stopped", settings)
    assert main(command("stopped")) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]
