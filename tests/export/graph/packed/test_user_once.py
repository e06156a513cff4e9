"""The packed graph that computes a user text once, against Hugging Face's forward under the same mask."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import BertForSequenceClassification

from export.graph.lint import lint
from export.graph.packed.packed_bert import output_widths
from export.graph.packed.segments import Brought
from export.graph.packed.user_once import OnceBert, OnceLayout
from export.graph.packing import Feed, Pair, pack, split_pair
from export.graph.session import open_graph, open_on_cpu
from export.verify.evaluation import Checkpoint, read_checkpoint
from export.verify.kept import without_users
from finetune.checkpoint.attention import set_user_tokens
from release.names import (
    KEPT,
    KEPT_INPUTS,
    LOGITS,
    ONCE_COUNT_INPUTS,
    ONCE_GRAPH_INPUTS,
    ONCE_REQUEST_INPUTS,
)
from tests.export.graph.packed.once_batches import (
    BATCHES,
    BEFORE,
    BEHIND,
    CLS,
    MOST,
    REQUEST,
    SEP,
    SPOILERS,
    alone,
    batches_with_an_empty_request,
    collect,
    of_one_user,
    one_request,
    pair,
    several_requests,
    spoiled,
    with_a_stranger,
    words,
)
from tests.export.graph.packed.single_texts import DRAWN, SIZES, TEXTS, batch_of, check_heads
from tests.tiny import MAX_LENGTH


@pytest.fixture(scope="module")
def packed(once_model: BertForSequenceClassification) -> OnceBert:
    return OnceBert(once_model).eval()


def lay_out(packed: OnceBert, feed: Feed) -> OnceLayout:
    none, kept = packed.nothing_kept()
    return packed.lay_out(Brought(*(torch.as_tensor(feed[name]).long() for name in ONCE_GRAPH_INPUTS)), none, kept)


def run(packed: OnceBert, feed: Feed) -> torch.Tensor:
    with torch.inference_mode():
        return packed(*(torch.as_tensor(feed[name]) for name in ONCE_GRAPH_INPUTS))[0]


@settings(max_examples=60)
@given(several_requests)
def test_it_equals_hugging_face_one_pair_at_a_time(once_model, packed: OnceBert, batch: list[list[Pair]]) -> None:
    assert torch.allclose(run(packed, pack(batch, once=True)), alone(once_model, batch), atol=1e-5)


def test_the_graph_keeps_the_rules(once_graph: Path) -> None:
    lint(onnx.load(once_graph), tensorrt=False)


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_pytorch_and_onnx_runtime_equal_hugging_face(once_model, packed: OnceBert, once_graph: Path, batch) -> None:
    feed, expected = pack(batch, once=True), alone(once_model, batch)
    assert torch.allclose(run(packed, feed), expected, atol=1e-5)
    assert np.allclose(open_graph(once_graph)(feed)[LOGITS], expected, atol=1e-5)


def test_a_user_text_travels_once_for_pairs_that_stand_side_by_side() -> None:
    first, second = words(3), words(5)
    request = [
        pair(first, words(2)),
        pair(first, words(4)),
        pair(second, []),
        pair(None, words(6)),
        pair(first, words(2)),
    ]
    feed = pack([request, request[:2]], once=True)
    assert feed["user_lengths"].tolist() == [4, 6, 0, 4, 4]
    assert feed["user_pairs"].tolist() == [2, 1, 1, 1, 2]
    assert feed["lengths"].tolist() == [4, 6, 2, 8, 4, 4, 6]
    assert feed["input_ids"][:10].tolist() == [*first, SEP, CLS, *words(2), SEP, CLS, *words(4)][:10]
    assert [feed[name].tolist() for name in ONCE_COUNT_INPUTS] == [[38, 14], [4, 1], [4, 1], [5, 2]]


def test_users_with_few_candidates_do_not_pay_for_one_with_many(packed: OnceBert) -> None:
    """Attention's time and memory grow with the grid, which holds less than twice the pairs and the users."""
    one = [[pair(words(3), words(4)) for _ in range(60)]]
    many = [[pair(words(3, user), words(4))] for user in range(40)]
    blocks, block, _ = lay_out(packed, pack(one, once=True)).grid.shape
    assert (blocks, block) == (1, 60)
    blocks, block, _ = lay_out(packed, pack(one + many, once=True)).grid.shape
    assert blocks * block < 2 * (100 + 41)


