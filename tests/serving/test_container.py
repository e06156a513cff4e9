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
STAGES = dict(re.findall(r"AS (\w+)\n(.*?)(?=\nFROM|\Z)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.DOTALL))
COMMANDS = {
    "cpu": [("serving", "--check")],
    "gpu": [("serving", "--check"), ("export", "plan", "--help")],
}


@pytest.mark.parametrize("stage", COMMANDS)
def test_a_stage_has_every_folder_that_its_commands_import(stage: str, tmp_path: Path) -> None:
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = re.findall(r"^COPY (\w+) \./\1$", STAGES[stage], re.MULTILINE)
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
    (check,) = re.findall(r"HEALTHCHECK.*\n *CMD (.*)", STAGES[stage])
    assert re.fullmatch(r'\["python3?", "-m", "serving", "--health"\]', check)
