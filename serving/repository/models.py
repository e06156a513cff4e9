"""Which models of a repository are served here, and by which config and backend. Errors name the command that helps."""

from __future__ import annotations

import re
import shlex
import sys
from importlib.metadata import version as installed
from pathlib import Path
from platform import machine
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from release.hardware import Gpu, NoGpuError, has_vnni, query_gpus
from release.names import CONFIG_FILE, HEADS_JSON, MODEL_FILE, TOKENIZER_MODEL, VARIANTS
from release.stamp import misfit
from release.versions import newest, published
from serving.triton import PACKED_CPU, ServingError, Triton


def find_models(repository: Path, triton: Triton, config: str) -> dict[str, str]:
    """The models to serve, with their backends.

    Raises:
        ServingError: the repository is none, or cannot be read, or `published_models` refuses it; no model has a config
            of that name.
    """
    advice = "give --repository a folder that `python -m export` publishes to"
    try:
        next(repository.iterdir(), None)
        models = published_models(repository, triton, config)
    except OSError as exc:
        raise ServingError(f"{exc.filename or repository} cannot be read ({exc.strerror}); {advice}") from exc
    configs = {model: config_file(repository / model, config) for model in models}
    if config and all(file.name == CONFIG_FILE for file in configs.values()):
        there_are = sorted({file.stem for file in repository.glob(f"*/{VARIANTS}/*.pbtxt")})
        raise ServingError(
            f"--config {config!r}: no model to serve has a {VARIANTS}/{config}.pbtxt; {repository} has "
            f"{', '.join(there_are) or 'none of any name; copy those of model_repository in git'}"
        )
    backends = {model: read_backend(file) for model, file in configs.items()}
    for model, backend in backends.items():
        if triton.runs_in_python(backend) and not re.fullmatch(r"[\w.-]+", model, re.ASCII):
            raise ServingError(
                f"{model!r} cannot be served: Triton's Python backend passes a model's name through a shell; rename "
                f"{repository / model} to letters, digits, `_`, `-` and `.`"
            )
    return backends


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


def config_file(model: Path, variant: str) -> Path:
    """The config that Triton takes for a model's folder: the variant of that name, where the model has it."""
    file = model / VARIANTS / f"{variant}.pbtxt"
    return file if file.is_file() else model / CONFIG_FILE


def read_config(file: Path) -> Any:
    """A config.pbtxt as a message. Raises OSError, and ServingError where it is no config."""
    try:
        # A field that a newer Triton has is none of this room's business.
        return text_format.Parse(
            file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig(), allow_unknown_field=True
        )
    except (text_format.ParseError, UnicodeDecodeError) as exc:
        raise ServingError(f"{file} is not a valid model configuration: {exc}; correct it, then run again") from exc


def read_backend(file: Path) -> str:
    """The backend that a config.pbtxt names; empty where it names none. Raises as `read_config`."""
    return str(read_config(file).backend)
