"""An ensemble as a teacher: the mean of its members' click log-odds, which one student learns (Hinton et al., 2015)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from finetune.checkpoint.files import hash_checkpoint
from finetune.checkpoint.heads import read_heads
from finetune.checkpoint.labels import click_column
from finetune.checkpoint.load import label_names, load_checkpoint
from finetune.data.clicklog import ClickRow
from finetune.evaluation.metrics import click_probability, evaluate_ranking, to_log_odds
from finetune.evaluation.scoring import score_documents

ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class Teachers:
    """Checkpoints whose mean is learned. `weight` is their share of the click's loss."""

    folders: tuple[Path, ...]
    weight: float

    def describe(self) -> dict[str, object]:
        """What must be the same for a stopped run to go on."""
        return {"teachers": [hash_checkpoint(folder).sha256 for folder in self.folders], "teacher_weight": self.weight}

    def log_odds(self, rows: Sequence[ClickRow]) -> NDArray[np.float32]:
        """Score rows: the mean of the teachers' log-odds of a click, [rows].

        Raises:
            CheckpointError: a teacher cannot be used.
        """
        found = [click_log_odds(folder, rows) for folder in tqdm(self.folders, "teachers")]
        return np.asarray(np.mean(found, axis=0), dtype=np.float32)

    def evaluate(self, rows: Sequence[ClickRow]) -> list[tuple[str, dict[str, float]]]:
        """Evaluate each teacher, and last the `ENSEMBLE` of them all: names and metrics.

        Raises:
            CheckpointError, MetricError: a teacher cannot be used, or the rows cannot be evaluated.
        """
        found = [(str(folder), click_log_odds(folder, rows)) for folder in tqdm(self.folders, "teachers")]
        together: NDArray[np.float32] = np.asarray(np.mean([odds for _, odds in found], axis=0), dtype=np.float32)
        return [
            (name, evaluate_ranking(rows, click_probability(odds[:, None], ["click"])))
            for name, odds in [*found, (ENSEMBLE, together)]
        ]


def click_log_odds(folder: Path, rows: Sequence[ClickRow]) -> NDArray[np.float32]:
    """Score rows by one checkpoint: log-odds of a click [rows], whatever labels it has.

    Raises:
        CheckpointError: it cannot be used.
    """
    model, tokenizer, max_length = load_checkpoint(folder)
    heads = read_heads(folder, int(model.config.hidden_size))
    logits = score_documents(model, heads, tokenizer, rows, max_length)
    click = click_column(label_names(model)) if logits.shape[1] > 1 else 0
    return to_log_odds(logits, click).astype(np.float32)
