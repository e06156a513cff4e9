"""What is measured on dev, and that a training that is stuck on a plateau says so."""

import json
from pathlib import Path

import pytest

from finetune.__main__ import main
from finetune.data.clicklog import read_click_log
from finetune.evaluation.metrics import MetricError, evaluate_ranking
from finetune.training.build import build
from finetune.training.dev import Dev, plateau
from finetune.training.settings import TrainSettings

METRICS = {
    "auc": 0.6, "auc_low": 0.55, "auc_high": 0.65,
    "pairwise_accuracy": 0.6, "pairwise_accuracy_low": 0.52, "pairwise_accuracy_high": 0.68,
}  # fmt: skip


def test_a_measurement_has_an_interval(base: Path, click_folder: Path) -> None:
    rows = read_click_log(click_folder / "dev.jsonl")
    model, tokenizer, length = build(str(base), rows, TrainSettings())
    found = Dev(rows).measure(model, tokenizer, length)
    assert set(found) > set(evaluate_ranking(rows, [0.5] * len(rows)))
    assert found["auc_low"] < found["auc"] < found["auc_high"]
    with pytest.raises(MetricError, match="the click log has"):
        Dev([row for row in rows if not row.clicks])


@pytest.mark.parametrize(
    ("objective", "changes", "told"),
    [
        ("click", {}, None),
        ("click", {"auc_low": 0.5}, "auc is 0.6000 (0.5000 to 0.6500)"),
        ("click", {"auc": 0.4, "auc_low": 0.35, "auc_high": 0.45}, "auc is 0.4000"),
        ("click", {"pairwise_accuracy_low": 0.4}, None),
        ("pairwise", {"auc_low": 0.4}, None),  # scores of two groups need not compare
        ("pairwise", {"pairwise_accuracy_low": 0.4}, "pairwise_accuracy is 0.6000 (0.4000 to 0.6800)"),
        ("listwise", {"significant_pair_accuracy": 0.7, "significant_pair_accuracy_low": 0.6,
                      "pairwise_accuracy_low": 0.4}, None),
    ],
)  # fmt: skip
def test_what_counts_as_a_plateau(objective: str, changes: dict[str, float], told: str | None) -> None:
    message = plateau(METRICS | changes, objective)
    if told is None:
        assert message is None
    else:
        assert message is not None
        assert f"dev {told}" in message
        assert "no better than chance" in message
        assert "--from-checkpoint" in message


def test_too_few_groups_for_an_interval() -> None:
    assert plateau({"auc": 0.6, "pairwise_accuracy": 0.6}, "click") is None
    assert plateau({"auc": 0.5, "pairwise_accuracy": 0.6}, "click") is not None


def test_a_training_that_is_stuck_says_so_and_one_that_learned_does_not(
    base: Path, click_folder: Path, noise_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, data, epochs in (("stuck", noise_folder, "1"), ("learned", click_folder, "8")):
        command = [
            "train", "--data", str(data), "--base-model", str(base), "--output", str(tmp_path / name),
            "--epochs", epochs, "--learning-rate", "3e-3",
        ]  # fmt: skip
        assert main(command) == 0
        told = capsys.readouterr().err
        content = json.loads((tmp_path / f"{name}-run" / "metrics.json").read_text(encoding="utf-8"))
        assert ("no better than chance (0.5): the training is stuck" in told) == (name == "stuck")
        assert ("warning" in content) == (name == "stuck")
        assert (tmp_path / name / "config.json").exists(), "it is saved all the same"
    assert content["auc"] > 0.95
