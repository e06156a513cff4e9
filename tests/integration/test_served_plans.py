"""The plans on a GPU, served by the real Triton: merged requests get the logits that each gets alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clickbert import Ranker
from export.tensorrt.command import newest_versions
from export.tensorrt.runtime import load_tensorrt
from finetune.data.clicklog import read_click_log
from release.stamp import PlanError, find_machine
from serving.server import Addresses, Server
from tests.integration.conftest import publish
from tests.integration.plans import serve_plans
from tests.integration.test_ranking import PATIENCE, in_pytorch, score_at_once


@pytest.mark.gpu
def test_served_plans_answer_merged_requests_as_pytorch_does(
    checkpoint: Path, click_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        find_machine(str(load_tensorrt().__version__))
    except PlanError as exc:
        pytest.skip(str(exc))
    repository = tmp_path / "repository"
    publish(checkpoint, repository, click_log, "trt_fp16", "trt_int8")
    versions = newest_versions(repository, None)
    assert all((version / "model.plan").exists() for version in versions.values())
    serve_plans(monkeypatch)
    rows = read_click_log(click_log)[:96]
    pairs = [(row.query, row.document) for row in rows]
    expected = in_pytorch(checkpoint, rows)
    with (tmp_path / "log").open("wb") as log, Server(repository, Addresses.free(), log=log) as server:
        assert set(server.models) == {*versions, "clickbert_tokenizer"}
        for model, tolerance in (("clickbert_trt_fp16", 0.02), ("clickbert_trt_int8", 0.1)):
            with Ranker(server.addresses.grpc, model=model, timeout=PATIENCE) as ranker:
                alone = np.array([ranker.score_pairs([pair])[0] for pair in pairs])
            merged, executions, answered = score_at_once(server, model, pairs)
            assert executions < answered == len(pairs), "requests with different longest pairs were merged"
            assert np.allclose(merged, alone, atol=tolerance)
            assert np.abs(merged - expected).mean() < tolerance