def assert_only_the_second_is_harmed(packed: OnceBert, feed: Feed) -> None:
    logits, expected = run(packed, feed), run(packed, pack([BEFORE, BEHIND], once=True))
    assert logits[2:-1].isnan().all()
    assert torch.allclose(logits[[0, 1, -1]], expected, atol=1e-6)


@pytest.mark.parametrize("changes", SPOILERS.values(), ids=SPOILERS)
def test_a_malformed_request_gets_nan_and_its_neighbours_their_own_logits(
    packed, once_graph: Path, changes: dict
) -> None:
    feed = spoiled(changes)
    assert_only_the_second_is_harmed(packed, feed)
    assert np.allclose(open_graph(once_graph)(feed)[LOGITS], run(packed, feed), atol=1e-6, equal_nan=True)


def test_a_pair_that_is_too_long_with_its_user_text_is_malformed(packed: OnceBert) -> None:
    too_long = pair(words(30), words(MAX_LENGTH - 32))
    assert_only_the_second_is_harmed(packed, pack([BEFORE, [too_long], BEHIND], once=True))


def test_two_wrong_requests_that_cancel_out_do_not_shift_the_one_between_them(packed: OnceBert) -> None:
    batch = [[pair(words(3), words(2))], [pair(words(5), words(4))], [pair(words(5), words(2))]]
    feed = pack(batch, once=True)
    expected = run(packed, feed)
    feed["user_lengths"][[0, 2]] = [6, 4]  # 4 and 6 tokens: the sum over the batch still fits
    logits = run(packed, feed)
    assert logits[[0, 2]].isnan().all()
    assert torch.allclose(logits[1], expected[1], atol=1e-6)


def test_pairs_of_users_are_read_from_their_own_request(packed: OnceBert) -> None:
    feed = pack([REQUEST, BEFORE, BEHIND], once=True)
    expected = run(packed, feed)
    feed["user_pairs"] = feed["user_pairs"][1:]  # the first request brought one number for its two users
    feed["user_pair_counts"][0] = 1
    logits = run(packed, feed)
    assert logits[:3].isnan().all()
    assert torch.allclose(logits[3:], expected[3:], atol=1e-6)


@settings(max_examples=80)
@given(several_requests, st.data())
def test_whatever_a_request_claims_harms_nobody_else(packed: OnceBert, batch: list[list[Pair]], data) -> None:
    """Random numbers in one request's inputs: its neighbours get the same logits, from a grid that is no larger."""
    feed, own = with_a_stranger(batch, data)
    layout, sound = lay_out(packed, feed), lay_out(packed, pack(batch, once=True))
    first, last = own.start, own.stop
    assume(layout.malformed[first:last].all())  # random numbers can be well formed
    assert layout.mask.shape == sound.mask.shape
    assert layout.own_mask.shape[1:] == sound.own_mask.shape[1:]
    logits = run(packed, feed)
    assert logits[first:last].isnan().all()
    assert torch.allclose(torch.cat([logits[:first], logits[last:]]), run(packed, pack(batch, once=True)), atol=DRAWN)


def test_a_batch_of_malformed_requests_has_a_grid_of_one(packed: OnceBert) -> None:
    feed = pack([REQUEST, BEHIND], once=True)
    feed["lengths"][[0, -1]] += 1
    assert lay_out(packed, feed).mask.shape == (1, 1, 1, 1, 2)
    assert run(packed, feed).isnan().all()


