"""The GPU benchmark, as far as a CPU can run it: all contenders compute the same pairs, and what is missing is said."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu
from benchmarks.__main__ import main
from export.stamp import PlanError
from finetune.scoring import load_checkpoint
from tests.tiny import make_checkpoint

PAIRS = [{"input_ids": [2, 5 + n, 3, 9, 3], "token_type_ids": [0, 0, 0, 1, 1]} for n in range(20)]


def test_every_contender_is_measured_on_the_same_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "RUNS", 12)
    seen: dict[str, list] = {"one": [], "other": []}
    contenders = {name: lambda pairs, name=name: seen[name].append(pairs) or np.zeros((1, 1)) for name in seen}
    figures = gpu.measure(contenders, PAIRS, (1, 40))
    assert seen["one"] == seen["other"]
    assert [len(pairs) for pairs in seen["one"]] == [1] * (10 + 12) + [40] * (10 + 12)
    for size, found in figures.items():
        for one in found.values():
            assert one["pairs_per_second"] == pytest.approx(1000 * size / one["median_ms"])
    assert "other" in gpu.table(figures)


def test_padded_pytorch_and_packed_requests_hold_the_same_pairs(tmp_path: Path) -> None:
    model, tokenizer, _ = load_checkpoint(make_checkpoint(tmp_path / "checkpoint"))
    together = gpu.padded(model, tokenizer)(PAIRS)
    alone = np.concatenate([gpu.padded(model, tokenizer)([pair]) for pair in PAIRS])
    assert np.allclose(together, alone, atol=1e-5)
    assert [len(request) for request in gpu.requests(PAIRS * 4)] == [32, 32, 16]


def test_without_tensorrt_or_a_gpu_it_says_so(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise PlanError("TensorRT cannot be used here")

    monkeypatch.setattr(gpu, "load_tensorrt", missing)
    assert main(["gpu"]) == 1
    assert "TensorRT cannot be used here" in capsys.readouterr().err
