"""A server starts on what was fetched, and says so to the pod's probe, for each model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.fetch.run import main
from tests.client.fakes import rank_once
from tests.integration.scores import PATIENCE
from tests.published import serve

pytestmark = pytest.mark.deploy


def test_a_server_serves_what_was_fetched(published_repository: Path, tmp_path: Path) -> None:
    there = tmp_path / "volume" / "repository"
    assert main([str(published_repository), str(there)]) == 0
    with serve(there, log=tmp_path / "triton.log") as server:
        probe = [sys.executable, "-m", "serving", "--health", f"--grpc-port={server.addresses.grpc_port}"]
        served = ("clickbert_tokenizer", "clickbert_onnx", "clickbert_onnx_int8")
        for model, code in (*((name, 0) for name in served), ("clickbert_trt_fp16", 1)):
            assert subprocess.run([*probe, "--model", model], check=False, timeout=120).returncode == code
        assert len(rank_once(server.addresses.grpc, True, timeout=PATIENCE)) > 1
