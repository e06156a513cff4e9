"""ONNX Runtime is told to report nothing before it is imported, whatever imports it, and in Triton's processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from serving.server import Server
from tests.processes import children

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "ORT_DISABLE_TELEMETRY"
IMPORTING = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for room in ("export", "benchmarks")
    for path in (ROOT / room).rglob("*.py")
    if re.search(r"^(import|from) onnxruntime\b", path.read_text(encoding="utf-8"), re.MULTILINE)
)
WATCHED = f"""
import importlib, os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            assert os.environ.get("{VARIABLE}") == sys.argv[2], "imported before it was told"
            print("imported")
sys.meta_path.insert(0, Watch())
importlib.import_module(sys.argv[1])
"""


def test_the_modules_are_found() -> None:
    assert {"export.graph.session", "benchmarks.saturation.ceiling"} <= set(IMPORTING)


@pytest.mark.parametrize("module", IMPORTING)
def test_it_is_set_before_the_import(module: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    command = [sys.executable, "-c", WATCHED, module, "1"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "imported\n"), done.stderr


def test_who_wants_it_may_have_it() -> None:
    command = [sys.executable, "-c", WATCHED, "export.graph.session", "0"]
    environment = os.environ | {VARIABLE: "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "imported\n"), done.stderr


def test_triton_and_its_backends_have_it(published_server: Server) -> None:
    assert published_server.process
    processes = [published_server.process.pid, *children(published_server.process.pid)]
    assert len(processes) > 1
    for process in processes:
        assert f"{VARIABLE}=1" in Path(f"/proc/{process}/environ").read_text(encoding="utf-8").split("\0")
