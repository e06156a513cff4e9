"""Checks before tritonserver is started. Each error names the command that helps."""

from __future__ import annotations

import errno
import re
import shlex
import shutil
import socket
import subprocess
import sys
from importlib.metadata import version as installed
from itertools import pairwise
from pathlib import Path
from platform import machine

from release.hardware import Gpu, NoGpuError, has_vnni, query_gpus
from release.names import CONFIG_FILE, HEADS_JSON, MODEL_FILE, TOKENIZER_MODEL, VARIANTS
from release.stamp import misfit
from release.versions import newest, published
from serving.triton import PACKED_CPU, PYTHON, ServingError, Triton, environment, missing_libraries

PACKAGES = ("onnxruntime", "numpy")  # what packed_cpu imports


def check_triton(triton: Triton, needs_python: bool) -> None:
    """Checks the server's libraries and, where models run in its Python, the packages that packed_cpu imports.

    Raises:
        ServingError: one is missing.
    """
    variables = environment(triton, needs_python)
    for binary in filter(None, (triton.binary, triton.stub if needs_python else None)):
        missing = missing_libraries(binary, variables)
        if any(name.startswith("libpython") for name in missing):
            raise ServingError(
                f"the shared library of Python {PYTHON} is not installed, and Triton's Python backend embeds it; "
                f"install it: `apt-get install libpython{PYTHON}`"
            )
        if missing:
            raise ServingError(f"{binary} needs {', '.join(missing)}, which this machine does not have; install them")
    if needs_python:
        check_packages(variables)


def check_packages(variables: dict[str, str]) -> None:
    """Checks the packages of the `python3` that Triton's Python takes its packages from.

    Raises:
        ServingError: one is missing.
    """
    python = shutil.which("python3", path=variables["PATH"])
    found: list[str] = []
    if python:
        look = "import sys; from importlib.util import find_spec; print(*filter(find_spec, sys.argv[1:]))"
        words = [python, "-I", "-c", look, *PACKAGES]  # isolated, as Triton's is
        found = subprocess.run(words, capture_output=True, text=True, check=False).stdout.split()
    if missing := [name for name in PACKAGES if name not in found]:
        raise ServingError(
            f"the packed_cpu backend needs {', '.join(missing)} in the `python3` that is first on PATH, "
            f"{python or 'and there is none'}; run `make install`, or install the dependency group `serving` there"
        )


def config_file(model: Path, variant: str) -> Path:
    """The config that Triton takes for a model's folder: the variant of that name, where the model has it."""
    file = model / VARIANTS / f"{variant}.pbtxt"
    return file if file.is_file() else model / CONFIG_FILE


def published_models(repository: Path, triton: Triton, variant: str = "") -> list[str]:
    """The models of the repository that have a published version and can run here; the others are not served.

    Args:
        variant: the name of the configs that models are served by, where they have one of that name.

    Raises:
        ServingError: there is none, this Triton would answer a model's requests wrongly, or a plan does not fit.
    """
    models, left_out = [], {}
    no_plans, gpus = look_for_gpus(triton)
    for folder in sorted(path.parent for path in repository.glob(f"*/{CONFIG_FILE}")):
        model = folder.name
        version = newest(repository, model)
        if version is None:
            continue
        config = config_file(folder, variant)
        backend = read_backend(config)
        if reason := no_plans if backend == "tensorrt" else why_left_out(version, backend, triton):
            left_out[model] = reason
            print(f"serving: {model} is left out: {reason}", file=sys.stderr)
            continue
        if backend == "tensorrt":
            check_plan(version, gpus)
        if model == TOKENIZER_MODEL and not triton.runs_in_python(backend):
            check_tokenizers(folder, config)
        # With numpy 2 the wheel's Python backend answers tensors of 0 bytes with status OK. packed_cpu avoids its
        # conversion; somebody else's Python model may not.
        if backend == "python" and triton.is_wheel and int(installed("numpy").split(".")[0]) > 1:
            raise ServingError(
                f"{model} is a Python model, and the wheel's Python backend answers empty tensors "
                f"with numpy {installed('numpy')}; install an older one, which Python 3.12 and older have: "
                "`.venv/bin/pip install 'numpy<2'`"
            )
        models.append(model)
    if not models and left_out:
        reasons = "; ".join(f"{model}: {reason}" for model, reason in left_out.items())
        raise ServingError(
            f"{repository} holds nothing that can run here ({reasons}); serve plans in NVIDIA's Triton container on "
            "a GPU (Dockerfile, gpu), or publish clickbert_onnx with `python -m export`"
        )
    if not models:
        raise ServingError(
            f"{repository} holds no published model; publish one with `python -m export`, or give --repository"
        )
    return models


