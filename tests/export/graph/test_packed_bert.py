"""The packed forward pass against Hugging Face's, in PyTorch: no padding, merged requests, malformed requests."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertForSequenceClassification

from export.graph.packed_bert import PackedBert, UnsupportedModelError
from export.graph.packing import Pair, pack
from release.names import GRAPH_INPUTS
from tests.tiny import MAX_LENGTH, make_checkpoint


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
        return packed(*(torch.as_tensor(feed[name]) for name in GRAPH_INPUTS))


@settings(max_examples=40, deadline=None)
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
    wanted = run(packed, feed)
    spoil(feed)
    logits = run(packed, feed)
    assert logits[2:4].isnan().all()
    assert torch.allclose(logits[[0, 1, 4]], wanted[[0, 1, 4]], atol=1e-6)


def test_two_wrong_requests_that_cancel_out_do_not_shift_the_one_between_them(packed) -> None:
    batch = [[fixed(3)], [fixed(7)], [fixed(5)]]
    feed = pack(batch)
    wanted = run(packed, feed)
    feed["lengths"][[0, 2]] = [5, 3]  # 3 and 5 tokens: the sum over the batch still fits
    logits = run(packed, feed)
    assert logits[[0, 2]].isnan().all()
    assert torch.allclose(logits[1], wanted[1], atol=1e-6)


def test_token_types_are_read_from_their_own_request(packed) -> None:
    batch = [[fixed(5)], [fixed(6)], [fixed(7)]]
    feed = pack(batch)
    wanted = run(packed, feed)
    feed["token_type_ids"] = feed["token_type_ids"][2:]  # the first request brought 3 types for its 5 tokens
    feed["type_counts"] = feed["type_counts"].copy()
    feed["type_counts"][0] = 3
    logits = run(packed, feed)
    assert logits[0].isnan().all()
    assert torch.allclose(logits[1:], wanted[1:], atol=1e-6)


def test_a_request_without_tokens_is_malformed_and_harmless(packed) -> None:
    batch = [[fixed(5)], [fixed(6)]]
    wanted = run(packed, pack(batch))
    feed = pack([batch[0], [{"input_ids": [], "token_type_ids": []}], batch[1]])
    feed["lengths"][1] = 4
    logits = run(packed, feed)
    assert logits[1].isnan().all()
    assert torch.allclose(logits[[0, 2]], wanted, atol=1e-6)


def fixed(length: int) -> Pair:
    return {"input_ids": [(7 * place + length) % 90 for place in range(length)], "token_type_ids": [0] * length}


def test_a_decoder_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "decoder", is_decoder=True)
    with pytest.raises(UnsupportedModelError, match="decoder"):
        PackedBert(BertForSequenceClassification.from_pretrained(folder))
