"""Single texts, which the further heads read, in requests of several, with another request among them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from hypothesis import strategies as st

from export.graph.packing import Outputs, Pair
from export.verify.evaluation import Checkpoint
from finetune.evaluation.scoring import score_texts
from release.names import HEAD_OUTPUTS, LOGITS
from tests.tiny import MAX_LENGTH, WORDS

TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join), min_size=1, max_size=8)
SIZES = st.lists(st.integers(1, 3), min_size=8, max_size=8)
DRAWN = 1e-5  # what rounding may do to logits of drawn texts; 1.01e-6 was seen. Fixed cases keep to 1e-6


def batch_of(
    joint: Checkpoint, drawn: list[str], sizes: list[int], place: int, other: list[Pair]
) -> tuple[list[list[Pair]], int]:
    """The texts in requests of these sizes, `other` among them; and how many texts stand before that."""
    encoded = joint.tokenizer(drawn, truncation=True, max_length=MAX_LENGTH)
    singles = [{"input_ids": ids, "token_type_ids": [0] * len(ids)} for ids in encoded["input_ids"]]
    cuts = np.cumsum([0, *sizes])
    batch = [singles[start:end] for start, end in pairwise(cuts) if start < len(singles)]
    place = min(place, len(batch))
    batch.insert(place, other)
    return batch, sum(len(request) for request in batch[:place])


def check_heads(joint: Checkpoint, drawn: list[str], found: dict[str, torch.Tensor], others: range) -> None:
    """Every head's outputs of the texts, which are all rows but `others`, are PyTorch's."""
    expected: Outputs = score_texts(joint.model, joint.heads, joint.tokenizer, drawn, MAX_LENGTH)
    assert set(found) == {LOGITS, *HEAD_OUTPUTS}
    for name, values in found.items():
        if name != LOGITS:
            own = np.delete(values.numpy(), others, axis=0)
            assert np.allclose(own, expected[name], atol=DRAWN), name
