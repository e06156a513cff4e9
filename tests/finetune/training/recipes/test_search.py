"""Search: trials are whole runs, the best is kept, hopeless ones are cut short, and a stopped search goes on."""

import csv
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.pruners import MedianPruner, ThresholdPruner
from optuna.trial import create_trial

from finetune.__main__ import main
from finetune.checkpoint.files import hash_checkpoint
from finetune.checkpoint.load import load_checkpoint
from finetune.training.loop.dev import Dev
from finetune.training.loop.trainer import TrainingError
from finetune.training.recipes import search as module
from finetune.training.recipes.search import Search
from finetune.training.settings import SettingsError, TrainSettings

pytestmark = pytest.mark.slow

SETTINGS = TrainSettings(epochs=1, batch_size=32, learning_rate=3e-3, metric="log_loss")


@pytest.fixture
def open_search(base: Path, click_folder: Path, tmp_path: Path) -> Any:
    def make(settings: TrainSettings = SETTINGS, **options: Any) -> Search:
        return Search(click_folder, str(base), tmp_path / "model", settings, **options)

    return make


def states(search: Search) -> list[str]:
    return [row["state"] for row in search.table()]


def test_the_best_trial_is_kept_and_no_other(open_search: Any, tmp_path: Path) -> None:
    search = open_search()
    search.run(5, trials=2)
    first, second = search.table()
    assert {name: first[name] for name in ("learning_rate", "batch_size", "epochs", "weight_decay", "dropout")} == {
        "learning_rate": 3e-3, "batch_size": 32, "epochs": 1, "weight_decay": 0.01, "dropout": 0.0
    }, "the first is the command's own settings"  # fmt: skip
    assert second["learning_rate"] != first["learning_rate"]
    number, metrics = search.best()
    assert metrics["log_loss"] == min(first["log_loss"], second["log_loss"])
    assert number == (first if first["log_loss"] < second["log_loss"] else second)["trial"]
    load_checkpoint(tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "model-search"}
    assert {path.name for path in (tmp_path / "model-search").iterdir()} == {
        "study.db", "trials.csv", "trial-0-run", "trial-1-run"
    }  # fmt: skip
    assert not list((tmp_path / "model-search").glob("*/checkpoint-*"))
    with (tmp_path / "model-search" / "trials.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["log_loss"]) for row in rows] == [first["log_loss"], second["log_loss"]]
    assert [row["state"] for row in rows] == ["finished", "finished"]


def test_it_goes_on_with_other_settings_and_keeps_the_best_of_all(open_search: Any, tmp_path: Path) -> None:
    open_search().run(5, trials=1)
    before = hash_checkpoint(tmp_path / "model").sha256
    search = open_search()
    search.run(5, trials=2)
    assert states(search) == ["finished"] * 3
    assert len({row["learning_rate"] for row in search.table()}) == 3
    number, _ = search.best()
    assert (hash_checkpoint(tmp_path / "model").sha256 == before) == (number == 0)
    with pytest.raises(SettingsError, match="a search with another labels was begun here"):
        open_search(replace(SETTINGS, labels=2))
    assert states(open_search(replace(SETTINGS, labels=2), restart=True)) == []


def test_a_hopeless_trial_is_cut_short_and_not_kept(open_search: Any, tmp_path: Path) -> None:
    open_search().run(5, trials=1)
    before = hash_checkpoint(tmp_path / "model").sha256
    search = open_search(pruner=ThresholdPruner(upper=0.0))  # log loss is never below
    search.run(5, trials=1)
    assert states(search) == ["finished", "pruned"]
    assert hash_checkpoint(tmp_path / "model").sha256 == before
    assert not (tmp_path / "model-search" / "trial-1").exists()


def test_a_trial_is_held_against_others_at_the_same_epoch(open_search: Any) -> None:
    search = open_search(replace(SETTINGS, evaluations=2), pruner=MedianPruner(n_startup_trials=1))
    for _ in range(2):
        trial = create_trial(value=-1.0, params={}, distributions={}, intermediate_values={1: -1.0, 2: -1.0})
        search.study.add_trial(trial)
    search.run(5, trials=1)
    assert states(search)[0] == "pruned"
    assert list(search.study.trials[0].intermediate_values) == [1], "after half an epoch"


def test_a_trial_is_not_judged_before_its_switch_of_attention(open_search: Any) -> None:
    settings = replace(SETTINGS, evaluations=3, attention="user_once")
    search = open_search(settings, pruner=ThresholdPruner(upper=0.0))  # whatever is reported, is hopeless
    search.run(5, trials=1)
    assert states(search) == ["pruned"]
    assert list(search.study.trials[0].intermediate_values) == [2], "the first is before the switch"
    search = open_search(replace(settings, full_first=0.0), restart=True, pruner=ThresholdPruner(upper=0.0))
    search.run(5, trials=1)
    assert list(search.study.trials[0].intermediate_values) == [1]


def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(
    open_search: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = open_search()
    search.run(5, trials=1)
    whole = module.train

    def fail(*_: Any, **__: Any) -> Any:
        monkeypatch.setattr(module, "train", whole)
        raise TrainingError("step 3: the loss is nan; lower --learning-rate")

    monkeypatch.setattr(module, "train", fail)
    search.run(5, trials=2)
    assert states(search) == ["finished", "failed", "finished"]
    assert search.table()[1]["error"] == "step 3: the loss is nan; lower --learning-rate"


def test_settings_that_cannot_be_trained_end_the_search_at_once(
    open_search: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match="--max-length is 49"):
        open_search(replace(SETTINGS, max_length=49)).run(5)
    with pytest.raises(SettingsError, match="--passages choose"):
        open_search(replace(SETTINGS, passages="choose"))
    with pytest.raises(SettingsError, match="no trial was finished"):
        open_search(restart=True).best()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="in one process"):
        open_search()


def test_ctrl_c_keeps_what_is_finished_and_the_stopped_trial_begins_anew(
    open_search: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = open_search()
    search.run(5, trials=1)
    whole = module.train
    with monkeypatch.context() as patch:

        def stop(data: Path, base: str, output: Path, *_: Any, **__: Any) -> Any:
            (output.with_name(f"{output.name}-run") / "checkpoint-3").mkdir(parents=True)
            raise KeyboardInterrupt("of train")

        patch.setattr(module, "train", stop)
        with pytest.raises(KeyboardInterrupt, match=r"best of 1 finished; give the same command again"):
            search.run(5, trials=2)
    assert not list((tmp_path / "model-search").glob("*/checkpoint-*"))
    assert module.train is whole
    again = open_search()
    again.run(5, trials=1)
    assert states(again) == ["finished", "failed", "finished"]
    assert again.table()[1]["learning_rate"] == again.table()[2]["learning_rate"]


def test_a_killed_trial_begins_anew(open_search: Any) -> None:
    search = open_search()
    trial = search.study.ask()
    trial.suggest_float("learning_rate", 6e-4, 1.5e-2, log=True)  # and then the process is gone
    again = open_search()
    again.run(5, trials=1)
    assert states(again) == ["failed", "finished"]
    assert again.table()[1]["learning_rate"] == pytest.approx(3e-3)


def test_weights_of_tasks_are_looked_for_where_there_are_any(base: Path, joint_folder: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, understanding=("topic",))
    search = Search(joint_folder, str(base), tmp_path / "model", settings)
    search.run(5, trials=2)
    given, drawn = (row["understanding_weight"] for row in search.table())
    assert given == 0.2 != drawn


def test_each_tasks_weight_is_looked_for_and_first_it_is_the_given_one(
    base: Path, joint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: list[tuple[str, ...]] = []

    def note(data: Path, base: str, output: Path, settings: TrainSettings, **_: Any) -> dict[str, float]:
        weights.append(settings.understanding_weight)
        return {"log_loss": 0.5}

    monkeypatch.setattr(module, "train", note)
    for number, given in enumerate([("0.01", "0.5"), ("0", "3"), ("0.01",)]):
        settings = replace(SETTINGS, understanding=("topic", "similarity"), understanding_weight=given)
        weights.clear()
        Search(joint_folder, str(base), tmp_path / str(number), settings).run(5, trials=3)
        assert [float(weight) for weight in weights[0]] == [float(weight) for weight in given]
        drawn = [[float(one) for one in trial] for trial in weights[1:]]
        for task, weight in enumerate(map(float, given)):
            values = {trial[task] for trial in drawn}
            assert values == {0.0} if weight == 0 else len(values) == 2 and 0.01 <= min(values) <= max(values) <= 3


def test_ctrl_c_in_the_last_evaluation_of_a_trial_ends_the_search(
    open_search: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Dev.measure

    def press(*given: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return measure(*given)

    search = open_search()
    monkeypatch.setattr(Dev, "measure", press)
    with pytest.raises(KeyboardInterrupt, match="best of 1 finished; give the same command again to go on"):
        search.run(5, trials=3)
    assert states(search) == ["finished"]


def test_command(
    base: Path, click_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Search.run
    monkeypatch.setattr(Search, "run", lambda self, minutes: run(self, minutes, trials=1))
    assert main([
        "search", "--minutes", "5", "--data", str(click_folder), "--base-model", str(base), "--epochs", "1",
        "--output", str(tmp_path / "model"),
    ]) == 0  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["trial", "state", "auc", "learning_rate"]
    assert lines[1].split()[:2] == ["0", "finished"]
    assert lines[2].startswith(f"{tmp_path / 'model'}: saved; trial 0, dev auc")
    assert optuna.load_study(
        study_name="model", storage=f"sqlite:///{tmp_path / 'model-search' / 'study.db'}"
    ).trials, "Optuna's own tools read it"  # fmt: skip
