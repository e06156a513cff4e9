"""The packed forward pass against Hugging Face's, in PyTorch: no padding, merged requests, malformed requests."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import BertForSequenceClassification

from export.graph.packed.packed_bert import PackedBert, UnsupportedModelError, output_widths
from export.graph.packing import Pair, pack
from export.verify.evaluation import Checkpoint, read_checkpoint
from release.names import COUNT_INPUTS, GRAPH_INPUTS, REQUEST_INPUTS
from tests.export.graph.packed.single_texts import DRAWN, SIZES, TEXTS, batch_of, check_heads
from tests.tiny import MAX_LENGTH, make_checkpoint

COUNT_OF = dict(zip(REQUEST_INPUTS, COUNT_INPUTS, strict=True))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BertForSequenceClassification:
    folder = make_checkpoint(tmp_path_factory.mktemp("checkpoint"), labels=2)
    return BertForSequenceClassification.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def packed(model: BertForSequenceClassification) -> PackedBert:
    return PackedBert(model).eval()


def make_pair(seed: int) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    length = int(torch.randint(1, MAX_LENGTH + 1, (1,), generator=generator))
    return {
        "input_ids": torch.randint(0, 100, (length,), generator=generator).tolist(),
        "token_type_ids": torch.randint(0, 2, (length,), generator=generator).tolist(),
    }


pairs = st.integers(0, 2**32).map(make_pair)
requests = st.lists(st.lists(pairs, min_size=1, max_size=4), min_size=1, max_size=4)


def run(packed: PackedBert, feed: dict) -> torch.Tensor:
    with torch.inference_mode():
        return packed(*(torch.as_tensor(feed[name]) for name in GRAPH_INPUTS))[0]


@settings(max_examples=40)
@given(requests)
def test_packed_equals_hugging_face_one_pair_at_a_time(model, packed, batch: list[list[Pair]]) -> None:
    logits = run(packed, pack(batch))
    with torch.inference_mode():
        for index, pair in enumerate(pair for request in batch for pair in request):
            alone = model(**{name: torch.tensor([ids]) for name, ids in pair.items()}).logits[0]
            assert torch.allclose(logits[index], alone, atol=1e-5)


SPOILERS = {
    "length too large": lambda feed: feed["lengths"].__setitem__(2, feed["lengths"][2] + 1),
    "length too small": lambda feed: feed["lengths"].__setitem__(3, feed["lengths"][3] - 1),
    "length negative": lambda feed: feed["lengths"].__setitem__(2, -5),
    "length enormous": lambda feed: feed["lengths"].__setitem__(2, 2**31 - 1),
    "length zero": lambda feed: feed["lengths"].__setitem__(2, 0),
    "id outside the vocabulary": lambda feed: feed["input_ids"].__setitem__(11, 10**6),
    "id negative": lambda feed: feed["input_ids"].__setitem__(11, -1),
    "type unknown": lambda feed: feed["token_type_ids"].__setitem__(11, 2),
}


@pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS.keys())
def test_a_malformed_request_gets_nan_and_its_neighbours_their_own_logits(packed, spoil) -> None:
    batch = [[fixed(5), fixed(5)], [fixed(6), fixed(4)], [fixed(7)]]  # the second request is spoiled
    feed = pack(batch)
    expected = run(packed, feed)
    spoil(feed)
    logits = run(packed, feed)
    assert logits[2:4].isnan().all()
    assert torch.allclose(logits[[0, 1, 4]], expected[[0, 1, 4]], atol=1e-6)


def test_two_wrong_requests_that_cancel_out_do_not_shift_the_one_between_them(packed) -> None:
    batch = [[fixed(3)], [fixed(7)], [fixed(5)]]
    feed = pack(batch)
    expected = run(packed, feed)
    feed["lengths"][[0, 2]] = [5, 3]  # 3 and 5 tokens: the sum over the batch still fits
    logits = run(packed, feed)
    assert logits[[0, 2]].isnan().all()
    assert torch.allclose(logits[1], expected[1], atol=1e-6)


def test_token_types_are_read_from_their_own_request(packed) -> None:
    batch = [[fixed(5)], [fixed(6)], [fixed(7)]]
    feed = pack(batch)
    expected = run(packed, feed)
    feed["token_type_ids"] = feed["token_type_ids"][2:]  # the first request brought 3 types for its 5 tokens
    feed["type_counts"] = feed["type_counts"].copy()
    feed["type_counts"][0] = 3
    logits = run(packed, feed)
    assert logits[0].isnan().all()
    assert torch.allclose(logits[1:], expected[1:], atol=1e-6)


@st.composite
def batches_with_an_empty_request(draw: st.DrawFn) -> tuple[list[list[Pair]], int, list[str], int]:
    """Requests, the place of the one that lacks inputs, their names, and a seed for what stands in memory behind it."""
    batch = draw(requests)
    names = draw(st.lists(st.sampled_from(REQUEST_INPUTS), min_size=1, unique=True))
    return batch, draw(st.integers(0, len(batch) - 1)), names, draw(st.integers(0, 2**32))


def collect(batch: list[list[Pair]], place: int, names: list[str], seed: int) -> dict:
    """The batch as Triton's C++ backends merge it where the request at `place` brings no element of the inputs `names`.

    They stop copying such an input there (`BackendInputCollector`), and leave what the memory holds: here numbers that
    pass for the input's, often the lengths of the same batch, as of an earlier execution.
    """
    random = np.random.default_rng(seed)
    parts = [pack([request]) for request in batch]
    for name in names:
        parts[place] = parts[place] | {name: np.zeros(0, np.int32), COUNT_OF[name]: np.zeros(1, np.int32)}
    feed = {name: np.concatenate([part[name] for part in parts]) for name in GRAPH_INPUTS}
    for name in names:
        uncopied = feed[name][sum(len(part[name]) for part in parts[:place]) :]
        if name != "lengths" or random.random() < 0.5:
            uncopied[:] = random.integers(0, {"input_ids": 100, "token_type_ids": 2, "lengths": 9}[name], len(uncopied))
    return feed


@settings(max_examples=60)
@given(batches_with_an_empty_request())
def test_what_lies_behind_an_empty_request_is_nan_and_what_lies_before_is_unharmed(packed, case) -> None:
    batch, place, names, seed = case
    feed = collect(batch, place, names, seed)
    assume(all(len(feed[name]) for name in REQUEST_INPUTS))  # else the execution fails, and all of it is malformed
    logits = run(packed, feed)
    before = sum(len(request) for request in batch[:place])
    assert logits[before:].isnan().all()
    if before:
        assert torch.allclose(logits[:before], run(packed, pack(batch[:place])), atol=DRAWN)


CLAIMS = {
    "lengths that do not add up": {"lengths": [MAX_LENGTH] * 4},
    "an id outside the vocabulary": {"lengths": [MAX_LENGTH], "input_ids": [10**6] * MAX_LENGTH},
    "more types than tokens": {"lengths": [MAX_LENGTH], "token_type_ids": [0] * (MAX_LENGTH + 1)},
    "a length over the limit": {"lengths": [2**31 - 1]},
}


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS.keys())
@pytest.mark.parametrize("place", [0, 1])
def test_a_malformed_request_cannot_make_the_padded_grid_longer(packed, claim: dict, place: int) -> None:
    """Attention's time and memory grow with the grid: 31 lengths of 512 in a request of 32 tokens took 7.6 GB."""
    claimed = {"input_ids": [1] * MAX_LENGTH, "token_type_ids": [0] * MAX_LENGTH} | claim
    malformed = {name: np.array(claimed[name], np.int32) for name in REQUEST_INPUTS}
    malformed |= {COUNT_OF[name]: np.array([len(claimed[name])], np.int32) for name in REQUEST_INPUTS}
    parts = [pack([[fixed(5), fixed(7)]])]
    parts.insert(place, malformed)
    feed = {name: np.concatenate([part[name] for part in parts]) for name in GRAPH_INPUTS}
    layout = packed.lay_out(*(torch.as_tensor(feed[name]).long() for name in GRAPH_INPUTS))
    assert layout.grid.shape == (2 + len(claimed["lengths"]), 7)
    assert layout.mask.shape[2:] == (7, 7)
    logits = run(packed, feed)
    good = slice(len(logits) - 2, None) if place == 0 else slice(0, 2)
    assert torch.allclose(logits[good], run(packed, pack([[fixed(5), fixed(7)]])), atol=1e-6)
    assert logits.isnan().any(dim=1).sum() == len(claimed["lengths"])


