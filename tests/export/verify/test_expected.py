"""What the manifest keeps of the evaluation log, against plain counts of it."""

from __future__ import annotations

import numpy as np
import pytest

from export.verify.evaluation import Evaluation, evaluate, read_checkpoint, read_evaluation
from finetune.evaluation.metrics import click_probability
from tests.tiny import MAX_LENGTH, WORDS, make_checkpoint, make_click_log, make_once_checkpoint

UNKNOWN = 1  # the id of [UNK]


@pytest.fixture(scope="module", params=[make_checkpoint, make_once_checkpoint])
def evaluation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    folder = tmp_path_factory.mktemp("expected")
    checkpoint = request.param(folder / "checkpoint")
    log = make_click_log(folder / "log.jsonl", words=[*WORDS, "\u597d"])  # the last one is [UNK]
    return evaluate(read_checkpoint(checkpoint, None), read_evaluation(log), {"min_auc": 0})


def test_the_scores_are_the_engines(evaluation: Evaluation) -> None:
    logits = evaluation.logits + 1
    scores = click_probability(logits, evaluation.labels)
    found = evaluation.expect(logits).scores
    assert found["0.50"] == np.mean((scores > 0.45) & (scores <= 0.5))
    assert found["1.00"] == np.mean(scores > 0.95)
    assert found != evaluation.expect(evaluation.logits).scores


def test_the_inputs_are_the_logs(evaluation: Evaluation) -> None:
    found = evaluation.expect(evaluation.logits)
    sizes = [[row.group for row in evaluation.rows].count(group) for group in {row.group for row in evaluation.rows}]
    assert found.candidates["5"] == sum(2 < size <= 5 for size in sizes) / len(sizes)
    lengths = np.array([len(pair["input_ids"]) for pair in evaluation.pairs])
    assert lengths.max() == MAX_LENGTH
    assert found.tokens["32"] == np.mean((lengths > 16) & (lengths <= 32))
    # Of these texts each word is one token, so what has more words than the pair has tokens for was cut.
    words = [len(row.query.split()) + len(row.document.split()) for row in evaluation.rows]
    assert found.truncated == np.mean(np.array(words) > lengths - 3)
    assert 0 < found.truncated < 1


def test_a_user_text_that_is_computed_once_is_counted_once(evaluation: Evaluation) -> None:
    ids: list[int] = []
    before = ""
    for row, pair in zip(evaluation.rows, evaluation.pairs, strict=True):
        tokens, end = pair["input_ids"], pair["token_type_ids"].index(1)
        again = evaluation.once and row.group == before
        ids += [*tokens[:1], *tokens[end:]] if again else tokens
        before = row.group
    assert UNKNOWN in ids
    assert evaluation.expect(evaluation.logits).unknown == ids.count(UNKNOWN) / len(ids)
