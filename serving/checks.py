"""What must hold before tritonserver is started. Each failure says the command that mends it."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import re
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from platform import machine

from serving.backends.onnxruntime.products import has_vnni
from serving.triton import PYTHON, ServingError, Triton, environment, missing_libraries

# The question that `release/stamp.py` asks, too: what it answered is in a plan's stamp.
GPU_QUERY = ("nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader")


def check_triton(triton: Triton) -> None:
    """Checks the server's libraries and the packages that the stand-in backend imports.

    Raises:
        ServingError: one is missing.
    """
    variables = environment(triton)
    for binary in filter(None, (triton.binary, triton.stub)):
        missing = missing_libraries(binary, variables)
        if any(name.startswith("libpython") for name in missing):
            raise ServingError(
                f"the shared library of Python {PYTHON} is not installed, and Triton's Python backend embeds it; "
                f"install it: `apt-get install libpython{PYTHON}`"
            )
        if missing:
            raise ServingError(f"{binary} needs {', '.join(missing)}, which this machine does not have; install them")
    if not triton.has_onnxruntime:
        for package in ("onnxruntime", "numpy"):
            if importlib.util.find_spec(package) is None:
                raise ServingError(f"the stand-in backend needs {package}; run `make install`")


def published_models(repository: Path, triton: Triton) -> list[str]:
    """The models of the repository that have a published version and can run here; the others are not served.

    Raises:
        ServingError: there is none, or one would be answered wrongly by this Triton, or its plan is not for this GPU.
    """
    models, left_out = [], {}
    no_plans = why_no_plans(triton)  # asks nvidia-smi: once for all
    for config in sorted(repository.glob("*/config.pbtxt")):
        versions = [path for path in config.parent.iterdir() if path.name.isdecimal() and path.is_dir()]
        versions = [path for path in versions if any(path.iterdir())]
        if not versions:
            continue
        model, newest = config.parent.name, max(versions, key=lambda path: int(path.name))
        text = re.sub("#.*", "", config.read_text(encoding="utf-8"))
        plan = bool(re.search(r'\bbackend\s*:\s*"tensorrt"', text))
        if reason := no_plans if plan else why_no_products(newest, triton):
            left_out[model] = reason
            print(f"serving: {model} is left out: {reason}", file=sys.stderr)
            continue
        if plan:
            check_plan(newest, gpus())
        python_model = re.search(r'\bbackend\s*:\s*"python"', text)
        # Seen: with numpy 2 the wheel's Python backend answers tensors of 0 bytes with status OK. The stand-in
        # avoids its conversion; a Python model of somebody else's cannot be trusted to.
        if python_model and triton.is_wheel and int(version("numpy").split(".")[0]) > 1:
            raise ServingError(
                f"{model} is a Python model, and the wheel's Python backend answers empty tensors "
                f"with numpy {version('numpy')}; install an older one, which Python 3.12 and older have: "
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


def why_no_products(version: Path, triton: Triton) -> str | None:
    """Why a version would rank otherwise here than it did when it was exported; None if it would not.

    On x86 without VNNI Triton's C++ onnxruntime backend cuts integer products off (`products.keep_products`), and
    cannot be asked not to.
    """
    graph = version / "model.onnx"
    if not triton.has_onnxruntime or has_vnni() or machine() != "x86_64" or not graph.exists():
        return None
    if b"MatMulIntegerToFloat" not in graph.read_bytes():
        return None
    return (
        "it is INT8, this processor has no VNNI, and Triton's C++ onnxruntime backend would cut integer products off, "
        "which changes the ranking; the stand-in does not (Dockerfile, cpu)"
    )


def why_no_plans(triton: Triton) -> str | None:
    """Why no TensorRT plan can run here; None if one can."""
    if not (triton.backends / "tensorrt" / "libtriton_tensorrt.so").exists():
        return "this Triton has no tensorrt backend"
    if not gpus():
        return "this machine shows no NVIDIA GPU (nvidia-smi lists none)"
    return None


def gpus() -> list[str]:
    """This machine's NVIDIA GPUs, as nvidia-smi lists them: "name, compute capability, driver version"."""
    try:
        answer = subprocess.run(GPU_QUERY, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.splitlines() if line.strip()]


def check_plan(folder: Path, found: list[str]) -> None:
    """Checks that a version has a plan, and that it was built for every GPU here. (A plan fits nothing else.)

    Args:
        folder: the version's.
        found: the GPUs, as `gpus` lists them.

    Raises:
        ServingError: it has none, or one that was built for something else; says for what, and what is here.
    """
    build = f"build it here: `python -m export plan --repository {folder.parent.parent} --model {folder.parent.name}`"
    plan, stamp_file = folder / "model.plan", folder / "plan.json"
    if not plan.exists():
        raise ServingError(f"{folder} has no TensorRT plan (model.plan) yet; {build}")
    try:
        stamp = json.loads(stamp_file.read_text(encoding="utf-8"))
        built_for = ", ".join(stamp[field] for field in ("gpu", "compute_capability", "driver"))
        digests = {plan: stamp["plan_sha256"], folder / "model.onnx": stamp["graph_sha256"]}
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ServingError(f"{stamp_file} does not say what the plan was built for ({exc}); {build}") from exc
    if others := sorted({gpu for gpu in found if gpu != built_for}):
        raise ServingError(
            f"{plan} was built for {built_for} (GPU, compute capability, driver); this machine has "
            f"{'; '.join(others)}; {build}"
        )
    for path, digest in digests.items():
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise ServingError(f"{path} is not the one that {stamp_file} describes; {build}")


def check_ports(address: str, ports: dict[str, int]) -> None:
    """Checks that nobody listens on the ports yet. (Triton itself would share a taken gRPC port in silence.)

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
