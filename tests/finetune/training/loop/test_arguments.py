"""bf16 on a CPU without AVX-512 is told before the first step, by what oneDNN itself says of the machine."""

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.training.loop.arguments import is_bf16_emulated, trainer_arguments
from finetune.training.settings import TrainSettings

KERNELS = {"avx512_bw": True, "avx512_dq": True, "avx512_vl": True}


@pytest.mark.parametrize(
    ("cpu", "emulated"),
    [
        ({"architecture": "x86_64", "avx2": True, **dict.fromkeys(KERNELS, False)}, True),
        ({"architecture": "x86_64", **KERNELS, "avx512_dq": False}, True),
        ({"architecture": "x86_64", **KERNELS}, False),
        ({"architecture": "aarch64"}, False),  # nothing is known of it, so nothing is said
    ],
)
def test_bf16_without_its_kernels_is_told(
    cpu: dict[str, Any],
    emulated: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)

    for precision in ("bf16", "fp32"):
        trainer_arguments(tmp_path, 8, {"auc"}, TrainSettings(precision=precision))
        assert ("leave --precision out" in capsys.readouterr().err) == (emulated and precision == "bf16")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator, and no bf16 on the CPU")
@pytest.mark.skipif(torch.cpu.get_capabilities()["architecture"] != "x86_64", reason="only x86 is judged")
def test_it_is_told_where_onednn_has_no_kernels() -> None:
    assert is_bf16_emulated() != torch.ops.mkldnn._is_mkldnn_bf16_supported()
