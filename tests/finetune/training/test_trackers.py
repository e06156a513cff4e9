"""What trackers get: TensorBoard always, Weights & Biases if asked for."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune.training.loop import arguments
from finetune.training.run import train
from finetune.training.settings import SettingsError, TrainSettings

SETTINGS = TrainSettings(epochs=2, batch_size=32)


def test_tensorboards_events_stay_in_the_runs_folder(
    base: Path, click_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    metrics = train(click_folder, str(base), tmp_path / "model", SETTINGS)
    (events,) = (tmp_path / "model-run").rglob("events.out.tfevents.*")
    found = EventAccumulator(str(events))
    found.Reload()
    assert {"train/loss", "train/learning_rate", "eval/auc", "eval/log_loss"} <= set(found.Tags()["scalars"])
    aucs = [event.value for event in found.Scalars("eval/auc")]
    assert len(aucs) == 2, "an evaluation an epoch"
    assert max(aucs) == pytest.approx(metrics["auc"])


@pytest.mark.slow
def test_each_run_is_one_of_weights_and_biases(
    base: Path, click_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    settings = TrainSettings(epochs=1, batch_size=32, report_to=("wandb",))
    for name in ("one", "two"):
        train(click_folder, str(base), tmp_path / name, settings)
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    for name, folder in zip(("one", "two"), runs, strict=True):
        (record,) = folder.glob("run-*.wandb")
        stored = record.read_bytes()
        assert f"{name}-run".encode() in stored, "called as the run is"
        assert b"eval/auc" in stored
    assert list((tmp_path / "one-run").rglob("events.out.tfevents.*")), "and TensorBoard's, too"


def test_a_tracker_that_is_not_there_is_refused_before_training(
    base: Path, click_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments, "find_spec", lambda name: None if name == "wandb" else find_spec(name))
    with pytest.raises(SettingsError, match="--report-to wandb: wandb is not installed"):
        train(click_folder, str(base), tmp_path / "model", TrainSettings(report_to=("wandb",)))
