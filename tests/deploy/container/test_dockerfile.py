"""The Dockerfile copies what it runs, and its targets differ in their base alone. (No container engine is needed.)"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.dockerfile import STAGES

SERVER = [("serving", "--check"), ("deploy", "fetch", "--help")]
PLAN = ("export", "plan", "--repository", ".", "--", sys.executable, "-m", "serving", "--check")
COMMANDS = {
    "cpu": SERVER,
    "gpu": [*SERVER, PLAN],
    "cpu-slim": SERVER,
    "gateway": [("deploy", "gateway", "--help"), ("deploy", "canary", "--help")],
}
SERVERS = ("cpu", "gpu", "cpu-slim")
NVIDIAS = "/opt/nvidia/nvidia_entrypoint.sh"  # of NVIDIA's image; ends with `exec "$@"`

each_image = pytest.mark.parametrize("stage", COMMANDS)
each_server = pytest.mark.parametrize("stage", SERVERS)


def entry(stage: str) -> list[str]:
    """The last ENTRYPOINT, which must be a list: what is no list is given to a shell."""
    words: list[str] = json.loads(STAGES[stage].words("ENTRYPOINT")[-1])
    return words


@each_image
def test_a_stage_has_every_folder_that_its_commands_import(stage: str, tmp_path: Path) -> None:
    STAGES[stage].copy(tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for command in COMMANDS[stage]:
        words = [sys.executable, "-m", *command]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@each_server
def test_its_health_check_is_the_commands_own(stage: str) -> None:
    checks = {words.partition(" CMD ")[2] for words in STAGES[stage].words("HEALTHCHECK")}
    assert checks == {'["python3", "-m", "serving", "--health"]'}


@each_image
def test_what_it_runs_is_tried_at_the_build_by_its_user_who_is_not_root(stage: str) -> None:
    """By the Python that is first on PATH: Triton takes packages from that one."""
    tried = (
        "envoy --version && python3 -m deploy gateway --help > /dev/null"
        if stage == "gateway"
        else "python3 -m serving --check && python3 -m deploy fetch --help > /dev/null"
    )
    whole = STAGES[stage].whole
    (path,) = (number for number, one in enumerate(whole) if one.startswith("ENV PATH=/app/.venv/bin:$PATH"))
    assert path < whole.index("USER 10001") < whole.index(f"RUN {tried}")
    assert STAGES[stage].words("USER")[-1] == "10001"


@pytest.mark.parametrize("stage", ["cpu", "gpu"])
def test_what_may_serve_a_network_stands_on_the_image_that_is_given(stage: str) -> None:
    while stage in STAGES:
        stage = STAGES[stage].base
    assert stage == "${TRITON_IMAGE}"


def test_cpu_is_cpu_slim_but_for_what_its_base_brings() -> None:
    slim = STAGES["cpu-slim"].own
    packages, wheel = (one for one in slim if "apt-get install" in one or "triton-wheel.txt" in one)
    shared = [one.replace("from=slim-pip", "from=pip") for one in slim if one not in (packages, wheel)]
    assert shared == list(STAGES["cpu"].own)


def test_gpu_is_cpu_and_what_builds_plans() -> None:
    assert STAGES["gpu"].base == "cpu"
    plan = ["python3", "-m", "export", "plan", "--repository", "/models", "--"]
    assert entry("gpu") == [NVIDIAS, *plan, *entry("cpu")]


@each_image
def test_no_shell_starts_it_but_nvidias_script_in_gpu(stage: str) -> None:
    words = entry(stage)
    if stage == "gpu":
        assert words.pop(0) == NVIDIAS
    assert words[:2] == ["python3", "-m"]
    assert not {"sh", "bash", "dash"} & {Path(word).name for word in words}