@settings(max_examples=60)
@given(batches_with_an_empty_request())
def test_what_lies_behind_an_empty_request_is_nan_and_what_lies_before_is_unharmed(packed: OnceBert, case) -> None:
    batch, place, names, seed = case
    feed = collect(batch, place, names, seed)
    assume(all(len(feed[name]) for name in ONCE_REQUEST_INPUTS))  # else the execution fails, and all of it is malformed
    logits = run(packed, feed)
    before = sum(len(request) for request in batch[:place])
    assert logits[before:].isnan().all()
    if before:
        assert torch.allclose(logits[:before], run(packed, pack(batch[:place], once=True)), atol=DRAWN)


@pytest.fixture(scope="module")
def joint(joint_checkpoint: Path) -> Checkpoint:
    found = read_checkpoint(joint_checkpoint, None)
    set_user_tokens(found.model.config, MOST)
    return found


@settings(max_examples=30)
@given(TEXTS, SIZES, st.integers(0, 8))
def test_the_further_heads_equal_pytorchs_in_merged_requests(
    joint: Checkpoint, drawn: list[str], sizes: list[int], place: int
) -> None:
    batch, first = batch_of(joint, drawn, sizes, place, REQUEST)
    packed = OnceBert(joint.model, joint.heads).eval()
    with torch.inference_mode():
        outputs = packed(*(torch.as_tensor(array) for array in pack(batch, once=True).values()))
    found = dict(zip([*output_widths(joint.model, joint.heads), KEPT], outputs, strict=True))
    del found[KEPT]
    check_heads(joint, drawn, found, range(first, first + len(REQUEST)))


@settings(max_examples=40)
@given(st.lists(of_one_user, min_size=1, max_size=4), one_request, st.data())
def test_what_was_kept_of_user_texts_stands_for_them(
    packed: OnceBert, once_model, parts: list[list[Pair]], other: list[Pair], data
) -> None:
    """A request in two chunks: the first has a pair of each user, the second the others, beside another request."""
    assume(all(user_of(one) != user_of(two) for one, two in pairwise(parts)))
    first, second = [part[0] for part in parts], [one for part in parts for one in part]
    feed = pack([other, first], once=True)
    with torch.inference_mode():
        *_, kept = packed(*(torch.as_tensor(feed[name]) for name in ONCE_GRAPH_INPUTS))
    kept = kept[:, -len(parts) :]
    chunks = [(other, pack([other], once=True), 0), (second, without_users([second]), 1)]
    if data.draw(st.booleans()):
        chunks.reverse()
    numbers = [known * (place + 1) for _, chunk, known in chunks for place in range(len(chunk["user_lengths"]))]
    inputs = [torch.as_tensor(np.concatenate([chunk[name] for _, chunk, _ in chunks])) for name in ONCE_GRAPH_INPUTS]
    with torch.inference_mode():
        logits, _ = packed(*inputs, torch.tensor(numbers, dtype=torch.int32), kept)
    assert torch.allclose(logits, alone(once_model, [request for request, _, _ in chunks]), atol=1e-5)


def user_of(part: list[Pair]) -> list[int]:
    return split_pair(part[0])[0]


def test_the_exported_graph_keeps_them_too(once_graph: Path, once_model) -> None:
    session = open_on_cpu(once_graph, for_gpu=False)
    assert {value.name for value in session.get_overridable_initializers()} == {*KEPT_INPUTS}
    request = [pair(words(9), words(count)) for count in (3, 5)] + [pair(words(MOST), words(4)), pair(None, words(6))]
    (kept,) = session.run([KEPT], pack([[request[0], *request[2:]]], once=True))
    earlier = dict(zip(KEPT_INPUTS, (np.array([1, 2, 3], np.int32), kept), strict=True))
    (logits,) = session.run([LOGITS], without_users([request]) | earlier)
    assert np.allclose(logits, alone(once_model, [request]), atol=1e-5)
