"""The distribution: its public names, what it imports, and that it works where nothing else is installed."""

import inspect
import os
import shutil
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
        *("ServerTimeoutError", "ServerOverloadedError", "ServerUnavailableError", "AuthenticationError"),
        *("ModelNotFoundError", "PermissionDeniedError", "ProtocolError"),
        "user_text",
    }
    assert all(hasattr(clickbert, name) for name in clickbert.__all__)


@pytest.mark.parametrize("kind", [clickbert.Ranker, clickbert.AsyncRanker])
def test_the_public_methods(kind):
    methods = {name for name in vars(kind) if not name.startswith("_")}
    assert methods == {"rank", "score_pairs", "classify", "embed", "similarity", "close"}
    for name in methods:
        assert inspect.signature(getattr(kind, name)) == inspect.signature(getattr(clickbert.Ranker, name))


def test_the_family_of_errors():
    errors = [getattr(clickbert, name) for name in clickbert.__all__ if name.endswith("Error")]
    assert all(issubclass(error, clickbert.ClickBertError) for error in errors)
    assert issubclass(clickbert.InvalidInputError, ValueError)
    assert {error.__name__ for error in errors if not issubclass(error, clickbert.ServerError)} == {
        "ClickBertError",
        "InvalidInputError",
        "RankerClosedError",
    }
    readme = (ROOT / "client/README.md").read_text(encoding="utf-8")
    drawing = next(part for part in (clickbert.errors.__doc__ or "").split("\n\n") if "├──" in part)
    assert drawing in readme, "the drawing of the errors is the same in README.md"
    assert all(error.__name__ in drawing for error in errors)


def test_importing_it_imports_nothing_heavy():
    script = "import sys, clickbert, clickbert.__main__; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    imported = set(done.stdout.split())
    assert {"clickbert", "tritonclient", "tokenizers", "numpy"} <= imported
    assert not imported & {"torch", "transformers", "onnx", "onnxruntime", "huggingface_hub", "export", "finetune"}


class Environment:
    """A virtual environment of the test's own."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=True)
        self.python = folder / "bin/python"
        self.variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def install(self, *what: object) -> None:
        done = self.run("-m", "pip", "install", "--quiet", *what)
        if "connection" in done.stderr.lower() or "No matching distribution" in done.stderr:
            pytest.skip(f"the package index cannot be reached: {done.stderr[-300:]}")
        assert done.returncode == 0, done.stderr

    def run(self, *arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        command = [self.python, *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, env=self.variables, cwd=cwd, timeout=600, check=False
        )


def copy_of_the_client(folder: Path) -> Path:
    """Return a copy to install from: building in place would leave build folders in the tree."""
    return shutil.copytree(ROOT / "client", folder, ignore=shutil.ignore_patterns("*.egg-info", "build", "__pycache__"))


@pytest.mark.slow
def test_a_clean_environment_needs_only_the_client_and_pytest(tmp_path):
    environment = Environment(tmp_path / "env")
    environment.install(copy_of_the_client(tmp_path / "client"), "pytest")
    listed = environment.run("-m", "pip", "list").stdout
    assert not {"torch", "transformers", "onnx"} & {line.split()[0] for line in listed.splitlines() if line}
    quiet = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow")
    collected = environment.run(*quiet, "--collect-only", ROOT / "tests/client")  # imports every test's modules
    assert collected.returncode == 0, collected.stdout[-3000:]
    some = ("calls/test_ranker", "test_connection", "wire/test_pair_tokenizer_parity")
    tested = environment.run(*quiet, "-rs", *(ROOT / "tests/client" / f"{name}.py" for name in some))
    assert tested.returncode == 0, tested.stdout[-3000:] + tested.stderr[-1000:]
    assert "transformers is not installed" in tested.stdout


@pytest.mark.slow
def test_a_script_beside_a_clone_of_the_same_name_imports_the_package(tmp_path):
    environment = Environment(tmp_path / "env")
    environment.install("--no-deps", "--editable", copy_of_the_client(tmp_path / "clickbert/client"))
    (tmp_path / "script.py").write_text("import importlib.util as i; print(i.find_spec('clickbert').origin)\n")
    for arguments in (["script.py"], ["-c", (tmp_path / "script.py").read_text()]):
        done = environment.run(*arguments, cwd=tmp_path)
        assert done.stdout.strip() == str(tmp_path / "clickbert/client/clickbert/__init__.py"), done.stderr
