"""The further heads of a jointly trained checkpoint: PyTorch's outputs on a sample of the evaluation, and an engine's.

Topics and embeddings are those of single texts, `[CLS] text [SEP]`; what a passage counts is asked for pairs.
What this module does not know: the click, whose logits `comparison` compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from export.graph.packing import Outputs, Pair
from release.names import EMBEDDING, PASSAGE_LOGITS, TOPIC_LOGITS

if TYPE_CHECKING:
    from finetune.data.clicklog import ClickRow

SAMPLE = 256  # distinct texts, and pairs, of an evaluation file: a head is as right on all as on these


@dataclass(frozen=True)
class HeadReference:
    """What PyTorch computes: the first `texts` samples are single texts, the others pairs.

    `outputs` by name: `topic_logits` and `embedding` of the texts, `passage_logits` of the pairs; those that there are.
    """

    samples: list[Pair]
    texts: int
    several_topics: bool
    outputs: Outputs

    @property
    def widths(self) -> dict[str, int]:
        """How many numbers each output has."""
        return {name: array.shape[1] for name, array in self.outputs.items()}

    def own(self, found: Outputs) -> Outputs:
        """Of outputs of all samples, by name [samples, width], the rows that PyTorch's are compared with."""
        parts = {name: slice(self.texts, None) if name == PASSAGE_LOGITS else slice(self.texts) for name in found}
        return {name: values[parts[name]] for name, values in found.items()}


@dataclass(frozen=True)
class HeadComparison:
    """An engine's heads beside PyTorch's; None where the checkpoint has no such head."""

    texts: int
    max_abs_diff: dict[str, float]  # by output
    topic_changed: float | None  # share of texts: another best topic, or another set of topics at 0.5
    least_cosine: float | None  # of an embedding to PyTorch's


def choose_texts(rows: Sequence[ClickRow]) -> list[str]:
    """At most SAMPLE distinct texts of the rows, user texts and documents, evenly chosen."""
    texts = list(dict.fromkeys(text for row in rows for text in (row.query, row.document)))
    return [texts[place] for place in evenly(len(texts))]


def evenly(count: int, most: int = SAMPLE) -> list[int]:
    """At most `most` places among `count`."""
    return [place * count // min(count, most) for place in range(min(count, most))]


def compare_heads(outputs: Outputs, reference: HeadReference) -> HeadComparison:
    """Compares an engine's heads, finite numbers all, with PyTorch's."""
    expected = reference.outputs
    changed = cosine = None
    if TOPIC_LOGITS in expected:
        mine, right = outputs[TOPIC_LOGITS], expected[TOPIC_LOGITS]
        if reference.several_topics:
            changed = float(((mine > 0) != (right > 0)).any(axis=1).mean())
        else:
            changed = float((mine.argmax(axis=1) != right.argmax(axis=1)).mean())
    if EMBEDDING in expected:  # both have length 1
        cosine = float((outputs[EMBEDDING].astype(np.float64) * expected[EMBEDDING]).sum(axis=1).min())
    return HeadComparison(
        texts=reference.texts,
        max_abs_diff={name: float(np.abs(outputs[name] - right).max()) for name, right in expected.items()},
        topic_changed=changed,
        least_cosine=cosine,
    )
