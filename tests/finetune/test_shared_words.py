"""The log of shared words: seeded, and without a word of the click in one text alone."""

from pathlib import Path

import numpy as np
import pytest

from finetune.data.clicklog import read_click_log
from finetune.evaluation.metrics import evaluate_ranking
from finetune.training.run import train
from finetune.training.settings import TrainSettings
from tests.finetune.shared_words import BEST, CANDIDATES, LENGTH, ROWS, WORDS, shared_words, write_shared_words
from tests.tiny import make_checkpoint


def test_a_click_needs_a_shared_word(tmp_path: Path) -> None:
    folder = write_shared_words(tmp_path / "log", dev=600, test=60)
    rows = read_click_log(folder / "train.jsonl")
    assert len(rows) == ROWS["train"] == 6_000
    assert len(read_click_log(folder / "dev.jsonl")) == 600
    shared = [len(set(row.query.split()) & set(row.document.split())) for row in rows]
    assert set(shared) == {0, 1}
    assert all(number for number, row in zip(shared, rows, strict=True) if row.clicks)
    assert all(len(text.split()) == LENGTH for row in rows for text in (row.query, row.document))
    assert len({row.group for row in rows}) == len(rows) // CANDIDATES
    assert evaluate_ranking(rows, shared)["auc"] == pytest.approx(BEST, abs=0.01)


def test_no_word_alone_says_anything(tmp_path: Path) -> None:
    rows = list(shared_words(6_000, seed=0))
    clicks = np.array([row.clicks for row in rows])
    for side in ("query", "document"):
        seen = np.array([[word in getattr(row, side).split() for word in WORDS] for row in rows])
        rates = (seen * clicks[:, None]).sum(0) / seen.sum(0)
        spread = np.sqrt(clicks.mean() * (1 - clicks.mean()) / seen.sum(0)).mean()
        assert rates.std() < 1.5 * spread


def test_the_same_seed_gives_the_same_rows() -> None:
    assert list(shared_words(60, seed=3)) == list(shared_words(60, seed=3))
    assert list(shared_words(60, seed=3)) != list(shared_words(60, seed=4))


def test_it_can_be_trained_on(tmp_path: Path) -> None:
    """The mechanics alone: two layers and an epoch learn nothing of it. docs/finetuning.md has the figures."""
    data = write_shared_words(tmp_path / "data", train=240, dev=120, test=6)
    base = make_checkpoint(tmp_path / "base", words=WORDS)
    metrics = train(data, str(base), tmp_path / "out", TrainSettings(epochs=1, attention="user_once"))
    assert metrics["auc_low"] < metrics["auc"] < BEST
