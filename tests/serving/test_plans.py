"""TensorRT plans at the start of the server: served where they fit, left out where none can run, refused otherwise."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from export.publish import TEMPLATES
from serving.repository.models import published_models, read_backend
from serving.triton import ServingError, Triton, find_triton
from tests.export.tensorrt.fake_gpu import MODEL, Gpu, command, nvidia_smi

pytest_plugins = ("tests.export.tensorrt.gpu_fixtures",)
ROOT = TEMPLATES.parent


@pytest.fixture
def with_tensorrt(tmp_path: Path) -> Triton:
    """NVIDIA's Triton, as far as the checks look at it."""
    for name in ("tensorrt", "onnxruntime"):
        library = tmp_path / "triton" / "backends" / name / f"libtriton_{name}.so"
        library.parent.mkdir(parents=True)
        library.touch()
    return Triton(tmp_path / "triton" / "bin" / "tritonserver", tmp_path / "triton" / "backends", None)


@pytest.fixture
def repository(version: Path, gpu: Gpu) -> Path:
    """A model for TensorRT, its plan built (by fakes) for the GPU that nvidia-smi shows, and an ONNX model."""
    assert command(version) == 0
    repository = version.parent.parent
    onnx_model = repository / "clickbert_onnx"
    (onnx_model / "1").mkdir(parents=True)
    (onnx_model / "1" / "model.onnx").touch()
    (onnx_model / "config.pbtxt").write_text('name: "clickbert_onnx" backend: "onnxruntime"')
    return repository


def test_a_plan_that_was_built_here_is_served(repository: Path, with_tensorrt: Triton) -> None:
    assert published_models(repository, with_tensorrt) == ["clickbert_onnx", MODEL]


def test_the_wheels_triton_serves_the_onnx_models_and_says_what_it_leaves_out(repository: Path, capsys) -> None:
    if not find_triton().is_wheel:
        pytest.skip("this Triton may have the tensorrt backend")
    assert published_models(repository, find_triton()) == ["clickbert_onnx"]
    assert f"serving: {MODEL} is left out: this Triton has no tensorrt backend" in capsys.readouterr().err


def test_without_a_gpu_it_is_left_out_too(repository: Path, with_tensorrt: Triton, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PATH", "")
    assert published_models(repository, with_tensorrt) == ["clickbert_onnx"]
    assert "left out: this machine shows no NVIDIA GPU (nvidia-smi: " in capsys.readouterr().err


def test_if_nothing_remains_it_is_an_error(repository: Path, with_tensorrt: Triton, monkeypatch) -> None:
    shutil.rmtree(repository / "clickbert_onnx")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ServingError, match=rf"can run here \({MODEL}: .* no NVIDIA GPU.*\); .*publish"):
        published_models(repository, with_tensorrt)


@pytest.mark.parametrize(
    "line",
    ["NVIDIA H100 80GB HBM3, 9.0, 580.65.06", "NVIDIA L4, 9.0, 580.65.06", "NVIDIA L4, 8.9, 590.1"],
)
def test_a_plan_for_another_gpu_or_driver_is_refused(
    repository: Path, with_tensorrt: Triton, monkeypatch, tmp_path, line: str
) -> None:
    nvidia_smi(monkeypatch, tmp_path, "NVIDIA L4, 8.9, 580.65.06", line)
    name, compute_capability, driver = line.split(", ")
    message = re.escape(f"this is {name} (compute capability {compute_capability}), driver {driver}")
    build = rf"python -m export plan --repository {repository} --model {MODEL}"
    with pytest.raises(ServingError, match=f"its plan was built for NVIDIA L4 .*{message}.*{build}"):
        published_models(repository, with_tensorrt)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.plan", None, "version 10: it has no TensorRT plan"),
        ("model.plan", b"plan 0", "model.plan is not the one that plan.json describes"),
        ("model.onnx", b"graph 0", "model.onnx is not the one that plan.json describes"),
        ("plan.json", None, r"plan.json cannot be read \(FileNotFoundError"),
        ("plan.json", b"{", r"plan.json cannot be read \(JSONDecodeError"),
        ("plan.json", b"[]", "plan.json has schema None, this release reads 1"),
    ],
)
def test_a_plan_without_its_stamp_is_refused(
    repository: Path, with_tensorrt: Triton, file: str, content: bytes | None, message: str
) -> None:
    path = repository / MODEL / "10" / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ServingError, match=f"{message}.*python -m export plan"):
        published_models(repository, with_tensorrt)


def test_the_newest_version_counts(repository: Path, with_tensorrt: Triton) -> None:
    (repository / MODEL / "11").mkdir()  # empty: not published
    assert MODEL in published_models(repository, with_tensorrt)
    (repository / MODEL / "11" / "model.onnx").touch()
    with pytest.raises(ServingError, match="version 11: it has no TensorRT plan"):
        published_models(repository, with_tensorrt)


@pytest.mark.parametrize(
    ("text", "backend"),
    [
        ('backend: "tensorrt"', "tensorrt"),
        ("name: 'x'\tbackend\t:\n'tensorrt'", "tensorrt"),
        ('backend:"python"# backend: "tensorrt"', "python"),
        ('# backend: "tensorrt"\nbackend: "onnxruntime"', "onnxruntime"),
        ('name: "no # comment" backend: "tensorrt"', "tensorrt"),
        ("name: \"it's # one\" # isn't\nbackend: 'tensorrt'", "tensorrt"),
        ('parameters { key: "my_backend" value { string_value: "backend" } }', ""),
        ('my_backend: "tensorrt"', ""),
        (
            'parameters { key: "x" value { string_value: "say \\" backend: \'tensorrt\' \\"" } } backend: "python"',
            "python",
        ),
        ("", ""),
    ],
)
def test_the_backend_is_read_through_comments_and_any_spacing(tmp_path: Path, text: str, backend: str) -> None:
    (tmp_path / "config.pbtxt").write_text(text)
    assert read_backend(tmp_path / "config.pbtxt") == backend
