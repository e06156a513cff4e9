"""The ceiling of a graph that computes a user text once: chunks that share it give the logits of whole requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.load_gen.target import published_version
from benchmarks.load_gen.workload import Selection
from benchmarks.saturation.ceiling import cut_requests, open_ceiling, open_graph
from benchmarks.saturation.tokens import count_pairs, count_tokens, pack, published_tokenizer
from clickbert.wire.packing import Packed
from release.names import MODEL_FILE, ONNX_MODEL


@pytest.fixture(scope="module")
def packed(once_repository: Path, published_log: Path) -> list[Packed]:
    return pack(published_tokenizer(once_repository), Selection(published_log).read()[:12])


def test_chunks_give_the_logits_of_whole_requests(once_repository: Path, packed: list[Packed]) -> None:
    run = open_graph(published_version(once_repository, ONNX_MODEL) / MODEL_FILE, 1)
    whole, cut = cut_requests(packed, None), cut_requests(packed, 100)
    assert len(whole) == len(cut) == len(packed)
    assert max(map(len, cut)) > 1, "a request of several chunks"
    for one, parts in zip(whole, cut, strict=True):
        tokens = sum(feed["input_ids"].size for feed in parts)
        assert tokens == one[0]["input_ids"].size, "nothing is computed twice"
        assert np.allclose(np.sort(run(one), axis=0), np.sort(run(parts), axis=0), atol=1e-5)


def test_its_speed_is_measured_and_its_tokens_are_counted(once_repository: Path, packed: list[Packed]) -> None:
    with open_ceiling(published_version(once_repository, ONNX_MODEL), packed) as found:
        found.measure(0)
    assert found.result().pairs_per_second > 0
    tokens = count_tokens(packed, 48)
    assert tokens["packed"] < tokens["padded to the request's longest"] <= tokens["padded to 48"]
    assert tokens["padded to 48"] == 48 * count_pairs(packed)
