"""The GPU benchmark, as far as a CPU can run it: all contenders compute the same pairs; a missing side is reported."""

import json
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.baselines import gpu
from export.graph.onnx_export import write_click_model
from export.graph.session import open_graph
from finetune.checkpoint.load import load_checkpoint
from release.stamp import PlanError
from tests.export.tensorrt.fake_gpu import nvidia_smi
from tests.tiny import make_checkpoint, make_click_log, make_once_checkpoint

PAIRS = [{"input_ids": [2, 5 + n, 3, 9, 3], "token_type_ids": [0, 0, 0, 1, 1]} for n in range(20)]


def test_every_contender_is_measured_on_the_same_pairs() -> None:
    seen: dict[str, list] = {"one": [], "other": []}
    contenders = {name: lambda pairs, name=name: seen[name].append(pairs) or np.zeros((1, 1)) for name in seen}
    groups = [PAIRS[:3], PAIRS[3:12], PAIRS[12:]]
    figures = gpu.measure(contenders, groups, (1, 40), runs=12)
    assert seen["one"] == seen["other"]
    assert [len(pairs) for pairs in seen["one"]] == [1] * (10 + 12) + [40] * (10 + 12)
    for pairs in seen["one"]:
        assert any(pairs[: len(group)] == group[: len(pairs)] for group in groups), (
            "an impression's pairs, side by side"
        )
    for one in figures:
        assert one.pairs_per_second == pytest.approx(1000 * one.pairs / one.latency["p50"])
    assert [line.split()[:2] for line in gpu.show_times(figures).splitlines()[1:]] == [
        ["one", "1"],
        ["other", "1"],
        ["one", "40"],
        ["other", "40"],
    ]


def test_padded_pytorch_and_packed_requests_hold_the_same_pairs(tmp_path: Path) -> None:
    model, tokenizer, _ = load_checkpoint(make_checkpoint(tmp_path / "checkpoint"))
    together = gpu.padded(model, tokenizer)(PAIRS)
    alone = np.concatenate([gpu.padded(model, tokenizer)([pair]) for pair in PAIRS])
    assert np.allclose(together, alone, atol=1e-5)


def test_a_plan_gets_requests_of_32_pairs_end_to_end() -> None:
    feeds = []
    plan = SimpleNamespace(run=lambda feed: feeds.append(feed) or {"logits": np.zeros((80, 1))})
    gpu.packed(plan)(PAIRS * 4)
    assert feeds[0]["pair_counts"].tolist() == [32, 32, 16]
    assert feeds[0]["lengths"].tolist() == [5] * 80


@pytest.mark.slow
def test_of_a_model_that_computes_the_user_text_once_both_sides_do(tmp_path: Path) -> None:
    model, tokenizer, _ = load_checkpoint(make_once_checkpoint(tmp_path / "checkpoint", user_tokens=9))
    write_click_model(model, tmp_path / "model.onnx", by_shapes=True)
    graph = open_graph(tmp_path / "model.onnx", for_gpu=True)
    feeds = []
    plan = SimpleNamespace(run=lambda feed: feeds.append(feed) or graph(feed))
    assert np.allclose(gpu.packed(plan, once=True)(PAIRS * 2), gpu.padded(model, tokenizer)(PAIRS * 2), atol=1e-5)
    assert feeds[0]["user_pairs"].tolist() == [1] * 40
    gpu.packed(plan, once=True)(PAIRS[:1] * 40)
    assert feeds[1]["user_pairs"].tolist() == [32, 8]


def test_without_tensorrt_and_a_gpu_it_says_so(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, checkpoint_and_log: list[str]
) -> None:
    def missing() -> None:
        raise PlanError("TensorRT cannot be used here")

    monkeypatch.setattr(gpu, "load_tensorrt", missing)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gpu", *checkpoint_and_log]) == 1
    stderr = capsys.readouterr().err
    assert "TensorRT cannot be used here" in stderr
    assert "finds no GPU" in stderr
    assert "nothing to measure" in stderr


def test_a_side_that_is_missing_leaves_the_other(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, checkpoint_and_log: list[str], tmp_path: Path
) -> None:
    """The plans alone: PyTorch here has no GPU."""
    nvidia_smi(monkeypatch, tmp_path, "NVIDIA L4, 8.9, 580.65.06")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "load_tensorrt", lambda: SimpleNamespace(__version__="11.2"))
    monkeypatch.setattr(gpu, "open_plans", lambda *_, **__: {"a plan": lambda pairs: np.zeros((len(pairs), 1))})
    assert main(["gpu", *checkpoint_and_log]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(document["left_out"]) == {"PyTorch"}
    assert document["machine"] == "NVIDIA L4 (compute capability 8.9), driver 580.65.06, TensorRT 11.2"
    assert {(one["pairs"], one["contender"]) for one in document["figures"]} == {(size, "a plan") for size in gpu.SIZES}


@pytest.fixture
def checkpoint_and_log(tmp_path: Path) -> list[str]:
    log = make_click_log(tmp_path / "clicks.jsonl")
    return [f"--checkpoint={make_checkpoint(tmp_path / 'checkpoint')}", f"--evaluation={log}"]


def test_a_repository_without_plans_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no published model for TensorRT"), ExitStack() as stack:
        gpu.open_plans(None, tmp_path, stack, once=False)
