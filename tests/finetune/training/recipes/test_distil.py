"""Distillation: the ensemble's log-odds, and that a student learns them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.__main__ import main
from finetune.checkpoint.load import CheckpointError, load_checkpoint
from finetune.data.clicklog import read_click_log
from finetune.evaluation.metrics import click_probability
from finetune.evaluation.scoring import score_rows
from finetune.objectives.distillation import Distillation, click_distillation
from finetune.training.batches import Collator
from finetune.training.build import build
from finetune.training.model import UNBIASED
from finetune.training.recipes.distil import ENSEMBLE, Teachers, click_log_odds
from finetune.training.run import train
from finetune.training.settings import SettingsError, TrainSettings
from tests.finetune.training.interrupt import CtrlC

SETTINGS = TrainSettings(epochs=4, batch_size=16, learning_rate=3e-3, metric="log_loss")


@pytest.fixture(scope="module")
def teachers(base: Path, click_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two that learned what users like: one with a label, one with two."""
    folder = tmp_path_factory.mktemp("teachers")
    for name, labels in (("one", 1), ("two", 2)):
        settings = replace(SETTINGS, labels=labels, seed=labels)
        assert train(click_folder, str(base), folder / name, settings)["log_loss"] < 0.1
    return folder / "one", folder / "two"


@pytest.fixture(scope="module")
def meaningless(click_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same texts with clicks that say nothing: every second row of each text."""
    folder = tmp_path_factory.mktemp("meaningless")
    lines = (click_folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for place, row in enumerate(rows):
        row["click"] = (place // 16 + place) % 2
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "dev.jsonl").write_bytes((click_folder / "dev.jsonl").read_bytes())
    return folder


@pytest.mark.slow
def test_an_ensemble_is_the_mean_of_log_odds(teachers: tuple[Path, Path], click_folder: Path) -> None:
    rows = read_click_log(click_folder / "dev.jsonl")
    single = [click_log_odds(folder, rows) for folder in teachers]
    np.testing.assert_allclose(Teachers(teachers, 0.5).log_odds(rows), (single[0] + single[1]) / 2, rtol=1e-6)
    model, tokenizer, length = load_checkpoint(teachers[1])
    probability = click_probability(score_rows(model, tokenizer, rows, length), ["no click", "click"])
    np.testing.assert_allclose(1 / (1 + np.exp(-single[1])), probability, rtol=1e-5)
    metrics = Teachers(teachers, 0.5).evaluate(rows)
    assert [name for name, _ in metrics] == [*map(str, teachers), ENSEMBLE]
    assert metrics[-1][1]["auc"] > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["click", "pairwise", "listwise"])
def test_a_student_learns_from_its_teachers_what_no_click_says(
    objective: str, base: Path, meaningless: Path, teachers: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = replace(SETTINGS, objective=objective, batch_size=16 if objective == "click" else 4, metric="auc")
    alone = train(meaningless, str(base), tmp_path / "alone", settings, teachers=Teachers(teachers, 0.0))
    taught = train(meaningless, str(base), tmp_path / "taught", settings, teachers=Teachers(teachers, 1.0))
    assert taught["auc"] > 0.95 > alone["auc"]


@pytest.mark.slow
def test_a_student_of_fewer_layers_learns_from_teachers_that_have_more(
    base: Path, meaningless: Path, teachers: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = replace(SETTINGS, layers=1, metric="auc")
    assert train(meaningless, str(base), tmp_path / "small", settings, teachers=Teachers(teachers, 1.0))["auc"] > 0.95
    assert load_checkpoint(tmp_path / "small")[0].config.num_hidden_layers == 1


@pytest.mark.slow
def test_a_student_is_as_sure_as_its_teachers(
    base: Path, meaningless: Path, teachers: tuple[Path, Path], tmp_path: Path
) -> None:
    train(meaningless, str(base), tmp_path / "taught", SETTINGS, teachers=Teachers(teachers, 1.0))
    rows = read_click_log(meaningless / "dev.jsonl")
    student = click_log_odds(tmp_path / "taught", rows)
    expected = Teachers(teachers, 1.0).log_odds(rows)
    assert np.abs(1 / (1 + np.exp(-student)) - 1 / (1 + np.exp(-expected))).max() < 0.1


def test_nothing_of_a_position_is_learned_from_teachers(base: Path, joint_folder: Path) -> None:
    rows = read_click_log(joint_folder / "train.jsonl")[:16]
    model, tokenizer, length = build(str(base), rows, replace(SETTINGS, position_bias="estimated"))
    assert model.bias is not None
    torch.nn.init.constant_(model.bias.offsets, -1.0)
    batch = Collator(rows, tokenizer, model.heads.settings, length)([[place] for place in range(16)])
    outputs = model(**batch)
    moved = (outputs["logits"] - outputs[UNBIASED])[:, 0]
    assert set(moved.detach().round(decimals=4).tolist()) == {0.0, -1.0}, "the first position has no offset"
    taught = Distillation(click_distillation, 1.0)(torch.zeros(()), outputs[UNBIASED], torch.ones(16), batch["groups"])
    taught.backward()
    assert model.bias.offsets.grad is None
    assert model.click.classifier.weight.grad is not None


@pytest.mark.slow
def test_other_teachers_cannot_take_over_a_stopped_run(
    base: Path, click_folder: Path, teachers: tuple[Path, Path], tmp_path: Path
) -> None:
    def go(folders: tuple[Path, ...], *callbacks: Any) -> None:
        train(
            click_folder, str(base), tmp_path / "model", replace(SETTINGS, epochs=1),
            teachers=Teachers(folders, 0.5), callbacks=callbacks,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        go(teachers, CtrlC(3))
    with pytest.raises(SettingsError, match="another teachers"):
        go(teachers[:1])
    go(teachers)


def test_a_teacher_that_is_no_click_model_is_refused(base: Path, click_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no weights for classifier"):
        click_log_odds(base, read_click_log(click_folder / "dev.jsonl"))


@pytest.mark.slow
def test_the_command_reports_each_teacher_and_the_ensemble(
    base: Path, click_folder: Path, teachers: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "distil", "--teachers", *map(str, teachers), "--data", str(click_folder), "--base-model", str(base),
        "--output", str(tmp_path / "model"), "--epochs", "1",
    ]  # fmt: skip
    assert main(command) == 0
    printed = capsys.readouterr()
    assert [line.split(": ")[0] for line in printed.out.splitlines()] == [str(tmp_path / "model")]
    lines = [line for line in printed.err.splitlines() if ": dev auc" in line and "epoch" not in line]
    assert [line.split(": ")[0] for line in lines] == [*map(str, teachers), ENSEMBLE]
    with pytest.raises(SystemExit):
        main([*command, "--teacher-weight", "1.5"])
    assert "1.5 is not from 0 to 1" in capsys.readouterr().err
