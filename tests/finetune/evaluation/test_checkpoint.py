"""A checkpoint on a click log: scored as it is served, and everything that it has measured."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.checkpoint.heads import HeadSettings, Passages, read_heads
from finetune.checkpoint.load import load_checkpoint
from finetune.data.clicklog import ClickRow, read_click_log
from finetune.evaluation import heads
from finetune.evaluation.checkpoint import evaluate
from finetune.evaluation.metrics import MetricError, click_probability, evaluate_ranking
from finetune.evaluation.report import screen_lines, to_document
from finetune.evaluation.scoring import score_documents, score_rows, score_texts
from tests.finetune.conftest import TOPICS
from tests.finetune.evaluation.joint import add_heads, fit_heads
from tests.tiny import make_checkpoint, make_click_log

ROWS = [
    ClickRow(f"{user}{n}", f"likes {user}", f"new {topic} " * (1 + 20 * n), int(topic == user), 1, (topic,), place,
             others={"domain": ("short", "long")[n]})
    for n in range(2)
    for user in TOPICS
    for place, topic in enumerate(TOPICS, start=1)
]  # fmt: skip


def test_a_plain_checkpoint_is_measured_on_its_clicks(checkpoint: Path) -> None:
    found = evaluate(str(checkpoint), ROWS)
    model, tokenizer, max_length = load_checkpoint(checkpoint)
    scores = click_probability(score_rows(model, tokenizer, ROWS, max_length), ["click"])
    assert found.metrics == evaluate_ranking(ROWS, scores)
    assert found.intervals.keys() == {"auc", "log_loss", "ndcg_at_10", "mrr", "pairwise_accuracy"}
    assert (found.topic, found.embedding, found.by, found.missing) == (None, None, (), ())


def test_a_joint_checkpoint_is_measured_on_each_head_and_field(checkpoint: Path) -> None:
    add_heads(checkpoint)
    found = evaluate(str(checkpoint), ROWS, by=["domain", "position"], draws=50)
    assert found.topic is not None and found.topic.documents == 8
    assert found.embedding is not None and found.embedding.searches == 8
    assert [report.field for report in found.by] == ["domain", "position"]
    assert found.metrics == evaluate(str(checkpoint), ROWS).metrics, "further heads change no click"


def make_domains(checkpoint: Path) -> list[ClickRow]:
    """Domains of six groups, and one of a single group; of "unserved", the heads take each text for the next one."""
    rows, topics, embeddings = [], {}, {}
    for domain, letters in (("served", "abcdef"), ("unserved", "ghijkl"), ("rare", "a")):
        ring = "ghijkl" if domain == "unserved" else "abcdef"
        for place, letter in enumerate(letters):
            own, following = place % 4, (place + 1) % 6
            candidates = ((f"new {letter}", own), (f"new {ring[following]}", following % 4))
            rows += [
                ClickRow(f"{domain} {letter}", f"likes {letter}", text, int(text == candidates[0][0]), 1,
                         (TOPICS[topic],), others={"domain": domain})
                for text, topic in candidates
            ]  # fmt: skip
            if domain == "rare":
                continue
            shift = 6 * (domain == "unserved")
            topics[f"new {letter}"] = TOPICS[(own + (domain == "unserved")) % 4]
            embeddings[f"new {letter}"] = np.eye(12)[place + shift].tolist()
            nearest = np.eye(12)[following + shift] * (domain == "unserved")
            embeddings[f"likes {letter}"] = (np.eye(12)[place + shift] + 2 * nearest).tolist()
    fit_heads(checkpoint, topics, embeddings)
    return rows


def test_a_value_that_the_heads_do_not_serve_is_found(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_domains(checkpoint)
    scored: list[str] = []

    def count(*arguments: Any) -> Any:
        scored.extend(arguments[3])
        return score_texts(*arguments)

    monkeypatch.setattr(heads, "score_texts", count)
    found = evaluate(str(checkpoint), rows, by=["domain", "topic"], draws=0)
    assert len(scored) == len(set(scored)) == 24, "each text once, however many values there are"
    document = to_document("checkpoint", "data", found)["by"]["domain"]
    served, unserved, rare = (document["values"][name] for name in ("served", "unserved", "rare"))
    assert (served["topic"]["documents"], served["topic"]["accuracy"]) == (6, 1)
    assert (unserved["topic"]["accuracy"], unserved["topic"]["f1"]) == (0, 0)
    assert (served["embedding"]["mrr"], served["embedding"]["auc_within_groups"]) == (1, 1)
    # The next one's document stands first, the own one second, of the documents of all domains.
    assert (unserved["embedding"]["mrr"], unserved["embedding"]["auc_within_groups"]) == (0.5, 0)
    assert served["embedding"]["searched_documents"] == 12
    for name in ("topic_accuracy", "embedding_mrr"):
        assert (document["gaps"][name]["worse"], document["gaps"][name]["better"]) == ("unserved", "served")
    assert document["gaps"]["embedding_mrr"]["gap"] == 0.5
    assert (rare["topic"]["documents"], rare["embedding"]["searches"]) == (2, 1)
    assert not {"accuracy", "mrr", "auc_within_groups"} & (rare["topic"].keys() | rare["embedding"].keys()), "too few"
    lines = {line.split()[0]: line.split()[1:] for line in screen_lines(found) if line}
    assert lines["unserved"][-2:] == ["0.0000", "0.5000"]
    assert lines["rare"] == ["2", "1", "too", "few"]
    assert any(
        "largest gap in topic_accuracy: " in line and "unserved (0.0000)" in line for line in screen_lines(found)
    )


def test_long_documents_are_scored_as_they_are_served(tmp_path: Path) -> None:
    checkpoint, log = make_checkpoint(tmp_path / "checkpoint"), make_click_log(tmp_path / "log.jsonl")
    rows = read_click_log(log)
    cut = evaluate(str(checkpoint), rows).log.scores
    add_heads(checkpoint, HeadSettings(passages=Passages("max", overlap=4)))
    found = evaluate(str(checkpoint), rows).log.scores
    model, tokenizer, max_length = load_checkpoint(checkpoint)
    logits = score_documents(model, read_heads(checkpoint, 32), tokenizer, rows, max_length)
    assert found.tolist() == click_probability(logits, ["click"]).tolist()
    assert (abs(found - cut) > 1e-3).any(), "the log has documents of several passages"


def test_what_measures_less_than_it_seems_to_is_counted(checkpoint: Path) -> None:
    odd = [ClickRow("alone", "", "new", 1, 1), ClickRow("x", " ", "", 0, 1), ClickRow("x", "likes", "\t", 1, 1)]
    found = evaluate(str(checkpoint), [*ROWS, *odd])
    assert (found.oddities.groups_of_one, found.oddities.empty_user_texts, found.oddities.empty_documents) == (1, 2, 2)
    assert found.metrics["pairs"] == len(ROWS) + 3


@pytest.mark.parametrize(
    ("rows", "by", "fault"),
    [
        ([replace(row, clicks=0.0) for row in ROWS], [], "no click: AUC is undefined"),
        ([replace(row, clicks=1.0) for row in ROWS], [], "nothing but clicks: AUC is undefined"),
        ([replace(row, group=str(n)) for n, row in enumerate(ROWS)], [], "no group has both better and worse"),
        ([], [], "no rows"),
        (ROWS, ["colour"], "no row of the log has the field 'colour'; it can be measured by topic, position, domain"),
    ],
)
def test_a_log_that_cannot_be_measured_is_refused_before_the_model_is_loaded(
    rows: list[ClickRow], by: list[str], fault: str
) -> None:
    with pytest.raises(MetricError, match=fault):
        evaluate("./no-such-folder", rows, by=by)
