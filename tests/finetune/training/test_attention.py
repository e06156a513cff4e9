"""Training for `user_once`: begun with full attention, measured with the mask, and saved so."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import TrainerCallback

from finetune.__main__ import main
from finetune.checkpoint.attention import user_tokens
from finetune.checkpoint.load import load_checkpoint
from finetune.data.clicklog import ClickRow, read_click_log
from finetune.evaluation.checkpoint import evaluate
from finetune.evaluation.metrics import click_probability, evaluate_ranking
from finetune.evaluation.scoring import score_rows
from finetune.training.batches import Collator
from finetune.training.build import build
from finetune.training.loop.callbacks import SwitchAttention
from finetune.training.loop.dev import Dev
from finetune.training.run import train
from finetune.training.settings import SettingsError, TrainSettings
from tests.finetune.conftest import make_tokenizer
from tests.finetune.training.interrupt import CtrlC
from tests.tiny import make_checkpoint

SETTINGS = TrainSettings(epochs=4, batch_size=16, learning_rate=3e-3, attention="user_once", dropout=0.1)
STEPS = 4 * 24


class Watch(TrainerCallback):
    """Writes down each step's attention."""

    def __init__(self) -> None:
        self.full: dict[int, bool] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.full[state.global_step] = others["model"].attends_fully


def test_a_training_begins_with_full_attention_and_goes_on_without(
    base: Path, click_folder: Path, tmp_path: Path
) -> None:
    watch = Watch()
    metrics = train(click_folder, str(base), tmp_path / "out", replace(SETTINGS, full_first=0.3), callbacks=[watch])
    assert [step for step, full in watch.full.items() if full] == list(range(round(0.3 * STEPS)))
    assert len(watch.full) == STEPS
    model, _, longest = load_checkpoint(tmp_path / "out")
    assert user_tokens(model.config) == (longest - 3) // 2
    dev = read_click_log(click_folder / "dev.jsonl")
    again = evaluate(str(tmp_path / "out"), dev, draws=0).metrics
    assert again["auc"] == pytest.approx(metrics["auc"])
    assert again["log_loss"] == pytest.approx(metrics["log_loss"], abs=1e-6), "dev was measured with the mask"
    assert metrics["auc"] > 0.95


class Evaluations(TrainerCallback):
    """Writes down the step of each evaluation, and the log loss under the mask."""

    def __init__(self, rows: list[ClickRow]) -> None:
        self.rows = rows
        self.steps: list[int] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.steps.append(state.global_step)
        model, tokenizer = others["model"], make_tokenizer()
        scores = click_probability(score_rows(model.click, tokenizer, self.rows, 48), ["click"])
        assert others["metrics"]["eval_log_loss"] == pytest.approx(evaluate_ranking(self.rows, scores)["log_loss"])


def test_evaluations_before_the_switch_measure_the_mask_too(base: Path, click_folder: Path, tmp_path: Path) -> None:
    watch = Evaluations(read_click_log(click_folder / "dev.jsonl"))
    train(click_folder, str(base), tmp_path / "out", replace(SETTINGS, epochs=2), callbacks=[watch])
    assert watch.steps == [24, 48]


