"""The ceiling of a TensorRT plan, with a fake TensorRT: every request is computed, merged in each of the ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.measure.ceiling import MERGED, find_ceiling
from clickbert.tokenization import PackedPairs
from export.graph.packing import Feed, Logits
from export.tensorrt.runtime import LoadedPlan
from release.names import TENSORRT_INPUTS
from tests.export.tensorrt.fake_gpu import Gpu, command

pytest_plugins = ("tests.export.tensorrt.gpu_fixtures",)


def request_of(*lengths: int) -> PackedPairs:
    ids = np.arange(sum(lengths), dtype=np.int32)
    return PackedPairs(ids, np.zeros_like(ids), np.array(lengths, np.int32))


def test_a_plan_is_measured_on_all_requests_by_the_best_way_to_merge_them(
    version: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(version) == 0
    fed: list[Feed] = []
    run = LoadedPlan.run

    def remember(plan: LoadedPlan, feed: Feed) -> Logits:
        fed.append(feed)
        return run(plan, feed)

    monkeypatch.setattr(LoadedPlan, "run", remember)
    requests = [request_of(5, 9, 3), request_of(7), request_of(4, 4), *[request_of(6, 8)] * 17]
    ceiling = find_ceiling(version, requests)
    assert set(ceiling.tried) == {str(way) for way in MERGED}
    assert ceiling.layout in MERGED
    assert all(speed > 0 for speed in ceiling.tried.values())
    fed.clear()
    ceiling.measure()
    facts = ceiling.facts()
    assert facts["pairs_per_second"] > 0
    assert not facts["on_cpu"]
    assert not gpu.memory, "all of it was given back"
    # A turn: one batch that does not count, then all requests in order.
    turn = -(-len(requests) // ceiling.layout.requests) + 1
    assert len(fed) % turn == 0
    for feed in fed[:turn]:
        assert set(feed) == set(TENSORRT_INPUTS)
        assert len(feed["pair_counts"]) <= ceiling.layout.requests
        assert len(feed["longest_shape"]) == feed["lengths"].max()
    counted = np.concatenate([feed["lengths"] for feed in fed[1:turn]])
    assert counted.tolist() == [length for request in requests for length in request.lengths]
