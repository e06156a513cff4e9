"""Training on long documents, in passages: what stands beyond the encoder's limit is seen."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune.checkpoint.heads import Passages, read_heads
from finetune.checkpoint.load import load_checkpoint
from finetune.data.clicklog import read_click_log
from finetune.evaluation.metrics import click_probability, evaluate_ranking
from finetune.evaluation.scoring import score_documents
from finetune.training import run as module
from finetune.training.loop.dev import Dev
from finetune.training.recipes.distil import Teachers
from finetune.training.run import train
from finetune.training.settings import TrainSettings
from tests.finetune.conftest import TOPICS

ROOT = Path(__file__).parents[3]
TOPICS_SORTED = tuple(sorted(TOPICS))
SETTINGS = TrainSettings(epochs=8, batch_size=16, learning_rate=3e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "epochs"), [("max", 6), ("mean", 8), ("attention", 14)])
def test_passages_see_what_stands_beyond_the_limit(
    way: str, epochs: int, base: Path, long_folder: Path, tmp_path: Path
) -> None:
    settings = TrainSettings(
        epochs=epochs, batch_size=8, learning_rate=3e-3, max_length=24, passages=way, passage_overlap=4, passage_best=2
    )
    assert train(long_folder, str(base), tmp_path / "read", settings)["auc"] > 0.9
    assert read_heads(tmp_path / "read", 32).settings.passages == Passages(way, 4, 2)


def test_where_documents_are_cut_what_stands_beyond_the_limit_is_not_seen(
    base: Path, long_folder: Path, tmp_path: Path
) -> None:
    settings = TrainSettings(epochs=2, batch_size=8, learning_rate=3e-3, max_length=24)
    assert train(long_folder, str(base), tmp_path / "cut", settings)["auc"] < 0.75


def test_the_way_to_aggregate_is_chosen_on_dev(base: Path, long_folder: Path, tmp_path: Path) -> None:
    settings = TrainSettings(passages="choose", epochs=1, learning_rate=3e-3, max_length=24, passage_overlap=4)
    found = train(long_folder, str(base), tmp_path / "out", settings)
    assert read_heads(tmp_path / "out", 32).settings.passages is not None
    kept = {path.name for path in tmp_path.iterdir() if not path.name.endswith("-run")}
    assert kept == {"out"}, "the other two are removed"
    dev = read_click_log(long_folder / "dev.jsonl")
    model, tokenizer, max_length = load_checkpoint(tmp_path / "out")
    logits = score_documents(model, read_heads(tmp_path / "out", 32), tokenizer, dev, max_length)
    assert evaluate_ranking(dev, click_probability(logits, ["click"]))["auc"] == pytest.approx(found["auc"])


@pytest.mark.slow
def test_a_choice_that_is_stopped_goes_on_behind_the_ways_that_are_finished(
    base: Path, long_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With teachers, too. Ctrl-C comes in the last evaluation of the first way, which is finished all the same."""
    plain = TrainSettings(epochs=1, learning_rate=3e-3, max_length=24, passage_overlap=4)
    train(long_folder, str(base), tmp_path / "teacher", plain)
    teachers, settings = Teachers((tmp_path / "teacher",), 0.5), replace(plain, passages="choose")
    trained: list[str] = []
    measure, ready = Dev.measure, module.build

    def build(base: str, rows: Any, own: TrainSettings) -> Any:
        trained.append(own.passages)
        return ready(base, rows, own)

    def press(*given: Any) -> Any:
        if len(trained) == 1:
            signal.raise_signal(signal.SIGINT)
        return measure(*given)

    monkeypatch.setattr(module, "build", build)
    monkeypatch.setattr(Dev, "measure", press)
    with pytest.raises(KeyboardInterrupt, match="give the same command again to go on"):
        train(long_folder, str(base), tmp_path / "out", settings, teachers=teachers)
    assert len(trained) == 1
    train(long_folder, str(base), tmp_path / "out", settings, teachers=teachers)
    assert len(trained) == len(set(trained)) == 3, "each once"


@pytest.mark.slow
def test_passages_win_where_the_deciding_words_stand_after_token_600(
    base: Path, very_long_folder: Path, tmp_path: Path
) -> None:
    settings = TrainSettings(epochs=5, batch_size=4, learning_rate=3e-3, passage_overlap=4)
    cut = train(very_long_folder, str(base), tmp_path / "cut", replace(settings, epochs=1))
    read = train(very_long_folder, str(base), tmp_path / "read", replace(settings, passages="max"))
    assert cut["auc"] < 0.75, "no number of epochs shows what is cut off"
    assert read["auc"] > 0.95
