"""The demo, from a checkpoint that is there: export, serve, score, compare, rank."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import demo
from release.manifest import Manifest
from tests.benchmarks.conftest import Said, command
from tests.tiny import make_checkpoint, make_click_log


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Said]:
    """The first run, in a working folder with a click log and a random checkpoint, whose AUC is about 0.5."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / demo.DATA).mkdir(parents=True)
    make_click_log(folder / demo.DATA / "test.jsonl")
    make_checkpoint(folder / demo.CHECKPOINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path.cwd()))
        patch.chdir(folder)
        with patch.context() as lenient:
            lenient.setattr(demo, "LEAST_AUC", 0.0)
            said = command("demo")
        yield said


def test_it_publishes_serves_and_keeps_the_ranking(first: Said) -> None:
    assert first.code == 0, first.err
    result = json.loads(first.out.splitlines()[-1])
    assert result["server"]["name"] == "triton"
    assert result["parity"]["pairs"] == result["metrics"]["pairs"]
    scores = [item["score"] for item in result["ranking"]]
    assert scores == sorted(scores, reverse=True)
    assert [path.name for path in (demo.REPOSITORY / "clickbert_onnx").glob("[0-9]*")] == ["1"]


def test_the_second_run_reuses_the_version_and_says_the_same(first: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "LEAST_AUC", 0.0)
    monkeypatch.setattr(demo, "step", lambda *words: pytest.fail(f"{words} was run again"))
    second = command("demo")
    assert second.code == 0, second.err
    figures = [json.loads(said.out.splitlines()[-1])["metrics"] for said in (first, second)]
    assert figures[0]["auc"] == pytest.approx(figures[1]["auc"], abs=1e-9)


@pytest.mark.usefixtures("first")
def test_another_model_is_published_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "LEAST_AUC", 0.0)
    monkeypatch.setattr(demo, "CHECKPOINT", make_checkpoint(tmp_path / "another", seed=1))
    monkeypatch.setattr(demo, "REPOSITORY", shutil.copytree(demo.REPOSITORY, tmp_path / "repository"))
    said = command("demo")
    assert said.code == 0, said.err
    assert "python -m export" in said.err
    assert len(list((tmp_path / "repository/clickbert_onnx").glob("[0-9]*"))) == 2


@pytest.mark.usefixtures("first")
def test_a_model_that_learned_nothing_fails() -> None:
    said = command("demo")
    assert said.code == 1
    assert "something went wrong" in said.err


@pytest.mark.usefixtures("first")
def test_an_auc_that_the_server_does_not_keep_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    published = demo.published

    def other(evaluation: Path) -> Manifest | None:
        manifest = published(evaluation)
        if manifest:
            manifest.evaluation.pytorch_metrics["auc"] += 1e-4
        return manifest

    monkeypatch.setattr(demo, "published", other)
    said = command("demo")
    assert said.code == 1
    assert "the AUC through the server is" in said.err


@pytest.mark.usefixtures("first")
def test_a_killed_demo_leaves_no_server() -> None:
    with Path("err").open("w") as log:
        running = subprocess.Popen([sys.executable, "-m", "benchmarks", "demo"], stderr=log, env=dict(os.environ))
        deadline = time.monotonic() + 120
        while not servers() and time.monotonic() < deadline and running.poll() is None:
            time.sleep(0.05)
        found = servers()
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=60) == 130
        assert found, Path("err").read_text()
    assert not servers()


def servers() -> list[str]:
    lines = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if f"--model-repository={Path.cwd()}" in line]
