"""The packed graph that computes a user text once, against Hugging Face's forward under the same mask."""

from __future__ import annotations

import random
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
from export.graph.onnx_export import write_click_model
from export.graph.packed.packed_bert import output_widths
from export.graph.packed.segments import Brought
from export.graph.packed.user_once import OnceBert, OnceLayout
from export.graph.packing import Feed, Pair, pack, split_pair
from export.graph.session import open_graph, open_on_cpu
from export.verify.evaluation import Checkpoint, read_checkpoint
from export.verify.kept import without_users
from finetune.checkpoint.attention import attended, set_user_tokens
from release.names import (
    KEPT,
    KEPT_INPUTS,
    LOGITS,
    ONCE_COUNT_INPUTS,
    ONCE_GRAPH_INPUTS,
    ONCE_REQUEST_INPUTS,
)
from tests.export.graph.packed.single_texts import SIZES, TEXTS, batch_of, check_heads
from tests.tiny import MAX_LENGTH, make_checkpoint

COUNT_OF = dict(zip(ONCE_REQUEST_INPUTS, ONCE_COUNT_INPUTS, strict=True))
CLS, SEP = 2, 3
MOST = 20  # tokens of a user text


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BertForSequenceClassification:
    folder = make_checkpoint(tmp_path_factory.mktemp("checkpoint"), labels=2, num_hidden_layers=3)
    found = BertForSequenceClassification.from_pretrained(folder).eval()
    set_user_tokens(found.config, MOST)
    return found


@pytest.fixture(scope="module")
def packed(model: BertForSequenceClassification) -> OnceBert:
    return OnceBert(model).eval()


def pair(user: list[int] | None, candidate: list[int]) -> Pair:
    """A pair; without a user text, a single one."""
    if user is None:
        return {"input_ids": [CLS, *candidate, SEP], "token_type_ids": [0] * (len(candidate) + 2)}
    types = [0] * (len(user) + 2) + [1] * (len(candidate) + 1)
    return {"input_ids": [CLS, *user, SEP, *candidate, SEP], "token_type_ids": types}


def words(count: int, seed: int = 0) -> list[int]:
    return random.Random(f"{seed} {count}").choices(range(5, 100), k=count)


def texts_up_to(most: int) -> st.SearchStrategy[list[int]]:
    return st.tuples(st.integers(0, most), st.integers(0, 99)).map(lambda drawn: words(*drawn))


users = st.one_of(st.none(), texts_up_to(MOST))
candidates = texts_up_to(MAX_LENGTH - 3 - MOST)
of_one_user = st.tuples(users, st.lists(candidates, min_size=1, max_size=6)).map(
    lambda drawn: [pair(drawn[0], candidate) for candidate in drawn[1]]
)
one_request = st.lists(of_one_user, min_size=1, max_size=3).map(lambda parts: [one for part in parts for one in part])
several_requests = st.lists(one_request, min_size=1, max_size=4)


def lay_out(packed: OnceBert, feed: Feed) -> OnceLayout:
    none, kept = packed.nothing_kept()
    return packed.lay_out(Brought(*(torch.as_tensor(feed[name]).long() for name in ONCE_GRAPH_INPUTS)), none, kept)


def run(packed: OnceBert, feed: Feed) -> torch.Tensor:
    with torch.inference_mode():
        return packed(*(torch.as_tensor(feed[name]) for name in ONCE_GRAPH_INPUTS))[0]


def alone(model: BertForSequenceClassification, batch: list[list[Pair]]) -> torch.Tensor:
    """The logits of every pair by Hugging Face's forward, one at a time."""
    found = []
    for one in (one for request in batch for one in request):
        inputs = {name: torch.tensor([ids]) for name, ids in one.items()}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.inference_mode():
            found.append(model(**attended(model.config, inputs)).logits[0])
    return torch.stack(found)


@settings(max_examples=60, deadline=None)
@given(several_requests)
def test_it_equals_hugging_face_one_pair_at_a_time(model, packed: OnceBert, batch: list[list[Pair]]) -> None:
    assert torch.allclose(run(packed, pack(batch, once=True)), alone(model, batch), atol=1e-5)


