"""Finds a tritonserver, and what it needs on this machine: backends, libraries, the Python that its backend embeds.

There are two kinds. A `tritonserver` on PATH (NVIDIA's container, or your own build) has its backends with it. The
wheel `nvidia-pytriton` has a real tritonserver and the Python backend alone. That is what our backend `packed_cpu`
stands on, so it is enough for this project's ONNX models.
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

from release import expected, hardware, names

REPOSITORY = Path(__file__).resolve().parent.parent
PACKED_CPU = "packed_cpu"  # our backend
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
STUB = "triton_python_backend_stub"


class ServingError(RuntimeError):
    """The server cannot be started, or ended by itself; the message says what to do."""


@dataclass(frozen=True)
class Triton:
    """A tritonserver found on this machine."""

    binary: Path
    backends: Path
    stub: Path | None  # the program that embeds Python, if it still has to be put beside its backend (the wheel's)

    @property
    def is_wheel(self) -> bool:
        """Whether it comes from the nvidia-pytriton wheel."""
        return self.stub is not None

    @property
    def has_onnxruntime(self) -> bool:
        """Whether it has the C++ onnxruntime backend."""
        return (self.backends / "onnxruntime" / "libtriton_onnxruntime.so").exists()

    @property
    def has_python(self) -> bool:
        """Whether it has the Python backend, on which `packed_cpu` stands."""
        return (self.backends / "python").is_dir()

    def runs_in_python(self, backend: str) -> bool:
        """Whether a model of this backend runs in a Python process, and not in tritonserver itself."""
        return backend in (PACKED_CPU, "python") or (backend == "onnxruntime" and not self.has_onnxruntime)


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
        if not found.has_onnxruntime and not found.has_python:
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


def environment(triton: Triton, needs_python: bool) -> dict[str, str]:
    """The environment for tritonserver.

    Args:
        needs_python: a model runs in a Python process. That is embedded in a program of Triton's, isolated, so that
            neither PYTHONPATH nor the user's own packages count. It takes the packages of the `python3` that is first
            on PATH, which here is this interpreter.
    """
    variables = dict(os.environ)
    # An import of clickbert beside this (tests, benchmarks) sets it for its own process; Triton runs without it.
    variables.pop("GRPC_ENABLE_FORK_SUPPORT", None)
    if needs_python:
        prepend(variables, "PATH", str(Path(sys.executable).parent))
    if triton.is_wheel:
        libraries = Path(sysconfig.get_path("platlib")) / "nvidia_pytriton.libs"
        # The libpython of a Python that is not the system's (pyenv, uv) lies in a folder of its own. That folder comes
        # last, so that nothing else in it replaces a system library.
        prepend(variables, "LD_LIBRARY_PATH", str(libraries))
        if own := sysconfig.get_config_var("LIBDIR"):  # (an empty entry would be the working folder)
            variables["LD_LIBRARY_PATH"] += f":{own}"
    return variables


def prepend(variables: dict[str, str], name: str, *folders: str) -> None:
    """Puts folders before what a search path holds."""
    variables[name] = ":".join([*folders, *filter(None, [variables.get(name)])])


def lay_out_backends(triton: Triton, folder: Path) -> None:
    """Makes the backend folder to start with: Triton's own backends, and `packed_cpu`.

    Args:
        folder: where to make it. The Python backend and `packed_cpu` are copied (a few MB: Triton refuses a backend
            library that is a link out of its folder, and `packed_cpu` locks files in its own); the other backends are
            links to their folders. Where Triton has no onnxruntime backend, `packed_cpu` bears that name, too.
    """
    folder.mkdir()
    ours = {PACKED_CPU} if triton.has_onnxruntime else {PACKED_CPU, "onnxruntime"}
    for backend in triton.backends.iterdir():
        if backend.name in ours:  # written below, and not through a link into Triton's own
            continue
        if backend.name == "python":
            shutil.copytree(backend, folder / backend.name)
        else:
            (folder / backend.name).symlink_to(backend)
    if triton.stub:
        shutil.copy2(triton.stub, folder / "python" / STUB)
    for name in sorted(ours):
        lay_out_packed_cpu(folder / name)


def lay_out_packed_cpu(folder: Path) -> None:
    """Makes the folder of the `packed_cpu` backend: its model.py, and a copy of what that imports of this repository.

    Triton's Python stub looks for modules in the backend's folder, and not where this process does.
    """
    modules = [*(REPOSITORY / "serving" / "backends" / PACKED_CPU).glob("*.py")]
    modules += [Path(str(module.__file__)) for module in (expected, hardware, names)]
    for module in modules:
        copy = folder / module.relative_to(REPOSITORY)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(module, copy)
    shutil.copy2(folder / "serving" / "backends" / PACKED_CPU / "model.py", folder / "model.py")


def hide_words(process: int, words: list[str]) -> None:
    """Overwrites words in the command line that `ps` and /proc show of a child process of this one.

    tritonserver takes its tokens by flags alone, and has copied them by the time that it is ready.

    Raises:
        OSError: the system forbids to write into a process (its ptrace_scope is above 1).
    """
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end in proc(5)
    with Path(f"/proc/{process}/mem").open("r+b", buffering=0) as memory:
        memory.seek(start)
        line = memory.read(end - start)
        for word in words:
            line = line.replace(word.encode(), b"*" * len(word))
        memory.seek(start)
        memory.write(line)


def missing_libraries(binary: Path, variables: dict[str, str]) -> list[str]:
    """The shared libraries that the loader would not find for `binary`."""
    found = subprocess.run(["ldd", str(binary)], env=variables, capture_output=True, text=True, check=False)
    return [line.split()[0] for line in found.stdout.splitlines() if line.endswith("not found")]
