"""The environment of the clients that people already have (`make reach-tools`), and how a test runs a script in it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(__file__).parent / "scripts"
# No library may look for anything elsewhere, nor send usage figures: the scripts end if one does.
QUIET = {
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "LANGSMITH_TRACING": "false",
    "NO_PROXY": "localhost,127.0.0.1",
    "no_proxy": "localhost,127.0.0.1",
}


def reach_python() -> str:
    """Its Python; skips the test where there is none."""
    python = os.environ.get("CLICKBERT_REACH_PYTHON") or str(ROOT / ".venv-reach" / "bin" / "python")
    if not Path(python).exists():
        pytest.skip(f"{python} is missing (`make reach-tools` makes .venv-reach): the clients are not tried")
    return python


def environment(**variables: str) -> dict[str, str]:
    """The variables of a process there: it imports this clone's client and examples."""
    path = os.pathsep.join(str(ROOT / folder) for folder in ("client", "examples"))
    return os.environ | QUIET | {"PYTHONPATH": path, "PYTHONUTF8": "1"} | variables


@contextmanager
def running_until_ready(
    command: Sequence[str], variables: Mapping[str, str], log: Path, is_ready: Callable[[], bool]
) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process of its own, ready. At the end it is told to end, and must do so by itself."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=variables, stdout=file, stderr=file)
    try:
        eventually(lambda: is_ready() or process.poll() is not None)
        assert process.poll() is None, log.read_text(encoding="utf-8")
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


def run_script(name: str, reranker: str, task: dict[str, Any]) -> Any:
    """What a script prints for a task (tests/reach/scripts/task.py)."""
    command = [reach_python(), str(SCRIPTS / name), reranker]
    done = subprocess.run(
        command, input=json.dumps(task), env=environment(), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
