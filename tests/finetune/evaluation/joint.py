"""A jointly trained checkpoint: the tiny BERT with topics and an embedding beside the click."""

from pathlib import Path

import torch

from finetune.checkpoint.heads import Heads, HeadSettings, write_heads
from tests.finetune.conftest import TOPICS


def add_heads(checkpoint: Path, settings: HeadSettings | None = None) -> Heads:
    """Write heads with random weights into a checkpoint's folder, and return them."""
    torch.manual_seed(5)
    heads = Heads(settings or HeadSettings(topics=TOPICS, embedding_size=8), hidden_size=32)
    write_heads(heads, checkpoint)
    return heads
