"""What is measured on dev, and that a training that is stuck on a plateau says so."""

import json
from pathlib import Path

import pytest

from finetune.__main__ import main
from finetune.data.clicklog import ClickRow, read_click_log
from finetune.evaluation.checkpoint import evaluate
from finetune.evaluation.metrics import MetricError, evaluate_ranking
from finetune.training.build import build
from finetune.training.loop.dev import Dev, plateau
from finetune.training.run import train
from finetune.training.settings import TrainSettings

METRICS = {
    "auc": 0.6, "auc_low": 0.55, "auc_high": 0.65,
    "pairwise_accuracy": 0.6, "pairwise_accuracy_low": 0.52, "pairwise_accuracy_high": 0.68,
}  # fmt: skip

SIGNIFICANT = {
    "significant_pairs": 300, "significant_pair_accuracy": 0.7, "significant_pair_accuracy_low": 0.6,
    "significant_pair_accuracy_high": 0.8,
}  # fmt: skip


def test_a_measurement_has_an_interval(base: Path, click_folder: Path) -> None:
    rows = read_click_log(click_folder / "dev.jsonl")
    model, tokenizer, length = build(str(base), rows, TrainSettings())
    dev = Dev(rows)
    found, limits = dev.measure(model, tokenizer, length), dev.intervals(model, tokenizer, length)
    assert set(found) == set(evaluate_ranking(rows, [0.5] * len(rows)))
    assert set(limits) == {"auc_low", "auc_high", "pairwise_accuracy_low", "pairwise_accuracy_high"}
    for name in ("auc", "pairwise_accuracy"):
        assert limits[f"{name}_low"] <= found[name] <= limits[f"{name}_high"]
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
        ("listwise", SIGNIFICANT | {"pairwise_accuracy_low": 0.4}, None),
        ("listwise", SIGNIFICANT | {"significant_pair_accuracy_low": 0.5}, "significant_pair_accuracy is 0.7000 (0.5"),
        # Of few pairs, the whole says more.
        ("listwise", SIGNIFICANT | {"significant_pairs": 7, "significant_pair_accuracy_low": 0.5}, None),
        ("pairwise", {"significant_pairs": 1, "significant_pair_accuracy": 0.0}, None),
        ("pairwise", {"significant_pairs": 1, "significant_pair_accuracy": 1.0, "pairwise_accuracy_low": 0.4},
         "pairwise_accuracy is 0.6000 (0.4000"),
        ("pairwise", {"significant_pairs": 900, "significant_pair_accuracy": 0.0}, None),  # all of four groups
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


@pytest.mark.parametrize(
    ("objective", "changes", "taught", "is_told"),
    [
        ("click", {}, {"auc": 0.69}, False),
        ("click", {}, {"auc": 0.71}, True),
        ("click", {}, {"auc": 0.4}, False),
        ("click", {"auc": 0.95, "auc_low": 0.94, "auc_high": 0.96}, {"auc": 0.99}, False),
        ("pairwise", {}, {"auc": 0.9, "pairwise_accuracy": 0.61}, False),
        ("pairwise", {}, {"auc": 0.6, "pairwise_accuracy": 0.9}, True),
    ],
)
def test_a_student_far_below_its_teachers_is_on_a_plateau(
    objective: str, changes: dict[str, float], taught: dict[str, float], is_told: bool
) -> None:
    message = plateau(METRICS | changes, objective, taught)
    assert (message is not None) == is_told
    assert plateau(METRICS | changes, objective) is None
    if message:
        assert "where its teachers have 0." in message
        assert "--from-checkpoint" in message


def test_one_significant_pair_does_not_judge_a_run(base: Path, tmp_path: Path) -> None:
    rows = [
        ClickRow(str(group), "likes tea", f"new {topic}", clicks, 1 + 999 * (group == 0))
        for group in range(12)
        for topic, clicks in (("tea", 1 + 599 * (group == 0)), ("bike", 0))
    ]
    model, tokenizer, length = build(str(base), rows, TrainSettings(objective="pairwise"))
    dev = Dev(rows)
    found = dev.measure(model, tokenizer, length)
    assert found["significant_pairs"] == 1
    assert found["significant_pair_accuracy"] in (0.0, 1.0)
    limits = dev.intervals(model, tokenizer, length)
    assert {"pairwise_accuracy_low", "pairwise_accuracy_high"} <= set(limits)
    assert not any(name.startswith("significant") for name in limits)
    good = {**found, **limits, "pairwise_accuracy_low": 0.6}
    assert plateau(good | {"significant_pair_accuracy": 0.0}, "pairwise") is None
    assert plateau(good | {"pairwise_accuracy_low": 0.4, "significant_pair_accuracy": 1.0}, "pairwise") is not None


def test_intervals_are_measured_once_of_what_is_kept(
    base: Path, click_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    real = Dev.intervals
    monkeypatch.setattr(Dev, "intervals", lambda *given: measured.append(given) or real(*given))
    settings = TrainSettings(epochs=3, learning_rate=3e-3)
    metrics = train(click_folder, str(base), tmp_path / "out", settings)
    assert len(measured) == 1
    kept = evaluate(str(tmp_path / "out"), read_click_log(click_folder / "dev.jsonl"))
    assert kept.intervals["auc"] == (metrics["auc_low"], metrics["auc_high"])
    assert json.loads((tmp_path / "out-run" / "metrics.json").read_text(encoding="utf-8")) == metrics


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
