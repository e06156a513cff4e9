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
from finetune.data.clicklog import read_click_log
from finetune.evaluation.checkpoint import evaluate
from finetune.evaluation.scoring import score_rows
from finetune.training.batches import Collator
from finetune.training.build import build
from finetune.training.callbacks import SwitchAttention
from finetune.training.run import train
from finetune.training.settings import SettingsError, TrainSettings
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


def test_evaluations_before_the_switch_measure_what_would_be_saved(
    base: Path, click_folder: Path, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, epochs=1, full_first=0.99)
    metrics = train(click_folder, str(base), tmp_path / "out", settings)
    dev = read_click_log(click_folder / "dev.jsonl")
    assert evaluate(str(tmp_path / "out"), dev, draws=0).metrics["log_loss"] == pytest.approx(metrics["log_loss"])


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
    model, *_ = build(str(base), read_click_log(click_folder / "train.jsonl"), SETTINGS)
    switch = SwitchAttention(model, 0.25)
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
