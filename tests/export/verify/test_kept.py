"""What a graph keeps of a user text: proved on the real graph, and refused where it is spoiled."""

from pathlib import Path

import numpy as np
import pytest

from export.graph.onnx_export import write_click_model
from export.graph.packing import Feed, Logits, Outputs, Pair, split_pair
from export.graph.session import open_graph
from export.verify.evaluation import read_checkpoint
from export.verify.kept import MOST, USERS, choose_users, prove_kept
from export.verify.parity import ParityError, score_merged
from export.verify.speed import measure_speed
from finetune.data.clicklog import read_click_log
from finetune.evaluation.scoring import tokenize_pairs
from release.names import LOGITS
from tests.export.spoiled import spoil
from tests.tiny import make_click_log, make_once_checkpoint

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    write_click_model(read_checkpoint(make_once_checkpoint(folder / "checkpoint"), None).model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def pairs(graph: Path) -> list[Pair]:
    checkpoint = read_checkpoint(graph.parent / "checkpoint", None)
    rows = read_click_log(make_click_log(graph.parent / "log.jsonl"))
    return tokenize_pairs(checkpoint.tokenizer, rows, checkpoint.max_length, checkpoint.user_tokens)


@pytest.fixture(scope="module")
def logits(graph: Path, pairs: list[Pair]) -> Logits:
    return score_merged(open_graph(graph), pairs, {LOGITS: 1}, once=True)[LOGITS]


def test_a_sound_graph_is_proved(graph: Path, pairs: list[Pair], logits: Logits, tmp_path: Path) -> None:
    prove_kept(open_graph(graph), "mine", pairs, logits, 1e-5)
    prove_kept(open_graph(spoil(graph, tmp_path / "same.onnx", 1.0)), "mine", pairs, logits, 1e-5)


@pytest.mark.parametrize("factor", [1.05, 0.0, float("nan")])
def test_a_graph_whose_kept_output_is_spoiled_is_refused(
    graph: Path, pairs: list[Pair], logits: Logits, tmp_path: Path, factor: float
) -> None:
    run = open_graph(spoil(graph, tmp_path / "spoiled.onnx", factor))
    assert np.array_equal(score_merged(run, pairs, {LOGITS: 1}, once=True)[LOGITS], logits), "no other gate sees it"
    with pytest.raises(ParityError, match=r"mine gives other logits .* a request's chunks .*'kept'.* is over 0.0001"):
        prove_kept(run, "mine", pairs, logits, TOLERANCE)


def test_a_graph_that_keeps_nothing_is_refused(pairs: list[Pair], logits: Logits) -> None:
    with pytest.raises(ParityError, match="mine does not answer with 'kept'"):
        prove_kept(lambda _: {LOGITS: logits}, "mine", pairs, logits, TOLERANCE)


def test_users_with_several_pairs_are_chosen_from_short_to_long(pairs: list[Pair]) -> None:
    users = choose_users(pairs)
    assert len(users) == USERS
    assert all(1 < len(members) <= MOST for members in users)
    lengths = [len(split_pair(pairs[members[0]])[0]) for members in users]
    assert lengths == sorted(lengths)
    assert choose_users([pairs[members[0]] for members in users]) != [], "users with one pair each"
    assert choose_users([{"input_ids": [2, 7, 3], "token_type_ids": [0, 0, 0]}]) == []


def test_the_speed_is_measured_with_a_users_pairs_side_by_side(pairs: list[Pair]) -> None:
    feeds: list[Feed] = []

    def run(feed: Feed) -> Outputs:
        feeds.append(feed)
        return {}

    mixed = [*pairs[::2], *pairs[1::2]]
    measure_speed({"mine": run}, mixed, once=True)
    users = {tuple(split_pair(pair)[0]) for pair in pairs}
    batches = {feed["input_ids"].tobytes(): len(feed["user_lengths"]) for feed in feeds}
    assert sum(batches.values()) < len(users) + len(batches)
