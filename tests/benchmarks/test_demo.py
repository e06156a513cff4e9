"""The demo, from a checkpoint that is there: export, serve, score, compare, rank."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from benchmarks import BenchmarkError, demo
from tests.benchmarks.conftest import Ended, command
from tests.tiny import make_checkpoint, make_click_log, make_once_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    """The first run, in a working folder with a click log and a random checkpoint whose AUC is 0.52."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / demo.DATA).mkdir(parents=True)
    make_click_log(folder / demo.DATA / "test.jsonl")
    make_once_checkpoint(folder / demo.CHECKPOINT, seed=5, num_hidden_layers=demo.LAYERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path.cwd()))
        patch.chdir(folder)
        yield command("demo", least_auc=0.0)


def test_it_publishes_serves_and_keeps_the_ranking(first: Ended) -> None:
    assert first.code == 0, first.err
    result = json.loads(first.out.splitlines()[-1])
    assert result["server"]["name"] == "triton"
    assert result["parity"]["pairs"] == result["metrics"]["pairs"]
    scores = [item["score"] for item in result["ranking"]]
    assert scores == sorted(scores, reverse=True)
    assert [path.name for path in (demo.REPOSITORY / "clickbert_onnx").glob("[0-9]*")] == ["1"]


def test_the_second_run_reuses_the_version_and_says_the_same(first: Ended, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "step", lambda *words: pytest.fail(f"{words} was run again"))
    second = command("demo", least_auc=0.0)
    assert second.code == 0, second.err
    figures = [json.loads(ended.out.splitlines()[-1])["metrics"] for ended in (first, second)]
    assert figures[0]["auc"] == pytest.approx(figures[1]["auc"], abs=1e-9)


@pytest.mark.usefixtures("first")
def test_a_version_of_another_checkpoint_or_evaluation_is_not_the_demos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = demo.DATA / "test.jsonl"
    assert demo.reusable_manifest(test)
    other = tmp_path / "test.jsonl"
    other.write_text(test.read_text(encoding="utf-8") * 2, encoding="utf-8")
    assert demo.reusable_manifest(other) is None
    with monkeypatch.context() as patch:
        patch.setattr(demo, "CHECKPOINT", make_checkpoint(tmp_path / "another", seed=1))
        assert demo.reusable_manifest(test) is None
    monkeypatch.setattr(demo, "REPOSITORY", tmp_path / "nowhere")
    assert demo.reusable_manifest(test) is None


def test_what_is_trained_already_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / demo.DATA).mkdir(parents=True)
    (tmp_path / demo.DATA / "test.jsonl").touch()
    taken: list[tuple[str, ...]] = []

    def step(*words: object) -> None:
        taken.append(tuple(map(str, words)))
        if "--from-checkpoint" in words:
            make_once_checkpoint(tmp_path / "made", num_hidden_layers=demo.LAYERS)
            demo.CHECKPOINT.mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / "made" / "config.json", demo.CHECKPOINT)
        if words[0] == "export":
            raise BenchmarkError("that is enough")

    monkeypatch.setattr(demo, "step", step)
    with pytest.raises(BenchmarkError, match="that is enough"):
        demo.run(argparse.Namespace())
    (tmp_path / demo.FULL).mkdir(parents=True)
    (tmp_path / demo.FULL / "model.safetensors").touch()
    with pytest.raises(BenchmarkError, match="that is enough"):
        demo.run(argparse.Namespace())
    assert [words[:2] for words in taken] == [
        ("finetune", "evaluate"), ("finetune", "train"), ("finetune", "train"), ("export", "--checkpoint"),
        ("finetune", "train"), ("export", "--checkpoint"),
    ]  # fmt: skip
    assert taken[2] == taken[4]
    assert taken[2][taken[2].index("--from-checkpoint") + 1] == taken[1][taken[1].index("--output") + 1]


@pytest.mark.parametrize(
    "make", [make_checkpoint, make_once_checkpoint, partial(make_checkpoint, num_hidden_layers=demo.LAYERS)]
)
def test_another_checkpoint_is_not_taken_for_the_demos(make: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"is not the demo's model, which has 3 layers and .* run `make clean`"):
        demo.check_fast(make(tmp_path / "checkpoint"))
    demo.check_fast(make_once_checkpoint(tmp_path / "demo", num_hidden_layers=demo.LAYERS))


@pytest.mark.parametrize(
    ("auc", "reference", "message"),
    [
        (0.8001, 0.8, "the AUC through the server is 0.800100, but 0.800000 in PyTorch"),
        (0.5, 0.5, "the AUC is only 0.5000, and a fine-tuned demo reaches 0.75"),
        (float("nan"), 0.8, "the AUC through the server is nan"),
    ],
)
def test_an_auc_that_is_not_pytorchs_or_shows_no_learning_fails(auc: float, reference: float, message: str) -> None:
    demo.check_served_auc(0.80004, 0.8, 0.75)
    with pytest.raises(BenchmarkError, match=message):
        demo.check_served_auc(auc, reference, 0.75)


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