@pytest.fixture
def measured_as(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives the evaluations to come these AUCs, whatever the model."""

    def patch(*aucs: float) -> None:
        left, real = list(aucs), Dev.measure
        monkeypatch.setattr(Dev, "measure", lambda *given: real(*given) | {"auc": left.pop(0)})

    return patch


@pytest.mark.parametrize("stops", [(), (30,), (80,)])
def test_no_evaluation_up_to_the_switch_is_the_best_one(
    stops: tuple[int, ...], base: Path, click_folder: Path, tmp_path: Path, measured_as: Any
) -> None:
    measured_as(0.9, 0.8, 0.7, 0.6)  # after 24, 48, 72 and 96 steps; the switch is after 48
    kept = []
    for step in stops:
        with pytest.raises(KeyboardInterrupt):
            train(click_folder, str(base), tmp_path / "out", SETTINGS, callbacks=[CtrlC(step)])
        kept = list((tmp_path / "out-run").glob("checkpoint-*"))
    assert len(kept) <= 2
    assert train(click_folder, str(base), tmp_path / "out", SETTINGS)["auc"] == 0.7


@pytest.mark.parametrize("stops", [(), (60,)])
def test_no_evaluation_up_to_the_switch_counts_for_patience(
    stops: tuple[int, ...], base: Path, click_folder: Path, tmp_path: Path, measured_as: Any
) -> None:
    settings = replace(SETTINGS, epochs=6, full_first=0.3, patience=1)  # a switch after 43 of 144 steps
    measured_as(0.9, 0.6, 0.7, 0.65)  # and no fifth one
    for step in stops:
        with pytest.raises(KeyboardInterrupt):
            train(click_folder, str(base), tmp_path / "out", settings, callbacks=[CtrlC(step)])
    watch = Watch()
    assert train(click_folder, str(base), tmp_path / "out", settings, callbacks=[watch])["auc"] == 0.7
    assert max(watch.full) == 4 * 24 - 1


def test_evaluations_of_other_runs_all_count(base: Path, click_folder: Path, tmp_path: Path, measured_as: Any) -> None:
    measured_as(0.9, 0.8)
    settings = replace(SETTINGS, attention=None, patience=1)
    assert train(click_folder, str(base), tmp_path / "out", settings)["auc"] == 0.9


def test_a_schedule_without_an_evaluation_behind_the_switch_is_refused(
    base: Path, click_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=r"--full-first is 0.99: all of the 24 steps would be with full attention"):
        train(click_folder, str(base), tmp_path / "out", replace(SETTINGS, epochs=1, full_first=0.99))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_stopped_run_switches_where_it_would_have(base: Path, click_folder: Path, tmp_path: Path) -> None:
    weights = []
    for name, stops in (("whole", ()), ("before", (10,)), ("behind", (60,))):
        for step in stops:
            with pytest.raises(KeyboardInterrupt):
                train(click_folder, str(base), tmp_path / name, SETTINGS, callbacks=[CtrlC(step)])
        watch = Watch()
        train(click_folder, str(base), tmp_path / name, SETTINGS, callbacks=[watch])
        assert all(full == (step < STEPS // 2) for step, full in watch.full.items())
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] == weights[2]


def test_the_mask_is_in_the_forward_pass(click_folder: Path, tmp_path: Path) -> None:
    rows = read_click_log(click_folder / "train.jsonl")[:8]
    base = make_checkpoint(tmp_path / "base")  # its weights are large enough to tell
    model, tokenizer, length = build(str(base), rows, replace(SETTINGS, dropout=0.0))
    assert model.attends_fully
    batch = Collator(rows, tokenizer, model.heads.settings, length, user_tokens(model.click.config))(
        [[place] for place in range(8)]
    )
    logits = []
    for model.attends_fully in (True, False):
        logits.append(model(**batch)["logits"])
    assert (logits[0] - logits[1]).abs().min() > 1e-3
    expected = score_rows(model.click, tokenizer, rows, length)
    np.testing.assert_allclose(logits[1].detach().numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"passages": "max"}, {"method": "lora"}, {"precision": "bf16"}, {"average": 0.9}])
def test_it_goes_with_the_other_settings(
    options: dict[str, Any], base: Path, click_folder: Path, tmp_path: Path
) -> None:
    metrics = train(click_folder, str(base), tmp_path / "out", replace(SETTINGS, epochs=1, **options))
    again = evaluate(str(tmp_path / "out"), read_click_log(click_folder / "dev.jsonl"), draws=0).metrics
    assert again["log_loss"] == pytest.approx(metrics["log_loss"], abs=1e-3)


def test_a_base_goes_on_with_its_attention_unless_told(base: Path, click_folder: Path, tmp_path: Path) -> None:
    rows = read_click_log(click_folder / "train.jsonl")
    train(click_folder, str(base), tmp_path / "once", replace(SETTINGS, epochs=1))
    once = str(tmp_path / "once")
    for attention in (None, "user_once"):
        model, _, length = build(once, rows, replace(SETTINGS, attention=attention, max_length=32))
        assert not model.attends_fully, "it has learned the mask already"
        assert user_tokens(model.click.config) == (length - 3) // 2 == 14
    model, *_ = build(once, rows, replace(SETTINGS, attention="full"))
    assert user_tokens(model.click.config) is None
    model, *_ = build(str(base), rows, replace(SETTINGS, attention=None))
    assert user_tokens(model.click.config) is None
    assert not model.attends_fully
    with pytest.raises(SettingsError, match=r"fine-tuned for user_once, which does not go with --method prefix"):
        build(once, rows, TrainSettings(method="prefix"))


def test_a_switch_goes_by_the_step_alone(base: Path, click_folder: Path) -> None:
    model, *_ = build(str(base), read_click_log(click_folder / "train.jsonl"), replace(SETTINGS, full_first=0.25))
    switch = SwitchAttention(model)
    state: Any = type("State", (), {"max_steps": 8, "global_step": 0})()
    seen = []
    for state.global_step in (0, 7, 1, 2):
        switch.on_step_begin(None, state, None)  # type: ignore[arg-type]
        seen.append(model.attends_fully)
    assert seen == [True, False, True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--attention", "user_once", "--method", "prefix"], "--attention user_once does not go with --method prefix"),
        (["--attention", "user_once", "--full-first", "1"], "--full-first is 1.0; it must be from 0 to below 1"),
        (["--from-checkpoint", "x", "--base-model", "y"], "--from-checkpoint is the base itself"),
    ],
)
def test_contradictions_are_refused_in_a_sentence(
    options: list[str], message: str, click_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--data", str(click_folder), "--output", str(tmp_path / "out"), *options]
    assert main(command) == 1
    assert f"error: {message}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_saves_a_checkpoint_that_says_so(base: Path, click_folder: Path, tmp_path: Path) -> None:
    command = [
        "train", "--data", str(click_folder), "--base-model", str(base), "--output", str(tmp_path / "out"),
        "--attention", "user_once", "--epochs", "1", "--max-length", "40",
    ]  # fmt: skip
    assert main(command) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert (config["clickbert_attention"], config["clickbert_user_tokens"]) == ("user_once", 18)
    settings = json.loads((tmp_path / "out-run" / "settings.json").read_text(encoding="utf-8"))
    assert (settings["attention"], settings["full_first"]) == ("user_once", TrainSettings().full_first)
    assert np.isfinite(json.loads((tmp_path / "out-run" / "metrics.json").read_text())["auc"])
