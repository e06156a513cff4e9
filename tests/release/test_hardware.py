"""nvidia-smi's answers, and a module that the packed_cpu backend can import as its neighbour."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from release import hardware
from release.hardware import Gpu, NoGpuError, find_gpus, query_gpus


def answer(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Puts an nvidia-smi on PATH that runs `script`."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_every_gpu_is_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer(monkeypatch, tmp_path, "echo 'NVIDIA A100, SXM4, 8.0, 580.1'; echo; echo ' NVIDIA L4, 8.9, 580.1 '")
    assert query_gpus() == find_gpus() == [Gpu("NVIDIA A100, SXM4", "8.0", "580.1"), Gpu("NVIDIA L4", "8.9", "580.1")]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 0", "ended with code 0 and answered ''"),
        ("echo No devices were found; exit 6", "ended with code 6 and answered 'No devices were found'"),
        (
            "echo 'Driver/library version mismatch' >&2; exit 18",
            "code 18 and answered 'Driver/library version mismatch'",
        ),
        ("echo 'NVIDIA L4'", "answered 'NVIDIA L4'"),
    ],
)
def test_without_a_gpu_it_says_what_nvidia_smi_answered(monkeypatch, tmp_path: Path, script: str, reason: str) -> None:
    answer(monkeypatch, tmp_path, script)
    with pytest.raises(NoGpuError) as caught:
        query_gpus()
    assert reason in str(caught.value)
    assert find_gpus() == []


def test_without_nvidia_smi_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoGpuError, match="nvidia-smi: "):
        query_gpus()


def test_release_imports_the_standard_library_only() -> None:
    """The serving container has no onnx, tritonclient or torch."""
    modules = sorted(f"release.{path.stem}" for path in Path(hardware.__file__).parent.glob("*.py"))
    program = f"""
import importlib, sys
for module in {[module for module in modules if module != "release.__init__"]}:
    importlib.import_module(module)
foreign = {{name.split(".")[0] for name in sys.modules}} - sys.stdlib_module_names - {{"release", "__main__"}}
print(sorted(foreign))
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        cwd=Path(hardware.__file__).parent.parent,
        env={},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
