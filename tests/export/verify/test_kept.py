"""What a graph keeps of a user text: proved on the real graph, and refused where it is spoiled."""

from pathlib import Path

import numpy as np
import pytest

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

LABELS = 2
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def pairs(two_label_once_checkpoint: Path, published_log: Path) -> list[Pair]:
    checkpoint = read_checkpoint(two_label_once_checkpoint, None)
    return tokenize_pairs(
        checkpoint.tokenizer, read_click_log(published_log), checkpoint.max_length, checkpoint.user_tokens
    )


@pytest.fixture(scope="module")
def logits(once_graph: Path, pairs: list[Pair]) -> Logits:
    return score_merged(open_graph(once_graph), pairs, {LOGITS: LABELS}, once=True)[LOGITS]


def test_a_sound_graph_is_proved(once_graph: Path, pairs: list[Pair], logits: Logits, tmp_path: Path) -> None:
    prove_kept(open_graph(once_graph), "mine", pairs, logits, 1e-5)
    prove_kept(open_graph(spoil(once_graph, tmp_path / "same.onnx", 1.0)), "mine", pairs, logits, 1e-5)


@pytest.mark.parametrize("factor", [1.05, 0.0, float("nan")])
def test_a_graph_whose_kept_output_is_spoiled_is_refused(
    once_graph: Path, pairs: list[Pair], logits: Logits, tmp_path: Path, factor: float
) -> None:
    run = open_graph(spoil(once_graph, tmp_path / "spoiled.onnx", factor))
    assert np.array_equal(score_merged(run, pairs, {LOGITS: LABELS}, once=True)[LOGITS], logits), (
        "no other gate sees it"
    )
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
