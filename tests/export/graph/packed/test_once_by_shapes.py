"""TensorRT's form of the graph that computes a user text once, against Hugging Face's forward under the same mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import BertForSequenceClassification

from export.graph.packed.once_by_shapes import ShapedOnceBert
from export.graph.packed.packed_bert import output_widths
from export.graph.packing import Feed, Pair, add_longest, pack
from export.graph.session import open_on_cpu
from export.verify.evaluation import Checkpoint, read_checkpoint
from finetune.checkpoint.attention import set_user_tokens
from release.names import (
    LOGITS,
    LONGEST,
    LONGEST_SHAPE,
    LONGEST_USER,
    LONGEST_USER_SHAPE,
    ONCE_REQUEST_INPUTS,
    ONCE_TENSORRT_INPUTS,
)
from tests.export.graph.packed.once_batches import (
    BATCHES,
    BEFORE,
    BEHIND,
    MOST,
    REQUEST,
    SPOILERS,
    alone,
    batches_with_an_empty_request,
    collect,
    pair,
    several_requests,
    spoiled,
    with_a_stranger,
    words,
)
from tests.export.graph.packed.single_texts import DRAWN, SIZES, TEXTS, batch_of, check_heads
from tests.tiny import MAX_LENGTH


@pytest.fixture(scope="module")
def packed(once_model: BertForSequenceClassification) -> ShapedOnceBert:
    return ShapedOnceBert(once_model).eval()


def claimed(feed: Feed, batch: list[list[Pair]]) -> Feed:
    """`feed` with the sizes that the requests of `batch`, which is sound, bring."""
    return add_longest(pack(batch, once=True)) | feed


def sized(feed: Feed, user: int, candidate: int) -> Feed:
    sizes = {LONGEST: candidate, LONGEST_SHAPE: candidate, LONGEST_USER: user, LONGEST_USER_SHAPE: user}
    return feed | {name: np.zeros(size, np.int32) for name, size in sizes.items()}


def run(packed: ShapedOnceBert, feed: Feed) -> torch.Tensor:
    with torch.inference_mode():
        return packed(*(torch.as_tensor(feed[name]) for name in ONCE_TENSORRT_INPUTS))[0]


def compute(graph: Path, feed: Feed) -> np.ndarray:
    return open_on_cpu(graph, for_gpu=True).run([LOGITS], feed)[0]


@settings(max_examples=60)
@given(several_requests)
def test_it_equals_hugging_face_one_pair_at_a_time(once_model, packed: ShapedOnceBert, batch: list[list[Pair]]) -> None:
    found = run(packed, add_longest(pack(batch, once=True)))
    assert torch.allclose(found, alone(once_model, batch), atol=1e-5)


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_pytorch_and_onnx_runtime_equal_hugging_face(
    once_model, packed: ShapedOnceBert, shaped_graph: Path, batch
) -> None:
    feed, expected = add_longest(pack(batch, once=True)), alone(once_model, batch)
    assert torch.allclose(run(packed, feed), expected, atol=1e-5)
    assert np.allclose(compute(shaped_graph, feed), expected, atol=1e-5)


def test_it_has_no_size_that_depends_on_a_value(shaped_graph: Path) -> None:
    model = onnx.load(shaped_graph)
    assert not {node.op_type for node in model.graph.node} & {"ReduceMax", "NonZero", "CumSum", "ScatterElements"}
    # A shape is made of inputs' shapes, and of nothing that is computed of their values.
    makers = {output: node for node in model.graph.node for output in node.output}
    sizes = [node.input[1] for node in model.graph.node if node.op_type in ("Range", "Reshape", "Expand")]
    while sizes:
        node = makers.get(sizes.pop())
        assert node is None or node.op_type in {"Shape", "Squeeze", "Clip", "Reshape", "Concat", "Add", "Mul"}
        sizes += node.input if node is not None and node.op_type != "Shape" else []


@pytest.mark.parametrize("changes", SPOILERS.values(), ids=SPOILERS)
def test_a_malformed_request_gets_nan_and_its_neighbours_their_own_logits(
    packed, shaped_graph: Path, changes: dict
) -> None:
    feed = claimed(spoiled(changes), [BEFORE, REQUEST, BEHIND])
    logits, expected = run(packed, feed), run(packed, add_longest(pack([BEFORE, BEHIND], once=True)))
    assert logits[2:-1].isnan().all()
    assert torch.allclose(logits[[0, 1, -1]], expected, atol=1e-6)
    assert np.allclose(compute(shaped_graph, feed), logits, atol=1e-6, equal_nan=True)


@settings(max_examples=80)
@given(several_requests, st.data())
def test_whatever_a_request_claims_harms_nobody_else(packed: ShapedOnceBert, batch: list[list[Pair]], data) -> None:
    """Random numbers in one request's inputs, and in the sizes that it brings."""
    feed, own = with_a_stranger(batch, data)
    sound = claimed({}, batch)
    sizes = (data.draw(st.integers(len(sound[name]), 60)) for name in (LONGEST_USER_SHAPE, LONGEST_SHAPE))
    feed = sized(feed, *sizes)
    logits = run(packed, feed)
    assume(logits[own.start : own.stop].isnan().all())  # random numbers can be well formed
    others = torch.cat([logits[: own.start], logits[own.stop :]])
    assert torch.allclose(others, run(packed, claimed({}, batch)), atol=DRAWN)


