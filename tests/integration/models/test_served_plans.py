"""The plans on a GPU, served by the real Triton: merged requests get the logits that each gets alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clickbert import Ranker
from export.plan import newest_versions
from export.tensorrt.runtime import load_tensorrt
from finetune.data.clicklog import ClickRow
from release.stamp import PlanError, find_machine
from tests.integration.models.plans import serve_plans
from tests.integration.scores import PATIENCE, in_pytorch, score_at_once
from tests.published import publish, serve
from tests.tiny import make_checkpoint, make_once_checkpoint


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["full", "user_once"])
def test_served_plans_answer_merged_requests_as_pytorch_does(
    published_log: Path, rows: list[ClickRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attention: str
) -> None:
    try:
        find_machine(str(load_tensorrt().__version__))
    except PlanError as exc:
        pytest.skip(str(exc))
    repository = tmp_path / "repository"
    checkpoint = (make_checkpoint if attention == "full" else make_once_checkpoint)(tmp_path / "checkpoint")
    expected = in_pytorch(checkpoint, rows[:96])
    publish(checkpoint, repository, published_log, "trt_fp16", "trt_int8")
    versions = newest_versions(repository, None)
    assert all((version / "model.plan").exists() for version in versions.values())
    serve_plans(monkeypatch)
    pairs = [(row.query, row.document) for row in rows[:96]]
    with serve(repository) as server:
        assert set(server.models) == {*versions, "clickbert_tokenizer"}
        for model, tolerance in (("clickbert_trt_fp16", 0.02), ("clickbert_trt_int8", 0.1)):
            with Ranker(server.addresses.grpc, model=model, timeout=PATIENCE) as ranker:
                alone = np.array([ranker.score_pairs([pair])[0] for pair in pairs])
            merged, executions = score_at_once(server, model, pairs)
            assert executions < len(pairs), "requests with different longest pairs were merged"
            assert np.allclose(merged, alone, atol=tolerance)
            assert np.abs(merged - expected).mean() < tolerance
