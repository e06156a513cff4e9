"""The demo, from a checkpoint that is there: export, serve, score, compare, rank."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import demo
from benchmarks.__main__ import main
from tests.tiny import make_checkpoint, make_click_log


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a click log and a random checkpoint, whose AUC is about 0.5."""
    root = Path.cwd()
    (tmp_path / demo.DATA).mkdir(parents=True)
    make_click_log(tmp_path / demo.DATA / "test.jsonl")
    make_checkpoint(tmp_path / demo.CHECKPOINT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(root))
    return tmp_path


def test_the_second_run_reuses_the_version_and_says_the_same(folder: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(demo, "LEAST_AUC", 0.0)
    assert main(["demo"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert main(["demo"]) == 0
    output = capsys.readouterr()
    second = json.loads(output.out.splitlines()[-1])
    assert "python -m export" not in output.err
    assert first["metrics"]["auc"] == pytest.approx(second["metrics"]["auc"], abs=1e-9)
    assert first["server"]["name"] == "triton"
    assert first["parity"]["pairs"] == first["metrics"]["pairs"]
    scores = [item["score"] for item in first["ranking"]]
    assert scores == sorted(scores, reverse=True)
    assert [path.name for path in (folder / demo.REPOSITORY / "clickbert_onnx").glob("[0-9]*")] == ["1"]

    make_checkpoint(folder / demo.CHECKPOINT, seed=1)  # another model is published anew
    assert main(["demo"]) == 0
    assert "python -m export" in capsys.readouterr().err


def test_a_model_that_learned_nothing_fails(folder: Path, capsys) -> None:
    assert main(["demo"]) == 1
    assert "something went wrong" in capsys.readouterr().err


def test_an_auc_that_the_server_does_not_keep_fails(folder: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(demo, "LEAST_AUC", 0.0)
    published = demo.published

    def other(evaluation: Path) -> dict | None:
        manifest = published(evaluation)
        if manifest:
            manifest["evaluation"]["pytorch_metrics"]["auc"] += 1e-4
        return manifest

    monkeypatch.setattr(demo, "published", other)
    assert main(["demo"]) == 1
    assert "the AUC through the server is" in capsys.readouterr().err


def test_a_killed_demo_leaves_no_server(folder: Path) -> None:
    with (folder / "err").open("w") as log:
        running = subprocess.Popen([sys.executable, "-m", "benchmarks", "demo"], stderr=log, env=dict(os.environ))
        deadline = time.monotonic() + 120
        while not servers(folder) and time.monotonic() < deadline and running.poll() is None:
            time.sleep(0.05)
        assert servers(folder), (folder / "err").read_text()
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=60) == 130
    assert not servers(folder)


def servers(folder: Path) -> list[str]:
    lines = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if f"--model-repository={folder}" in line]
