"""Batches: their order, what they hold, and that they hold it once."""

from collections import Counter

import numpy as np
import pytest
import torch

from finetune.checkpoint.heads import HeadSettings, Passages
from finetune.data.clicklog import ClickRow
from finetune.objectives.understanding import NO_TOPIC
from finetune.training.batches import Collator, Items, SimilarLengths
from tests.finetune.conftest import make_tokenizer

ROWS = [
    ClickRow("a", "likes tea", "new tea", 1, 1, topics=("tea",), position=2),
    ClickRow("a", "likes tea", "new moon", 0, 3, topics=()),
    ClickRow("b", "", "new tea", 2, 5, topics=("tea",), position=1),
]


def collator(heads: HeadSettings, **options: object) -> Collator:
    return Collator(ROWS, make_tokenizer(), heads, 16, **options)  # type: ignore[arg-type]


def test_an_epoch_holds_every_item_once_and_similar_lengths_together() -> None:
    lengths = np.random.default_rng(0).integers(5, 500, size=1003).tolist()
    sampler = SimilarLengths(lengths, 16, seed=0)
    first, again = list(sampler), list(sampler)
    sampler.set_epoch(1)
    other = list(sampler)
    assert first == again != other
    assert Counter(first) == Counter(other) == Counter(range(1003))
    batches = [first[start : start + 16] for start in range(0, 1003, 16)]
    padded = sum(max(lengths[item] for item in batch) * len(batch) for batch in batches)
    assert padded / sum(lengths) < 1.15
    assert list(SimilarLengths(lengths, 16, seed=1)) != first


def test_items_are_rows_or_groups() -> None:
    assert Items(ROWS, by_group=False).items == [[0], [1], [2]]
    groups = Items(ROWS, by_group=True)
    assert groups.items == [[0, 1], [2]]
    assert groups.lengths == [len("likes tea") + len("new moon"), len("new tea")]


def test_a_batch_says_what_the_losses_read() -> None:
    batch = collator(HeadSettings())([[2], [0, 1]])
    assert set(batch) == {"pairs", "groups", "clicks", "impressions", "positions"}
    assert batch["groups"].tolist() == [0, 1, 1]
    assert batch["clicks"].tolist() == [2, 1, 0]
    assert batch["impressions"].tolist() == [5, 1, 3]
    assert batch["positions"].tolist() == [1, 2, 0], "0: not known"
    assert batch["pairs"]["attention_mask"].sum(1).tolist() == [5, 7, 7]


def test_texts_are_there_once_with_their_topics() -> None:
    batch = collator(HeadSettings(topics=("moon", "tea"), embedding_size=8))([[0, 1], [2]])
    assert len(batch["texts"]["input_ids"]) == 3, "two documents and one user text"
    assert batch["documents"].tolist() == [0, 1, 0]
    assert batch["queries"].tolist() == [2, 2, -1], "an empty user text has no meaning"
    assert batch["topics"].tolist() == [1, NO_TOPIC, NO_TOPIC]
    several = collator(HeadSettings(topics=("moon", "tea"), several_topics=True))([[0, 1]])["topics"]
    assert several[0].tolist() == [0, 1]
    assert several[1].isnan().all()


def test_long_documents_become_passages_of_their_row() -> None:
    rows = [ClickRow("a", "likes", "new moon " * 12, 1, 1), ClickRow("a", "likes", "tea", 0, 1)]
    read = Collator(rows, make_tokenizer(), HeadSettings(passages=Passages("max", 2)), 16)([[0, 1]])
    assert read["row_of_pair"].tolist() == [0, 0, 0, 1]
    assert read["place_of_pair"].tolist() == [0, 1, 2, 0]
    assert read["pairs"]["input_ids"].shape == (4, 16)
    assert len(read["clicks"]) == 2


def test_augmentation_and_teachers_reach_the_batch() -> None:
    batch = collator(HeadSettings(), augment=lambda texts, _: [text.replace("tea", "moon") for text in texts])(
        [[0], [1]]
    )
    assert torch.equal(batch["pairs"]["input_ids"][0], batch["pairs"]["input_ids"][1])
    taught = collator(HeadSettings(), teacher=torch.tensor([0.1, 0.2, 0.3]))([[2], [0]])
    assert taught["teacher"].tolist() == pytest.approx([0.3, 0.1])
