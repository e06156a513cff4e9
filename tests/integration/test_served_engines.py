"""The other engines on the real server: INT8, and a TensorRT graph by the plan's own protocol."""

from __future__ import annotations

import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from clickbert import Ranker
from finetune.data.clicklog import ClickRow, read_click_log
from serving.backends.onnxruntime.workers import usable_cores
from serving.server import Addresses, Server
from tests.integration.conftest import publish
from tests.integration.test_ranking import PATIENCE, in_pytorch, score_at_once


@pytest.fixture(scope="module")
def rows(click_log: Path) -> list[ClickRow]:
    return read_click_log(click_log)


def test_the_int8_model_ranks_and_no_neighbour_changes_a_score(
    checkpoint: Path, rows: list[ClickRow], server: Server
) -> None:
    pairs = [(row.query, row.document) for row in rows]
    with Ranker(server.addresses.grpc, model="clickbert_onnx_int8", timeout=PATIENCE) as ranker:
        scores = ranker.score_pairs(pairs)
        assert 0 < np.abs(scores - in_pytorch(checkpoint, rows)).mean() < 0.03
        ranking = ranker.rank("w1 w2", [document for _, document in pairs[:20]], top_k=5)
        assert len({item.index for item in ranking}) == 5
        with ThreadPoolExecutor(16) as pool:
            alone = list(pool.map(lambda pair: ranker.score_pairs([pair])[0], pairs[:64]))
    assert np.allclose(alone, scores[:64], atol=1e-5), "its scales are fixed"


def test_a_tensorrt_graph_gets_the_longest_pair_as_a_shape(checkpoint: Path, click_log: Path, tmp_path: Path) -> None:
    """The plan's own protocol on the real Triton: its config, with the backend that this machine has."""
    repository = tmp_path / "repository"
    publish(checkpoint, repository, click_log, "trt_fp16")
    config = repository / "clickbert_trt_fp16" / "config.pbtxt"
    text = config.read_text(encoding="utf-8").replace('backend: "tensorrt"', 'backend: "onnxruntime"')
    text = text.replace('kind: KIND_GPU profile: [ "0" ]', "kind: KIND_CPU")
    config.write_text(text, encoding="utf-8")
    rows = read_click_log(click_log)[:96]
    pairs = [(row.query, row.document) for row in rows]
    with (tmp_path / "log").open("wb") as log, Server(repository, Addresses.free(), log=log) as server:
        scores, executions, answered = score_at_once(server, "clickbert_trt_fp16", pairs)
    assert np.allclose(scores, in_pytorch(checkpoint, rows), atol=2e-3)
    assert executions < answered == len(pairs), "requests with different longest pairs were merged"


@pytest.mark.skipif(usable_cores() < len(os.sched_getaffinity(0)), reason="a CPU limit: threads are not bound to cores")
def test_a_ranking_waits_for_its_turn_on_the_cores(server: Server) -> None:
    busy = [Path(server.links.name) / f"onnxruntime/core{core}.busy" for core in os.sched_getaffinity(0)]
    with ExitStack() as held, ThreadPoolExecutor(1) as pool, Ranker(server.addresses.grpc, timeout=PATIENCE) as ranker:
        ranker.rank("w1", ["w2"])
        for file in busy:  # made by the instances when they were loaded
            fcntl.flock(held.enter_context(file.open("rb")), fcntl.LOCK_EX)
        answer = pool.submit(ranker.rank, "w1", ["w2 w3", "w4"])
        try:
            with pytest.raises(TimeoutError):
                answer.result(1)
        finally:
            held.close()
        assert len(answer.result(PATIENCE)) == 2
