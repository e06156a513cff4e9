"""A ranker that computes in process works in the children of a fork, which open the graph anew, and in the parent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FORKING = Path(__file__).with_name("forking.py")
ROOT = Path(__file__).parents[3]


def run(path: Path, scenario: str) -> list[str]:
    """The lines that the scenario prints, in a process of its own."""
    variables = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    variables |= {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, str(FORKING), str(path), scenario]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("scenario", ["unused", "used", "awaited", "pool"])
def test_a_version(published_engines: Path, scenario: str) -> None:
    assert run(published_engines / "clickbert_onnx_int8/1", scenario) == ["child 2", "parent 2"]


def test_a_child_ends_by_itself(published_engines: Path) -> None:
    assert run(published_engines / "clickbert_onnx/1", "exits") == ["child 2", "the child ended with 0"]


def test_a_version_while_other_threads_compute(published_engines: Path) -> None:
    found = run(published_engines / "clickbert_onnx/1", "busy")
    assert found == [*["child 2"] * 3, "others {2}", "parent 2"]


def test_a_checkpoint(published_checkpoint: Path) -> None:
    assert run(published_checkpoint, "used") == ["child 2", "parent 2"]
