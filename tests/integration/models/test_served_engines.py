"""The other engines on the real server: INT8, and a TensorRT graph by the plan's own protocol."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from clickbert import Ranker
from finetune.data.clicklog import ClickRow
from serving.server import Server
from tests.integration.models.plans import serve_on_cpu
from tests.integration.scores import PATIENCE, score_at_once
from tests.published import serve
from tests.serving.busy_cores import busy_cores, needs_bound_cores
from tests.waiting import eventually


def test_the_int8_model_ranks_and_no_neighbour_changes_a_score(
    rows: list[ClickRow], expected: np.ndarray, published_server: Server
) -> None:
    pairs = [(row.query, row.document) for row in rows]
    with Ranker(published_server.addresses.grpc, model="clickbert_onnx_int8", timeout=PATIENCE) as ranker:
        scores = ranker.score_pairs(pairs)
        assert 0 < np.abs(scores - expected).mean() < 0.03
        ranking = ranker.rank("w1 w2", [document for _, document in pairs[:20]], top_k=5)
        assert len({item.index for item in ranking}) == 5
        with ThreadPoolExecutor(16) as pool:
            alone = list(pool.map(lambda pair: ranker.score_pairs([pair])[0], pairs[:64]))
    assert np.allclose(alone, scores[:64], atol=1e-5), "its scales are fixed"


def test_a_tensorrt_graph_gets_the_longest_pair_as_a_shape(
    rows: list[ClickRow], expected: np.ndarray, published_engines: Path, tmp_path: Path
) -> None:
    """The plan's own protocol on the real Triton: its config, with the backend that this machine has."""
    repository = tmp_path / "repository"
    for model in ("clickbert_trt_fp16", "clickbert_tokenizer"):
        shutil.copytree(published_engines / model, repository / model)
    serve_on_cpu(repository / "clickbert_trt_fp16")
    pairs = [(row.query, row.document) for row in rows[:96]]
    with serve(repository) as server:
        scores, executions = score_at_once(server, "clickbert_trt_fp16", pairs)
    assert np.allclose(scores, expected[:96], atol=2e-3)
    assert executions < len(pairs), "requests with different longest pairs were merged"


@needs_bound_cores
def test_a_ranking_waits_for_its_turn_on_the_cores(published_server: Server, ranker: Ranker) -> None:
    assert published_server.folder
    folder = published_server.folder.path / "backends" / "packed_cpu"
    busy = [folder / f"core{core}.busy" for core in os.sched_getaffinity(0)]
    ranker.rank("w1", ["w2"])
    with ThreadPoolExecutor(1) as pool:
        with busy_cores(published_server):
            answer = pool.submit(ranker.rank, "w1", ["w2 w3", "w4"])
            eventually(lambda: any(somebody_waits_for(file) for file in busy))
            assert not answer.done()
        assert len(answer.result(PATIENCE)) == 2


def somebody_waits_for(file: Path) -> bool:
    """Whether a process is blocked on the file's lock: the kernel lists it behind an arrow."""
    inode = f":{file.stat().st_ino} "
    lines = Path("/proc/locks").read_text(encoding="utf-8").splitlines()
    return any("->" in line and inode in line for line in lines)
