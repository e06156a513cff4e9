"""The ceiling of a TensorRT plan, with a fake TensorRT: every request is computed, merged in each of the ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.saturation.ceiling import MERGED, MergedLayout, open_ceiling
from clickbert.wire.packing import PackedPairs
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
    loaded: list[bytes] = []
    load = LoadedPlan.__init__
    monkeypatch.setattr(LoadedPlan, "__init__", lambda self, trt, plan: (loaded.append(plan), load(self, trt, plan))[0])
    requests = [request_of(5, 9, 3), request_of(7), request_of(4, 4), *[request_of(6, 8)] * 17]
    with open_ceiling(version, requests) as ceiling:
        assert set(ceiling.tried) == set(MERGED)
        assert all(speed > 0 for speed in ceiling.tried.values())
        fed.clear()
        ceiling.measure(0)
        ceiling.measure(0)
    assert len(loaded) == 1, "once for all layouts and rounds"
    assert not gpu.memory, "all of it was given back"
    assert ceiling.result().pairs_per_second > 0
    assert not ceiling.result().on_cpu
    # A turn is of all requests, in order.
    assert isinstance(ceiling.layout, MergedLayout)
    turn = -(-len(requests) // ceiling.layout.requests)
    assert len(fed) == 2 * turn
    for feed in fed:
        assert set(feed) == set(TENSORRT_INPUTS)
        assert len(feed["pair_counts"]) <= ceiling.layout.requests
        assert len(feed["longest_shape"]) == feed["lengths"].max()
    counted = np.concatenate([feed["lengths"] for feed in fed[:turn]])
    assert counted.tolist() == [length for request in requests for length in request.lengths]
