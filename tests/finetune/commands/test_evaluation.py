"""`evaluate` as a user calls it: a table, one line of JSON, a page; and what it refuses."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from finetune.__main__ import main
from tests.finetune.conftest import TOPICS
from tests.finetune.evaluation.joint import add_heads


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Twelve groups with counts; one candidate of each is clicked significantly more often than the other three."""
    lines = [
        {"group": f"{user}{n}", "query": f"likes {user}", "document": f"new {topic}", "impressions": 100 + n,
         "clicks": 30 if topic == user else 10 - 5 * (n % 2), "topic": topic, "position": place,
         "domain": ("sports", "news")[n % 2]}
        for n in range(3)
        for user in TOPICS
        for place, topic in enumerate(TOPICS, start=1)
    ]  # fmt: skip
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def refuse(constant: str) -> None:
    pytest.fail(f"the JSON holds {constant}")


def run(*arguments: object) -> int:
    return main(["evaluate", *map(str, arguments)])


def read(shown: str) -> dict[str, Any]:
    document = json.loads(shown.splitlines()[-1], parse_constant=refuse)
    assert isinstance(document, dict)
    return document


def test_a_table_with_intervals_and_one_line_of_json(
    checkpoint: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--checkpoint", checkpoint, "--data", log) == 0
    shown = capsys.readouterr().out
    document = read(shown)
    assert (document["checkpoint"], document["data"]) == (str(checkpoint), str(log))
    assert document["significant_pairs"] == 36
    assert 0 <= document["significant_pair_accuracy"] <= 1
    assert document.keys().isdisjoint({"topic", "embedding", "by"}), "a plain checkpoint has no such heads"
    table = {line.split()[0]: line.split()[1:] for line in shown.splitlines()[:-1] if line}
    for name in ("auc", "log_loss", "ndcg_at_10", "mrr", "pairwise_accuracy", "significant_pair_accuracy"):
        low, high = document["intervals"][name]
        assert table[name] == [f"{document[name]:.4f}", f"{low:.4f}", "..", f"{high:.4f}"]
    assert table["significant_pairs"] == ["36"]


def test_without_draws_there_are_no_intervals(checkpoint: Path, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--checkpoint", checkpoint, "--data", log, "--bootstrap", 0) == 0
    shown = capsys.readouterr().out
    assert read(shown)["intervals"] == {}
    assert ".." not in "".join(shown.splitlines()[:-1])


def test_a_joint_checkpoints_heads_are_in_the_json(
    checkpoint: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_heads(checkpoint)
    assert run("--checkpoint", checkpoint, "--data", log) == 0
    shown = capsys.readouterr().out
    document = read(shown)
    assert document["embedding"]["searched_documents"] == 4
    assert 0 <= document["embedding"]["auc_within_groups"] <= 1
    assert "topics, of" in shown and "embedding, documents ranked" in shown
    assert document["topic"]["documents"] == 4
    assert document["topic"]["topics"].keys() == set(TOPICS)
    assert 0 <= document["topic"]["f1"] <= 1


def test_by_fields_and_a_page(checkpoint: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "new" / "page.html"
    fields = ("--by", "domain", "--by", "position")
    assert run("--checkpoint", checkpoint, "--data", log, *fields, "--page", page) == 0
    shown = capsys.readouterr().out
    by = read(shown)["by"]
    assert by.keys() == {"domain", "position"}
    sports, news = (by["domain"]["values"][name] for name in ("sports", "news"))
    assert (sports["measured"], sports["pairs"], news["pairs"]) == (True, 32, 16)
    assert math.isclose(by["domain"]["gaps"]["auc"]["gap"], abs(sports["auc"] - news["auc"]))
    assert "by domain" in shown and "largest gap in auc" in shown
    assert "By domain" in page.read_text(encoding="utf-8")


def test_a_log_of_single_clicks_has_no_significant_pairs(
    checkpoint: Path, click_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--checkpoint", checkpoint, "--data", click_folder / "dev.jsonl") == 0
    document = read(capsys.readouterr().out)
    assert document.keys().isdisjoint({"significant_pairs", "significant_pair_accuracy"})
    assert "significant_pair_accuracy" not in document["intervals"]


def test_empty_texts_and_groups_of_one_are_counted_and_shown(
    checkpoint: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"group": "alone", "query": "", "document": "", "click": 1}) + "\n")
    assert run("--checkpoint", checkpoint, "--data", log) == 0
    shown = capsys.readouterr().out
    document = read(shown)
    assert [document[name] for name in ("groups_of_one", "empty_user_texts", "empty_documents")] == [1, 1, 1]
    for note in ("groups of one candidate", "rows without a user text: 1", "rows without a document's text: 1"):
        assert note in shown


def test_what_cannot_be_measured_is_an_error_with_the_reason(
    checkpoint: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--checkpoint", checkpoint, "--data", log, "--by", "colour") == 1
    assert "error: no row of the log has the field 'colour'; it can be measured by" in capsys.readouterr().err
    one_class = tmp_path / "one.jsonl"
    one_class.write_text(json.dumps({"group": "a", "query": "q", "document": "d", "click": 0}) + "\n")
    assert run("--checkpoint", checkpoint, "--data", one_class) == 1
    assert "error: the click log has no click: AUC is undefined" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_computed(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for page in (tmp_path, log / "page.html"):
        assert run("--checkpoint", "./no-such-checkpoint", "--data", log, "--page", page) == 1
        shown = capsys.readouterr()
        assert shown.out == ""
        assert str(log.name if page == log / "page.html" else tmp_path) in shown.err


@pytest.mark.parametrize("draws", ["-1", "many"])
def test_draws_are_a_number(draws: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--bootstrap", draws)
    assert "--bootstrap" in capsys.readouterr().err
