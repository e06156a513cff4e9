"""The backend's folder as Triton gets it: complete, and independent of where the repository lies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serving.triton import Triton, lay_out_backends

MODULES = [
    "graph",
    "service",
    "figures",
    "schedule",
    "scores",
    "segments",
    "settings",
    "cores",
    "presence",
    "wild_shapes",
    "warm_up",
]


@pytest.mark.parametrize("has_onnxruntime", [False, True])
def test_it_has_all_that_its_model_imports(tmp_path: Path, has_onnxruntime: bool) -> None:
    backends, served = tmp_path / "triton" / "backends", tmp_path / "served"
    (backends / "python").mkdir(parents=True)
    if has_onnxruntime:
        (backends / "onnxruntime").mkdir()
        (backends / "onnxruntime" / "libtriton_onnxruntime.so").touch()
    (backends / "packed_cpu").mkdir()  # an older copy, installed by hand
    (backends / "packed_cpu" / "model.py").write_text("old")
    lay_out_backends(Triton(tmp_path / "tritonserver", backends, None), served)
    assert (served / "onnxruntime" / "model.py").exists() != has_onnxruntime, "it bears that name where Triton has none"
    assert (backends / "packed_cpu" / "model.py").read_text() == "old", "Triton's own folder is left alone"
    imports = "\n".join(f"import serving.backends.packed_cpu.{name} as {name}" for name in MODULES)
    program = f"{imports}\nimport sys\nfrom release import hardware\n"
    program += "print(hardware.__file__, graph.__file__, 'tritonclient' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=served / "packed_cpu", env={}, capture_output=True, text=True, check=True
    )
    folder = served / "packed_cpu"
    own = folder / "serving" / "backends" / "packed_cpu"
    assert done.stdout.split() == [str(folder / "release" / "hardware.py"), str(own / "graph.py"), "False"]
    assert {path.stem for path in own.glob("*.py")} == {*MODULES, "model"}
    assert (folder / "model.py").read_bytes() == (own / "model.py").read_bytes()
