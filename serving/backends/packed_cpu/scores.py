"""Which scores a click model gives: counts of pairs by click probability, beside what the evaluation log had.

The click probability is what the client makes of the logits (`clickbert.wire.protocol.click_probability`); a test holds
both rules alike. Which label is the click stands in the version's manifest.json. A version without a manifest (a model
that has nothing to do with clicks, for one) has no scores. A manifest that cannot be read is not this module's
business: whoever starts the server verifies it, and a figure must not keep a version from being served.

What this module does not know: Triton.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from release.expected import SCORES
from release.names import MANIFEST_FILE
from serving.backends.packed_cpu.segments import Array

BOUNDS = np.array(SCORES, np.float64)


@dataclass(frozen=True)
class Scoring:
    """What a version's manifest says of its scores.

    Attributes:
        click_label: the column of the logits.
        expected: share of the evaluation log's pairs by class; empty if the export that made it kept none.
    """

    click_label: int
    expected: dict[str, float]


def read_scoring(version: Path) -> Scoring | None:
    """Reads it from the manifest in a version's folder; None if there is none, or none of a click model."""
    file = version / MANIFEST_FILE
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        label, labels = manifest["click_label"], manifest["labels"]
        if label not in range(len(labels)):
            raise ValueError(f"click_label is {label!r}, the labels are {labels!r}")
        expected = (manifest.get("expected") or {}).get("scores", {})
        return Scoring(label, {name: float(expected[name]) for name in SCORES if expected})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as exc:
        print(f"{file} says nothing of scores, so they are not counted: {exc!r}", file=sys.stderr, flush=True)
        return None


def count_scores(logits: Sequence[Array], click_label: int) -> dict[str, int]:
    """How many pairs have a click probability of each class; `logits` are those of requests, [1, pairs, labels] each.

    NaN, where a config lets it pass, is of no class.
    """
    if not logits:
        return dict.fromkeys(SCORES, 0)
    rows = np.concatenate([each.reshape(-1, each.shape[-1]) for each in logits])
    rows = rows[~np.isnan(rows).any(axis=1)]
    counts = np.bincount(np.searchsorted(BOUNDS, click_probability(rows, click_label)), minlength=len(SCORES))
    return dict(zip(SCORES, counts.tolist(), strict=True))


def click_probability(logits: Array, click_label: int) -> Array:
    """Click probabilities [pairs] of logits [pairs, labels], float64: sigmoid of one label, softmax of more."""
    wide = logits.astype(np.float64)
    log_odds = wide[:, click_label]
    if wide.shape[1] > 1:
        log_odds = log_odds - np.logaddexp.reduce(np.delete(wide, click_label, axis=1), axis=1)
    probability: Array = np.exp(-np.logaddexp(0.0, -log_odds))
    return probability
