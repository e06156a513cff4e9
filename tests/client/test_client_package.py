"""The distribution: its public names, what it imports, and that it works where nothing else is installed."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import clickbert

ROOT = Path(__file__).parents[2]


def test_the_public_names():
    assert clickbert.__all__ == sorted(clickbert.__all__)
    assert set(clickbert.__all__) == {
        *("Ranker", "AsyncRanker", "Connection", "RankedDocument"),
        *("ClickBertError", "InvalidInputError", "RankerClosedError", "ServerError", "ConnectionFailedError"),
        *("ServerTimeoutError", "ServerOverloadedError", "AuthenticationError", "ModelNotFoundError", "ProtocolError"),
    }
    assert all(hasattr(clickbert, name) for name in clickbert.__all__)


def test_the_family_of_errors():
    errors = [getattr(clickbert, name) for name in clickbert.__all__ if name.endswith("Error")]
    assert all(issubclass(error, clickbert.ClickBertError) for error in errors)
    assert issubclass(clickbert.InvalidInputError, ValueError)
    assert {error.__name__ for error in errors if not issubclass(error, clickbert.ServerError)} == {
        "ClickBertError",
        "InvalidInputError",
        "RankerClosedError",
    }
    drawing = (ROOT / "client/README.md").read_text(encoding="utf-8")
    for error in errors:
        assert error.__name__ in (clickbert.errors.__doc__ or "") and error.__name__ in drawing


def test_importing_it_imports_nothing_heavy():
    script = "import sys, clickbert, clickbert.__main__; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    imported = set(done.stdout.split())
    assert {"clickbert", "tritonclient", "tokenizers", "numpy"} <= imported
    assert not imported & {"torch", "transformers", "onnx", "onnxruntime", "huggingface_hub", "export", "finetune"}


@pytest.mark.slow
def test_a_clean_environment_needs_only_the_client_and_pytest(tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    source = tmp_path / "client"  # building in place would leave build folders in the tree
    subprocess.run(["cp", "-r", ROOT / "client", source], check=True)
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", source, "pytest"],
        capture_output=True,
        text=True,
        env=clean,
        timeout=600,
        check=False,
    )
    if "connection" in installed.stderr.lower() or "No matching distribution" in installed.stderr:
        pytest.skip(f"the package index cannot be reached: {installed.stderr[-300:]}")
    assert installed.returncode == 0, installed.stderr
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, env=clean, check=True)
    assert not {"torch", "transformers", "onnx"} & {line.split()[0] for line in listed.stdout.splitlines() if line}
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", ROOT / "tests/client"]
    tested = subprocess.run(command, capture_output=True, text=True, env=clean, cwd=ROOT, timeout=600, check=False)
    assert tested.returncode == 0, tested.stdout[-3000:] + tested.stderr[-1000:]
    assert "transformers is not installed" in tested.stdout