def test_a_batch_of_malformed_requests_has_a_grid_of_one_column(packed) -> None:
    feed = pack([[fixed(5)], [fixed(6)]]) | {"lengths": np.array([6, 5], np.int32)}
    assert packed.lay_out(*(torch.as_tensor(feed[name]).long() for name in GRAPH_INPUTS)).grid.shape == (2, 1)
    assert run(packed, feed).isnan().all()


def fixed(length: int) -> Pair:
    return {"input_ids": [(7 * place + length) % 90 for place in range(length)], "token_type_ids": [0] * length}


def test_a_decoder_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "decoder", is_decoder=True)
    with pytest.raises(UnsupportedModelError, match="decoder"):
        PackedBert(BertForSequenceClassification.from_pretrained(folder))


@pytest.fixture(scope="module")
def joint(joint_checkpoint: Path) -> Checkpoint:
    return read_checkpoint(joint_checkpoint, None)


@settings(max_examples=30)
@given(TEXTS, SIZES, st.integers(0, 8))
def test_the_further_heads_equal_pytorchs_in_merged_requests(
    joint: Checkpoint, drawn: list[str], sizes: list[int], place: int
) -> None:
    batch, first = batch_of(joint, drawn, sizes, place, [fixed(4), fixed(6)])
    feed = pack(batch)
    feed["lengths"][first] += 1  # the inserted request is malformed
    packed = PackedBert(joint.model, joint.heads).eval()
    with torch.inference_mode():
        outputs = packed(*(torch.as_tensor(feed[name]) for name in GRAPH_INPUTS))
    found = dict(zip(output_widths(joint.model, joint.heads), outputs, strict=True))
    for values in found.values():
        assert values[first : first + 2].isnan().all()
    check_heads(joint, drawn, found, range(first, first + 2))
