"""Finds a tritonserver, and what it needs on this machine: backends, libraries, the Python that its backend embeds.

Two kinds are known. A `tritonserver` on PATH (NVIDIA's container, a build of one's own) brings its backends along. The
wheel `nvidia-pytriton` carries a real tritonserver and the Python backend; with the stand-in in `serving/backends` that
is enough for this project's ONNX models.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from release import hardware

STAND_INS = Path(__file__).resolve().parent / "backends"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
STUB = "triton_python_backend_stub"


class ServingError(RuntimeError):
    """The server cannot be started, or ended by itself; the message says what to do."""


@dataclass(frozen=True)
class Triton:
    """A tritonserver found on this machine."""

    binary: Path
    backends: Path
    stub: Path | None  # what embeds Python: only the wheel's must be put beside its backend

    @property
    def is_wheel(self) -> bool:
        """Whether it comes from the nvidia-pytriton wheel."""
        return self.stub is not None

    @property
    def has_onnxruntime(self) -> bool:
        """Whether it has the C++ backend, so that the stand-in is not needed."""
        return (self.backends / "onnxruntime" / "libtriton_onnxruntime.so").exists()


def find_triton() -> Triton:
    """The tritonserver on PATH, else the wheel's.

    Raises:
        ServingError: there is neither, or the wheel has no stub for this Python.
    """
    on_path = shutil.which("tritonserver")
    if on_path:
        binary = Path(on_path).resolve()
        backends = binary.parent.parent / "backends"
        found = Triton(binary, backends, None)
        if not found.has_onnxruntime and not (backends / "python").is_dir():
            raise ServingError(
                f"{binary} has neither the onnxruntime nor the python backend in {backends}; install one there, "
                "or take it off PATH to use the nvidia-pytriton wheel's"
            )
        return found
    wheel = importlib.util.find_spec("pytriton")
    if wheel is None or not wheel.submodule_search_locations:
        raise ServingError(
            "there is no tritonserver on PATH and no nvidia-pytriton in this environment; run `make install`, or start "
            "this in NVIDIA's Triton container"
        )
    root = Path(wheel.submodule_search_locations[0]) / "tritonserver"
    stub = root / "python_backend_stubs" / PYTHON / STUB
    if not stub.exists():
        versions = ", ".join(
            sorted((path.name for path in stub.parent.parent.glob("3.*")), key=lambda name: int(name[2:]))
        )
        raise ServingError(
            f"the wheel's Triton has no Python stub for {PYTHON} (it has {versions}); make the environment with one of "
            f"these: `make clean-venv install PYTHON=python3.11`"
        )
    return Triton(root / "bin" / "tritonserver", root / "backends", stub)


def environment(triton: Triton) -> dict[str, str]:
    """The environment for tritonserver: its embedded Python finds this interpreter's packages and libraries."""
    variables = dict(os.environ)
    if triton.has_onnxruntime:  # no stand-in: its own Python backend, if any model uses it, needs nothing of ours
        return variables
    packages = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    prepend(variables, "PYTHONPATH", *dict.fromkeys(packages))
    prepend(variables, "PATH", str(Path(sys.executable).parent))
    if triton.is_wheel:
        libraries = Path(sysconfig.get_path("platlib")) / "nvidia_pytriton.libs"
        # A Python that is not the system's (pyenv, uv) has its libpython in a folder of its own. It comes last, so that
        # nothing else in that folder takes the place of a system library.
        prepend(variables, "LD_LIBRARY_PATH", str(libraries))
        variables["LD_LIBRARY_PATH"] += f":{sysconfig.get_config_var('LIBDIR') or ''}"
    return variables


def prepend(variables: dict[str, str], name: str, *folders: str) -> None:
    """Puts folders before what a search path holds."""
    variables[name] = ":".join([*folders, *filter(None, [variables.get(name)])])


def lay_out_backends(triton: Triton, folder: Path) -> Path:
    """The backend folder to start with: the server's own, or a made one that adds the stub and the stand-in.

    Args:
        folder: an empty folder to make it in. The Python backend and the stand-ins are copied (a few MB: Triton refuses
            a backend library that is a link out of its folder; a stand-in's instances lock files in its own), the other
            backends are links to their folders. A stand-in cannot import `release`, so what it needs is copied along.
    """
    if triton.has_onnxruntime:
        return triton.backends
    for backend in triton.backends.iterdir():
        if backend.name == "python":
            shutil.copytree(backend, folder / backend.name)
        else:
            (folder / backend.name).symlink_to(backend)
    if triton.stub:
        shutil.copy2(triton.stub, folder / "python" / STUB)
    for stand_in in STAND_INS.iterdir():
        if not (folder / stand_in.name).exists():
            shutil.copytree(stand_in, folder / stand_in.name, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy2(str(hardware.__file__), folder / stand_in.name)
    return folder


def missing_libraries(binary: Path, variables: dict[str, str]) -> list[str]:
    """The shared libraries that the loader would not find for `binary`."""
    found = subprocess.run(["ldd", str(binary)], env=variables, capture_output=True, text=True, check=False)
    return [line.split()[0] for line in found.stdout.splitlines() if line.endswith("not found")]