def read_backend(config: Path) -> str:
    """The backend that a config.pbtxt names; empty where it names none. (The server's Python has no protobuf.)"""
    # Every string and comment is one token, so that a "#" in a string begins no comment, and no string is searched.
    tokens = re.findall(r"""#.*|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\w+|[^\s\w]""", config.read_text(encoding="utf-8"))
    words = [token for token in tokens if not token.startswith("#")]
    places = [place for place, pair in enumerate(pairwise(words)) if pair == ("backend", ":")]
    return words[places[0] + 2].strip("\"'") if places and places[0] + 2 < len(words) else ""


def why_left_out(version: Path, backend: str, triton: Triton) -> str | None:
    """Why a version of a backend other than TensorRT's cannot run here; None if it can."""
    if triton.runs_in_python(backend):
        if triton.has_python:
            return None
        advice = "; the C++ backend serves it with `--config onnxruntime`" if backend == PACKED_CPU else ""
        return f"its backend is {backend}, and this Triton has no python backend to run that{advice}"
    return why_saturating(version) if backend == "onnxruntime" else None


def why_saturating(version: Path) -> str | None:
    """Why the C++ onnxruntime backend would rank differently here than the export did; None if it would not.

    On x86 without VNNI the integer products of Triton's C++ onnxruntime backend saturate, and it has no option against
    that (`release.hardware.keep_products_whole`).
    """
    graph = version / MODEL_FILE
    if has_vnni() or machine() != "x86_64" or not graph.exists():
        return None
    if b"MatMulIntegerToFloat" not in graph.read_bytes():
        return None
    return (
        "it is INT8, this processor has no VNNI, and in Triton's C++ onnxruntime backend its integer products would "
        "saturate, which changes the ranking; the packed_cpu backend computes them exactly: serve it by that"
    )


def check_tokenizers(model: Path, config: Path) -> None:
    """Checks that every tokenizer has the output that former releases did not publish, if its config names it.

    Triton's C++ onnxruntime backend serves no version without it, and ends. packed_cpu answers without it.

    Raises:
        ServingError: some have not; says what to do with them.
    """
    versions = published(model.parent, model.name)
    graphs = [folder / MODEL_FILE for folder in versions if (folder / MODEL_FILE).exists()]
    old = [str(graph.parent) for graph in graphs if HEADS_JSON.encode() not in graph.read_bytes()]
    if old and HEADS_JSON in config.read_text(encoding="utf-8"):
        raise ServingError(
            f"{', '.join(reversed(old))}: published by a former release, without the output {HEADS_JSON!r} that "
            f"{config} names, and Triton's C++ backend cannot serve that; export the model again, then move these "
            "folders away"
        )


def look_for_gpus(triton: Triton) -> tuple[str | None, list[Gpu]]:
    """Why no TensorRT plan can run here, or None; and the GPUs that would run it."""
    if not (triton.backends / "tensorrt" / "libtriton_tensorrt.so").exists():
        return "this Triton has no tensorrt backend", []
    try:
        return None, query_gpus()
    except NoGpuError as exc:
        return f"this machine shows no NVIDIA GPU ({exc})", []


def check_plan(version: Path, gpus: list[Gpu]) -> None:
    """Checks that a version has a plan, and that it was built for every GPU here.

    Raises:
        ServingError: it has none, or one that was built for something else; says for what, and what is here.
    """
    if reason := misfit(version, gpus):
        repository, model = version.parent.parent, version.parent.name
        raise ServingError(
            f"{model} version {version.name}: {reason}; build it here: "
            f"`python -m export plan --repository {shlex.quote(str(repository))} --model {model}`"
        )


def check_ports(address: str, ports: dict[str, int]) -> None:
    """Checks that nobody listens on the ports yet. (Triton would silently share a gRPC port with another server.)

    Args:
        ports: port by the option that names it.

    Raises:
        ServingError: one is taken, or the address is not this machine's.
    """
    if len(set(ports.values())) < len(ports):
        raise ServingError(f"the ports must differ, they are {', '.join(f'{k} {v}' for k, v in ports.items())}")
    for option, port in ports.items():
        try:
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, port))
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                raise ServingError(
                    f"port {port} on {address} is taken; stop what listens there (`ss -ltnp 'sport = :{port}'` "
                    f"names it), or give another {option}"
                ) from exc
            other = option if exc.errno == errno.EACCES else "--address"
            raise ServingError(
                f"cannot listen on {address}, port {port}: {exc.strerror}; give another {other}"
            ) from exc
