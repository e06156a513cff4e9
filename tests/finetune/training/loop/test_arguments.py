"""bf16 on a CPU without kernels for it is told before the first step, by what oneDNN itself says of the machine."""

import platform
from pathlib import Path

import pytest
import torch

from finetune.training.loop.arguments import default_metric, is_bf16_emulated, trainer_arguments
from finetune.training.loop.dev import FEWEST_PAIRS
from finetune.training.settings import TrainSettings


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize(
    ("machine", "kernels", "emulated"),
    [
        ("x86_64", False, True),
        ("x86_64", True, False),
        ("aarch64", False, False),  # nothing was measured there, so nothing is said
    ],
)
def test_bf16_without_its_kernels_is_told(
    machine: str,
    kernels: bool,
    emulated: bool,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: kernels)

    arguments = trainer_arguments(tmp_path, 8, {"auc": 0.5}, TrainSettings(precision=precision))

    assert arguments.bf16 == (precision == "bf16"), "it is told, not refused"
    assert ("leave --precision out" in capsys.readouterr().err) == (emulated and precision == "bf16")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert not is_bf16_emulated(), "the CPU does not train"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator, and no bf16 on the CPU")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86 is judged")
def test_avx512_has_its_kernels_and_avx2_has_none() -> None:
    cpu = torch.cpu.get_capabilities()
    if all(cpu[name] for name in ("avx512_bw", "avx512_dq", "avx512_vl")):
        assert not is_bf16_emulated()
    elif not any(kind in name and there for name, there in cpu.items() for kind in ("avx512", "avx_ne", "avx10")):
        assert is_bf16_emulated()
    else:
        pytest.skip("a CPU between the two")


@pytest.mark.parametrize(
    ("objective", "pairs", "metric"),
    [
        ("click", FEWEST_PAIRS, "auc"),
        ("pairwise", FEWEST_PAIRS, "significant_pair_accuracy"),
        ("pairwise", FEWEST_PAIRS - 1, "pairwise_accuracy"),
        ("listwise", FEWEST_PAIRS, "significant_pair_accuracy"),
        ("listwise", FEWEST_PAIRS - 1, "ndcg_at_10"),
        ("listwise", 0, "ndcg_at_10"),
    ],
)
def test_a_handful_of_significant_pairs_chooses_no_checkpoint(objective: str, pairs: int, metric: str) -> None:
    """Of so few, one model after another has them all right."""
    known = {"auc": 0.5, "significant_pairs": float(pairs), **({"significant_pair_accuracy": 0.5} if pairs else {})}
    assert default_metric(known, TrainSettings(objective=objective)) == metric
