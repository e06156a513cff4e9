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


def test_a_tiny_model_learns_a_few_rows_by_heart(tmp_path: Path) -> None:
    """A training for `user_once` reads the log: dev is the training split. docs/finetuning.md has the figures."""
    data = write_shared_words(tmp_path / "data", train=60, dev=60, test=6)
    (data / "dev.jsonl").write_bytes((data / "train.jsonl").read_bytes())
    base = make_checkpoint(tmp_path / "base", words=WORDS)
    settings = TrainSettings(epochs=20, attention="user_once", freeze="none", learning_rate=3e-3)
    metrics = train(data, str(base), tmp_path / "out", settings)
    assert metrics["auc"] > BEST, "what the words tell, and the noise as well"
