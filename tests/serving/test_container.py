"""The Dockerfile copies what it runs. (No container engine is needed: the copied folders are run as they are.)"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGE = re.compile(r"^FROM (\S+) AS (\S+)\n(.*?)(?=^FROM|\Z)", re.DOTALL | re.MULTILINE)
STAGES = {name: (base, text) for base, name, text in STAGE.findall((ROOT / "Dockerfile").read_text(encoding="utf-8"))}
COMMANDS = {
    "cpu": [("serving", "--check")],
    "gpu": [("serving", "--check"), ("export", "plan", "--help")],
    "cpu-slim": [("serving", "--check")],
}


def whole(stage: str) -> str:
    """A stage's lines, behind those of the stage that it stands on."""
    base, text = STAGES[stage]
    return (whole(base) if base in STAGES else "") + text


@pytest.mark.parametrize("stage", COMMANDS)
def test_a_stage_has_every_folder_that_its_commands_import(stage: str, tmp_path: Path) -> None:
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = re.findall(r"^COPY (\w+) \./\1$", whole(stage), re.MULTILINE)
    for folder in copied:
        assert f"!{folder}" in sent
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for command in COMMANDS[stage]:
        words = [sys.executable, "-m", *command]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stage", COMMANDS)
def test_its_health_check_is_the_commands_own(stage: str) -> None:
    (check,) = re.findall(r"HEALTHCHECK.*\n *CMD (.*)", whole(stage))
    assert check == '["python3", "-m", "serving", "--health"]'


@pytest.mark.parametrize("stage", COMMANDS)
def test_the_python_that_triton_takes_packages_from_is_checked_at_the_build_and_no_user_is_root(stage: str) -> None:
    text = whole(stage)
    path, check, user = (
        text.index(line) for line in ("\nENV PATH=/app/.venv/bin:$PATH", "serving --check", "\nUSER 10001")
    )
    assert path < check < user


@pytest.mark.parametrize("stage", ["cpu", "gpu"])
def test_what_may_serve_a_network_stands_on_the_image_that_is_given(stage: str) -> None:
    while stage in STAGES:
        stage, _ = STAGES[stage]
    assert stage == "${TRITON_IMAGE}"
