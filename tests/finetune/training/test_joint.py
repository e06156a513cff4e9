"""Joint training: one checkpoint that predicts clicks, names topics and finds what is near a user."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification

from finetune.checkpoint.heads import read_heads
from finetune.checkpoint.load import load_checkpoint
from finetune.data.clicklog import ClickRow
from finetune.evaluation.scoring import score_rows, score_texts
from finetune.training.run import train
from finetune.training.settings import TrainSettings
from tests.finetune.conftest import LIKED, TOPICS

TOPICS_SORTED = tuple(sorted(TOPICS))


def learns_jointly(base: Path, folder: Path, output: Path, seed: int) -> bool:
    """Whether a training learns clicks, topics and which documents are near a user, all three."""
    settings = TrainSettings(
        epochs=25, batch_size=8, learning_rate=3e-3, freeze="none", understanding=("topic", "similarity"),
        embedding_size=16, seed=seed,
    )  # fmt: skip
    auc = train(folder, str(base), output, settings)["auc"]
    model, tokenizer, max_length = load_checkpoint(output)
    heads = read_heads(output, 32)
    assert heads.settings.topics == TOPICS_SORTED
    texts = [f"new {topic} {topic}" for topic in TOPICS_SORTED]
    found = score_texts(model, heads, tokenizer, [*texts, *(f"likes {topic}" for topic in LIKED)], max_length)
    topics = found["topic_logits"][:4].argmax(1).tolist()
    nearest = (found["embedding"][4:] @ found["embedding"][:4].T).argmax(1).tolist()
    return auc > 0.95 and topics == [0, 1, 2, 3] and nearest == [TOPICS_SORTED.index(topic) for topic in LIKED]


@pytest.mark.slow
def test_joint_training_learns_clicks_topics_and_similarity(base: Path, joint_folder: Path, tmp_path: Path) -> None:
    # A random BERT of 32 dimensions learns all three with about half of the seeds, and rounding decides with which.
    learned = next((seed for seed in range(5) if learns_jointly(base, joint_folder, tmp_path / str(seed), seed)), None)
    assert learned is not None
    output = tmp_path / str(learned)
    model, tokenizer, max_length = load_checkpoint(output)
    plain = BertForSequenceClassification.from_pretrained(output).eval()
    encoded = AutoTokenizer.from_pretrained(output)("likes tea", "new tea tea", return_tensors="pt")
    rows = [ClickRow("g", "likes tea", "new tea tea", 1, 1)]
    with torch.inference_mode():
        expected = plain(**encoded).logits.numpy()
    np.testing.assert_allclose(score_rows(model, tokenizer, rows, max_length), expected, atol=1e-6)