@pytest.mark.parametrize(("user", "candidate"), [(MOST, MAX_LENGTH), (10_000, 9), (6, 10_000)])
def test_sizes_that_are_too_large_change_no_logit(
    packed: ShapedOnceBert, shaped_graph: Path, user: int, candidate: int
):
    feed = pack([[pair(words(4), words(5))], [pair(words(5), words(7)), pair([], words(2))]], once=True)
    expected = run(packed, add_longest(feed))
    assert torch.allclose(run(packed, sized(feed, user, candidate)), expected, atol=1e-6)
    assert np.allclose(compute(shaped_graph, sized(feed, user, candidate)), expected, atol=1e-6)


@pytest.mark.parametrize(("user", "candidate"), [(1, 1), (1, 40), (40, 1), (5, 40), (40, 7), (7, 10)])
def test_a_request_with_longer_texts_than_it_says_is_answered_with_nan(
    packed: ShapedOnceBert, shaped_graph: Path, user: int, candidate: int
) -> None:
    batch = [BEFORE, REQUEST, BEHIND, [pair([], [])]]
    feed = pack(batch, once=True)
    expected, logits = run(packed, add_longest(feed)), run(packed, sized(feed, user, candidate))
    assert np.allclose(compute(shaped_graph, sized(feed, user, candidate)), logits, atol=1e-6, equal_nan=True)
    rows = iter(zip(logits, expected, strict=True))
    for request in batch:
        own = pack([request], once=True)
        fits = own["user_lengths"].max() <= max(user, 2) and own["lengths"].max() <= max(candidate, 2)
        for found, right in (next(rows) for _ in request):
            assert torch.allclose(found, right, atol=1e-6) if fits else found.isnan().all()


@settings(max_examples=60)
@given(batches_with_an_empty_request())
def test_what_lies_behind_an_empty_request_is_nan_and_what_lies_before_is_unharmed(
    packed: ShapedOnceBert, case: tuple[list[list[Pair]], int, list[str], int]
) -> None:
    batch, place, names, seed = case
    feed = collect(batch, place, names, seed)
    assume(all(len(feed[name]) for name in ONCE_REQUEST_INPUTS))  # else the execution fails, and all of it is malformed
    logits = run(packed, claimed(feed, batch))
    before = sum(len(request) for request in batch[:place])
    assert logits[before:].isnan().all()
    if before:
        assert torch.allclose(logits[:before], run(packed, claimed({}, batch[:place])), atol=DRAWN)


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
    packed, feed = ShapedOnceBert(joint.model, joint.heads).eval(), claimed({}, batch)
    with torch.inference_mode():
        outputs = packed(*(torch.as_tensor(feed[name]) for name in ONCE_TENSORRT_INPUTS))
    found = dict(zip(output_widths(joint.model, joint.heads), outputs, strict=True))
    check_heads(joint, drawn, found, range(first, first + len(REQUEST)))
