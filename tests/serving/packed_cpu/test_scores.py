"""The scores that the backend counts are those that the client returns, in the classes that the manifest has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clickbert.wire import protocol
from release.expected import SCORES, shares
from release.names import MANIFEST_FILE
from serving.backends.packed_cpu.scores import Scoring, click_probability, count_scores, read_scoring

LOGITS = st.floats(-1000, 1000, width=32)
ROWS = st.integers(1, 4).flatmap(
    lambda labels: st.lists(st.lists(LOGITS, min_size=labels, max_size=labels), min_size=1, max_size=40)
)


@given(ROWS)
def test_the_rule_is_the_clients(rows: list[list[float]]) -> None:
    logits = np.array(rows, np.float32)
    for label in range(logits.shape[1]):
        client = protocol.click_probability(protocol.click_log_odds(logits, label))
        assert click_probability(logits, label).tolist() == client.tolist()


@given(st.lists(ROWS, min_size=1, max_size=4), st.data())
def test_every_pair_is_counted_in_the_class_of_its_score(
    requests: list[list[list[float]]], data: st.DataObject
) -> None:
    requests = [rows for rows in requests if len(rows[0]) == len(requests[0][0])]
    label = data.draw(st.integers(0, len(requests[0][0]) - 1))
    logits = [np.array([rows], np.float32) for rows in requests]
    counts = count_scores(logits, label)
    scores = [score for rows in logits for score in click_probability(rows[0], label)]
    assert sum(counts.values()) == len(scores)
    assert {name: count / len(scores) for name, count in counts.items()} == shares(scores, SCORES)


def test_ends_and_bounds_of_classes() -> None:
    def classes(*logits: float) -> dict[str, int]:
        counts = count_scores([np.array([[[logit] for logit in logits]])], 0)
        return {name: count for name, count in counts.items() if count}

    assert classes(-1000.0, 1000.0, 0.0) == {"0.05": 1, "1.00": 1, "0.50": 1}
    bound = float(-np.log(19))  # of the probability 0.05
    assert classes(bound - 1e-9, bound + 1e-9) == {"0.05": 1, "0.10": 1}


def test_nothing_and_nan_are_in_no_class() -> None:
    assert count_scores([], 0) == dict.fromkeys(SCORES, 0)
    assert sum(count_scores([np.array([[[np.nan], [0.0]]], np.float32)], 0).values()) == 1


def write(folder: Path, **fields: Any) -> Path:
    (folder / MANIFEST_FILE).write_text(json.dumps(fields), encoding="utf-8")
    return folder


def test_a_version_without_a_manifest_has_no_scores(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert read_scoring(tmp_path) is None
    assert not capfd.readouterr().err


def test_the_manifest_says_which_label_is_the_click_and_what_to_expect(tmp_path: Path) -> None:
    expected = dict.fromkeys(SCORES, 0.05)
    fields: dict[str, Any] = {"labels": ["skip", "click"], "click_label": 1}
    assert read_scoring(write(tmp_path, **fields)) == Scoring(1, {}), "of a former release"
    assert read_scoring(write(tmp_path, **fields, expected=None)) == Scoring(1, {})
    assert read_scoring(write(tmp_path, **fields, expected={"scores": expected})) == Scoring(1, expected)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"labels": ["click"], "click_label": 1},
        {"labels": ["click"], "click_label": None},
        {"labels": None, "click_label": 0},
        {"labels": ["click"], "click_label": 0, "expected": [1]},
        {"labels": ["click"], "click_label": 0, "expected": {"scores": {"0.05": 1}}},
    ],
)
def test_a_manifest_that_says_nothing_is_told_and_keeps_no_version_from_being_served(
    tmp_path: Path, fields: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    assert read_scoring(write(tmp_path, **fields)) is None
    assert "manifest.json says nothing of scores" in capfd.readouterr().err
