"""A jointly trained checkpoint: the tiny BERT with topics and an embedding beside the click."""

from collections.abc import Mapping
from pathlib import Path

import torch

from finetune.checkpoint.heads import Heads, HeadSettings, write_heads
from finetune.checkpoint.load import load_checkpoint
from tests.finetune.conftest import TOPICS


def add_heads(checkpoint: Path, settings: HeadSettings | None = None) -> Heads:
    """Write heads with random weights into a checkpoint's folder, and return them."""
    torch.manual_seed(5)
    heads = Heads(settings or HeadSettings(topics=TOPICS, embedding_size=8), hidden_size=32)
    write_heads(heads, checkpoint)
    return heads


def fit_heads(checkpoint: Path, topics: Mapping[str, str], embeddings: Mapping[str, list[float]]) -> None:
    """Write heads that say exactly this of a few texts: of each of `topics` its topic, of `embeddings` its direction.

    Least squares: as many texts as the model has hidden dimensions can be told apart at will.
    """
    model, tokenizer, _ = load_checkpoint(checkpoint)
    size = len(next(iter(embeddings.values())))
    heads = Heads(HeadSettings(topics=TOPICS, embedding_size=size), hidden_size=32)
    assert heads.topic is not None and heads.embedding is not None
    with torch.inference_mode():
        for head, texts, wanted in (
            (heads.topic, list(topics), [[float(name == topic) for name in TOPICS] for topic in topics.values()]),
            (heads.embedding, list(embeddings), list(embeddings.values())),
        ):
            first = [model.bert(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 0] for text in texts]
            states = torch.nn.functional.pad(torch.stack(first).double(), (0, 1), value=1.0)  # the last is for the bias
            found = torch.linalg.lstsq(states, torch.tensor(wanted).double(), driver="gelsd").solution
            head.weight.copy_(found[:-1].T)
            head.bias.copy_(found[-1])
    write_heads(heads, checkpoint)