FULL = words(MAX_LENGTH - 3 - MOST)
BATCHES = {
    "one user, 300 candidates": [[pair(words(9), words(place % 20, place)) for place in range(300)]],
    "1 candidate": [[pair(words(4), words(7))]],
    "no candidate text": [[pair(words(4), []), pair(words(4), words(3))]],
    "no user text": [[pair([], words(4)), pair([], words(9))]],
    "neither": [[pair([], [])]],
    "the longest of both": [[pair(words(MOST), FULL), pair(words(MOST), [])]],
    "single texts": [[pair(None, words(n)) for n in (3, MAX_LENGTH - 2, 0)]],
    "several users": [[pair(words(n, user), words(5, n)) for user in range(4) for n in (3, 3, 9)]],
    "many candidates beside one": [[pair(words(3), words(n)) for n in range(20)], [pair(words(MOST), words(2))]],
    "mixed": [
        [pair(None, words(8)), pair(words(5), words(2)), pair(words(5), words(6)), pair(None, words(40))],
        [pair([], words(1))],
        [pair(words(MOST), FULL)] * 5,
    ],
}


@pytest.fixture(scope="module")
def graph(model: BertForSequenceClassification, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    write_click_model(model, path)
    lint(onnx.load(path), tensorrt=False)
    return path


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_pytorch_and_onnx_runtime_equal_hugging_face(model, packed: OnceBert, graph: Path, batch) -> None:
    feed, expected = pack(batch, once=True), alone(model, batch)
    assert torch.allclose(run(packed, feed), expected, atol=1e-5)
    assert np.allclose(open_graph(graph)(feed)[LOGITS], expected, atol=1e-5)


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


REQUEST = [pair(words(4), words(5)), pair(words(4), words(3)), pair(words(6), words(2))]
BEFORE, BEHIND = [pair(words(7), words(6)), pair(None, words(5))], [pair(words(2), words(9))]
# Each spoils REQUEST between the two others. Its elements begin behind those of BEFORE.
SPOILERS = {
    "length too large": {"lengths": (0, 8)},
    "length too small": {"lengths": (1, 4)},
    "length negative": {"lengths": (0, -5)},
    "length enormous": {"lengths": (0, 2**31 - 1)},
    "length one": {"lengths": (0, 1)},
    "lengths that cancel out, one too small": {"lengths": ((0, 1), (1, 11))},
    "user length too large": {"user_lengths": (0, 6)},
    "user length negative": {"user_lengths": (1, -1)},
    "user length enormous": {"user_lengths": (0, 2**31 - 1)},
    "no pairs of a user": {"user_pairs": ((0, 0), (1, 3))},
    "too many pairs": {"user_pairs": (0, 3)},
    "too few pairs": {"user_pairs": (0, 1)},
    "pairs negative": {"user_pairs": ((0, -1), (1, 4))},
    "pairs enormous": {"user_pairs": (0, 2**31 - 1)},
    "id outside the vocabulary": {"input_ids": (6, 10**6)},
    "id negative": {"input_ids": (0, -1)},
}


def spoiled(changes: dict) -> Feed:
    feed = pack([BEFORE, REQUEST, BEHIND], once=True)
    first = pack([BEFORE], once=True)
    for name, places in changes.items():
        for place, value in places if isinstance(places[0], tuple) else (places,):
            feed[name][len(first[name]) + place] = value
    return feed


def assert_only_the_second_is_harmed(packed: OnceBert, feed: Feed) -> None:
    logits, expected = run(packed, feed), run(packed, pack([BEFORE, BEHIND], once=True))
    assert logits[2:-1].isnan().all()
    assert torch.allclose(logits[[0, 1, -1]], expected, atol=1e-6)


@pytest.mark.parametrize("changes", SPOILERS.values(), ids=SPOILERS)
def test_a_malformed_request_gets_nan_and_its_neighbours_their_own_logits(packed, graph: Path, changes: dict) -> None:
    feed = spoiled(changes)
    assert_only_the_second_is_harmed(packed, feed)
    assert np.allclose(open_graph(graph)(feed)[LOGITS], run(packed, feed), atol=1e-6, equal_nan=True)


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


@settings(max_examples=80, deadline=None)
@given(several_requests, st.data())
def test_whatever_a_request_claims_harms_nobody_else(packed: OnceBert, batch: list[list[Pair]], data) -> None:
    """Random numbers in one request's inputs: its neighbours get the same logits, from a grid that is no larger."""
    place = data.draw(st.integers(0, len(batch)))
    numbers = st.one_of(st.integers(-2, 60), st.sampled_from([-(2**31), 2**31 - 1, MAX_LENGTH]))
    claimed = {name: data.draw(st.lists(numbers, min_size=1, max_size=30)) for name in ONCE_REQUEST_INPUTS}
    stranger = {name: np.array(values, np.int32) for name, values in claimed.items()}
    stranger |= {COUNT_OF[name]: np.array([len(values)], np.int32) for name, values in claimed.items()}
    parts = [pack([request], once=True) for request in batch]
    parts.insert(place, stranger)
    feed = {name: np.concatenate([part[name] for part in parts]) for name in ONCE_GRAPH_INPUTS}
    layout, sound = lay_out(packed, feed), lay_out(packed, pack(batch, once=True))
    first, last = sum(map(len, batch[:place])), sum(map(len, batch[:place])) + len(claimed["lengths"])
    assume(layout.malformed[first:last].all())  # random numbers can be well formed
    assert layout.mask.shape == sound.mask.shape
    assert layout.own_mask.shape[1:] == sound.own_mask.shape[1:]
    logits = run(packed, feed)
    assert logits[first:last].isnan().all()
    assert torch.allclose(torch.cat([logits[:first], logits[last:]]), run(packed, pack(batch, once=True)), atol=1e-6)


def test_a_batch_of_malformed_requests_has_a_grid_of_one(packed: OnceBert) -> None:
    feed = pack([REQUEST, BEHIND], once=True)
    feed["lengths"][[0, -1]] += 1
    assert lay_out(packed, feed).mask.shape == (1, 1, 1, 1, 2)
    assert run(packed, feed).isnan().all()


@st.composite
def batches_with_an_empty_request(draw: st.DrawFn) -> tuple[list[list[Pair]], int, list[str], int]:
    """Requests, the place of the one that lacks inputs, their names, and a seed for what stands in memory behind it."""
    batch = draw(several_requests)
    names = draw(st.lists(st.sampled_from(ONCE_REQUEST_INPUTS), min_size=1, unique=True))
    return batch, draw(st.integers(0, len(batch) - 1)), names, draw(st.integers(0, 2**32))


def collect(batch: list[list[Pair]], place: int, names: list[str], seed: int) -> Feed:
    """The batch as Triton's C++ backends merge it where the request at `place` brings no element of the inputs `names`.

    They stop copying such an input there (`BackendInputCollector`), and leave what the memory holds: here numbers that
    pass for the input's, often those of the same batch, as of an earlier execution.
    """
    chance = np.random.default_rng(seed)
    parts = [pack([request], once=True) for request in batch]
    for name in names:
        parts[place] = parts[place] | {name: np.zeros(0, np.int32), COUNT_OF[name]: np.zeros(1, np.int32)}
    feed = {name: np.concatenate([part[name] for part in parts]) for name in ONCE_GRAPH_INPUTS}
    for name in names:
        uncopied = feed[name][sum(len(part[name]) for part in parts[:place]) :]
        if name == "input_ids" or chance.random() < 0.5:
            uncopied[:] = chance.integers(0, 100 if name == "input_ids" else 9, len(uncopied))
    return feed


@settings(max_examples=60, deadline=None)
@given(batches_with_an_empty_request())
def test_what_lies_behind_an_empty_request_is_nan_and_what_lies_before_is_unharmed(packed: OnceBert, case) -> None:
    batch, place, names, seed = case
    feed = collect(batch, place, names, seed)
    assume(all(len(feed[name]) for name in ONCE_REQUEST_INPUTS))  # else the execution fails, and all of it is malformed
    logits = run(packed, feed)
    before = sum(len(request) for request in batch[:place])
    assert logits[before:].isnan().all()
    if before:
        assert torch.allclose(logits[:before], run(packed, pack(batch[:place], once=True)), atol=1e-6)


@pytest.fixture(scope="module")
def joint(joint_checkpoint: Path) -> Checkpoint:
    found = read_checkpoint(joint_checkpoint, None)
    set_user_tokens(found.model.config, MOST)
    return found


@settings(max_examples=30, deadline=None)
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


@settings(max_examples=40, deadline=None)
@given(st.lists(of_one_user, min_size=1, max_size=4), one_request, st.data())
def test_what_was_kept_of_user_texts_stands_for_them(
    packed: OnceBert, model, parts: list[list[Pair]], other: list[Pair], data
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
    assert torch.allclose(logits, alone(model, [request for request, _, _ in chunks]), atol=1e-5)


def user_of(part: list[Pair]) -> list[int]:
    return split_pair(part[0])[0]


def test_the_exported_graph_keeps_them_too(graph: Path, model) -> None:
    session = open_on_cpu(graph, for_gpu=False)
    assert {value.name for value in session.get_overridable_initializers()} == {*KEPT_INPUTS}
    request = [pair(words(9), words(count)) for count in (3, 5)] + [pair(words(MOST), words(4)), pair(None, words(6))]
    (kept,) = session.run([KEPT], pack([[request[0], *request[2:]]], once=True))
    earlier = dict(zip(KEPT_INPUTS, (np.array([1, 2, 3], np.int32), kept), strict=True))
    (logits,) = session.run([LOGITS], without_users([request]) | earlier)
    assert np.allclose(logits, alone(model, [request]), atol=1e-5)
