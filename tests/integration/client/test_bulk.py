"""`clickbert score` with a real server, and without one: the scores of a click log are PyTorch's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from clickbert.__main__ import main
from serving.server import Server

MODEL = "clickbert_onnx"


@pytest.mark.parametrize("in_process", [False, True])
def test_a_click_log_has_pytorchs_scores(
    published_server: Server,
    published_repository: Path,
    published_log: Path,
    expected: np.ndarray,
    tmp_path: Path,
    in_process: bool,
) -> None:
    where = ["--url", published_server.addresses.grpc, "--model", MODEL]
    if in_process:
        where = ["--in-process", str(published_repository / MODEL / "1")]
    output = tmp_path / "scored.jsonl"
    assert main(["score", str(published_log), "--output", str(output), *where]) == 0
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [row.pop("score") for row in rows] == pytest.approx(expected.ravel().tolist(), abs=1e-4)
    assert rows == [json.loads(line) for line in published_log.read_text(encoding="utf-8").splitlines()]
