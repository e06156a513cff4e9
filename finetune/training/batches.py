"""Batches of a click log: items of similar length, tokenized, padded, and with everything that a loss reads.

An item is what a batch is counted in: a row for the objective `click`, a group for `pairwise` and `listwise`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedTokenizerFast

from finetune.checkpoint.heads import HeadSettings
from finetune.data.clicklog import ClickRow
from finetune.evaluation.metrics import group_rows
from finetune.evaluation.scoring import pad, tokenize_pairs, tokenize_passages, tokenize_texts
from finetune.objectives.understanding import NO_TOPIC
from finetune.training.model import Batch

BUCKET = 64  # batches sorted by length together: little padding, and the batches still differ in each epoch
Augment = Callable[[Sequence[str], int], list[str]]  # changes the texts of a row, which is the second argument


class Items(Dataset[list[int]]):
    """The items of a log: each a list of places of rows."""

    def __init__(self, rows: Sequence[ClickRow], by_group: bool) -> None:
        self.rows = rows
        groups = [group.tolist() for group in group_rows(rows)]
        self.items: list[list[int]] = groups if by_group else [[row] for row in range(len(rows))]
        # In characters: exact enough to sort by, and they cost nothing.
        sizes = [len(row.query) + len(row.document) for row in rows]
        self.lengths = [max(sizes[row] for row in item) for item in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> list[int]:
        return self.items[index]


class SimilarLengths(Sampler[int]):
    """Draws each epoch's order of items: every one once, similar lengths side by side, batches shuffled.

    The order depends on seed and epoch alone, so that a resumed run sees the batches that it would have seen.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """What the Trainer calls before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order: list[int] = torch.randperm(len(self.lengths), generator=generator).tolist()
        span = self.batch_size * BUCKET
        batches = []
        for start in range(0, len(order), span):
            bucket = sorted(order[start : start + span], key=self.lengths.__getitem__)
            batches += [bucket[first : first + self.batch_size] for first in range(0, len(bucket), self.batch_size)]
        # A batch that is not full stays last: anywhere else it would shift all batches behind it.
        full = [batch for batch in batches if len(batch) == self.batch_size]
        rest = [item for batch in batches if len(batch) < self.batch_size for item in batch]
        for place in torch.randperm(len(full), generator=generator).tolist():
            yield from full[place]
        yield from rest


@dataclass
class Collator:
    """Makes a batch of items.

    `pairs`: input_ids, token_type_ids, attention_mask [pairs, longest]; one pair a row, or one a passage, with
    `row_of_pair` and `place_of_pair` [pairs]. `groups`, `clicks`, `impressions`, `positions` (0: unknown) [rows], and
    `teacher` [rows], the log-odds that the teachers give. Where the heads ask for them: `texts`, the distinct texts of
    the batch, each alone, [texts, longest]; `queries` and `documents` [rows], places in them (-1: an empty user text);
    and `topics` of the texts (see `topic_loss`).
    """

    rows: Sequence[ClickRow]
    tokenizer: PreTrainedTokenizerFast
    heads: HeadSettings
    max_length: int
    user_tokens: int | None = None  # the most that a user text keeps; None: full attention
    augment: Augment | None = None
    teacher: Tensor | None = None  # [rows]

    def __post_init__(self) -> None:
        self.topic_places = {topic: place for place, topic in enumerate(self.heads.topics)}

    def __call__(self, items: Sequence[Sequence[int]]) -> Batch:
        """Make the batch of some items."""
        places = [place for item in items for place in item]
        rows = [self.rows[place] for place in places]
        queries = [row.query for row in rows]
        documents = [row.document for row in rows]
        if self.augment is not None:
            changed = [self.augment((row.query, row.document), place) for row, place in zip(rows, places, strict=True)]
            queries, documents = ([texts[part] for texts in changed] for part in (0, 1))
        groups: dict[str, int] = {}
        batch: Batch = {
            **self._pairs(queries, documents),
            "groups": torch.tensor([groups.setdefault(row.group, len(groups)) for row in rows]),
            "clicks": torch.tensor([row.clicks for row in rows], dtype=torch.float32),
            "impressions": torch.tensor([row.impressions for row in rows], dtype=torch.float32),
            "positions": torch.tensor([row.position or 0 for row in rows]),
        }
        if self.teacher is not None:
            batch["teacher"] = self.teacher[places]
        if self.heads.topics or self.heads.embedding_size:
            batch |= self._texts(rows, queries, documents)
        return batch

    def _pairs(self, queries: list[str], documents: list[str]) -> Batch:
        if self.heads.passages is None:
            texts = [ClickRow("", query, document, 0, 1) for query, document in zip(queries, documents, strict=True)]
            pairs = tokenize_pairs(self.tokenizer, texts, self.max_length, self.user_tokens)
            return {"pairs": pad(self.tokenizer, pairs)}
        overlap = self.heads.passages.overlap
        read = [
            tokenize_passages(self.tokenizer, query, document, self.max_length, overlap, self.user_tokens)
            for query, document in zip(queries, documents, strict=True)
        ]
        return {
            "pairs": pad(self.tokenizer, [passage for passages in read for passage in passages]),
            "row_of_pair": torch.tensor([row for row, passages in enumerate(read) for _ in passages]),
            "place_of_pair": torch.tensor([place for passages in read for place in range(len(passages))]),
        }

    def _texts(self, rows: Sequence[ClickRow], queries: list[str], documents: list[str]) -> Batch:
        places: dict[str, int] = {}
        document_places = [places.setdefault(text, len(places)) for text in documents]
        query_places = [-1] * len(rows)
        if self.heads.embedding_size:
            query_places = [places.setdefault(text, len(places)) if text else -1 for text in queries]
        return {
            "texts": pad(self.tokenizer, tokenize_texts(self.tokenizer, list(places), self.max_length)),
            "queries": torch.tensor(query_places),
            "documents": torch.tensor(document_places),
            "topics": self._topics(rows, document_places, len(places)),
        }

    def _topics(self, rows: Sequence[ClickRow], document_places: Sequence[int], texts: int) -> Tensor:
        if not self.heads.several_topics:
            topics = torch.full((texts,), NO_TOPIC)
            for row, place in zip(rows, document_places, strict=True):
                if row.topics:
                    topics[place] = self.topic_places[row.topics[0]]
            return topics
        several = torch.full((texts, len(self.heads.topics)), torch.nan)
        for row, place in zip(rows, document_places, strict=True):
            if row.topics:
                several[place] = 0.0
                several[place, [self.topic_places[topic] for topic in row.topics]] = 1.0
        return several
