"""What the start of a server needs follows from the backends of its models, and not from what Triton has besides."""

from __future__ import annotations

import os
import shutil
import sys
import venv
from pathlib import Path

import pytest

from release import hardware
from serving.__main__ import main
from serving.checks import PACKAGES, check_triton
from serving.repository.models import published_models
from serving.server import Addresses, Server
from serving.triton import PACKED_CPU, ServingError, Triton, environment

CPP = "onnxruntime"


def make_triton(folder: Path, *backends: str) -> Triton:
    """A Triton with these backends, as far as the checks look at it."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "tritonserver").touch(mode=0o755)
    (folder / "backends").mkdir()
    for name in backends:
        (folder / "backends" / name).mkdir()
        (folder / "backends" / name / f"libtriton_{name}.so").touch()
    return Triton(folder / "bin" / "tritonserver", folder / "backends", None)


def write_model(repository: Path, name: str, backend: str, variants: dict[str, str] | None = None) -> Path:
    """A published model: its folder. The variants are backends by name."""
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.onnx").write_bytes(b"with MatMulIntegerToFloat")
    (repository / name / "configs").mkdir()
    files = {"config": backend} | {f"configs/{variant}": other for variant, other in (variants or {}).items()}
    for file, named in files.items():
        (repository / name / f"{file}.pbtxt").write_text(f'name: "{name}" backend: "{named}"')
    return repository / name


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's servers keep their files."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One model, served by packed_cpu, and by the C++ backend with `--config onnxruntime`."""
    write_model(tmp_path / "repository", "click", PACKED_CPU, {"onnxruntime": CPP})
    return tmp_path / "repository"


def put_on_path(monkeypatch: pytest.MonkeyPatch, triton: Triton) -> None:
    monkeypatch.setenv("PATH", f"{triton.binary.parent}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("backend", "backends", "expected"),
    [
        (PACKED_CPU, ["python", CPP], True),
        ("python", ["python", CPP], True),
        (CPP, ["python"], True),
        (CPP, ["python", CPP], False),
        ("tensorrt", ["python", CPP, "tensorrt"], False),
        ("", ["python"], False),
    ],
)
def test_which_models_run_in_tritons_python(tmp_path: Path, backend: str, backends: list[str], expected: bool) -> None:
    assert make_triton(tmp_path, *backends).runs_in_python(backend) == expected


@pytest.mark.usefixtures("state")
def test_a_packed_cpu_model_has_what_it_needs_where_triton_has_the_cpp_backend_too(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(monkeypatch, make_triton(tmp_path / "triton", "python", CPP))
    server = Server(repository, Addresses.free())
    command = server.prepare()
    assert server.folder
    backends = server.folder.path / "backends"
    try:
        assert f"--backend-directory={backends}" in command
        assert (backends / PACKED_CPU / "model.py").is_file()
        assert (backends / CPP / "libtriton_onnxruntime.so").is_file(), "the C++ backend keeps its name"
        assert not (backends / CPP / "model.py").exists()
        assert any(flag.startswith("--backend-config=python,") for flag in command)
    finally:
        server.kill()


@pytest.mark.usefixtures("state")
def test_by_its_variant_the_same_model_needs_no_python(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = make_triton(tmp_path / "triton", CPP)
    put_on_path(monkeypatch, triton)
    monkeypatch.setattr("serving.repository.models.has_vnni", lambda: True)
    server = Server(repository, Addresses.free(), config="onnxruntime")
    assert server.models == ["click"]
    assert not server.needs_python
    command = server.prepare()
    assert server.folder
    assert [path.name.rpartition("-")[0] for path in server.folder.path.iterdir()] == ["admin-token-127.0.0.1"]
    server.kill()
    assert f"--backend-directory={triton.backends}" in command
    assert "--model-config-name=onnxruntime" in command


def test_without_a_variant_triton_is_asked_for_none(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(monkeypatch, make_triton(tmp_path / "triton", "python"))
    server = Server(repository, Addresses.free())
    assert not [flag for flag in server.own_flags(repository, tmp_path) if "config-name" in flag]


def test_a_variant_that_no_model_has_is_refused_with_those_there_are(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    put_on_path(monkeypatch, make_triton(tmp_path / "triton", "python", CPP))
    write_model(repository, "other", PACKED_CPU, {"large": PACKED_CPU})
    words = [f"--repository={repository}", "--config"]
    assert main([*words, "onxruntime"]) == 1
    assert f"'onxruntime': no model to serve has a configs/onxruntime.pbtxt; {repository} has large, onnxruntime" in (
        capsys.readouterr().err
    )
    for model in ("click", "other"):
        shutil.rmtree(repository / model / "configs")
    assert main([*words, "onnxruntime"]) == 1
    assert "none of any name; copy those of model_repository in git" in capsys.readouterr().err


def test_without_the_python_backend_a_packed_cpu_model_is_left_out_with_what_to_do(
    repository: Path, tmp_path: Path, capsys
) -> None:
    triton = make_triton(tmp_path / "triton", CPP)
    reason = "its backend is packed_cpu, and this Triton has no python backend to run that"
    with pytest.raises(ServingError, match=rf"nothing that can run here \(click: {reason}.*--config onnxruntime"):
        published_models(repository, triton)
    write_model(repository, "tokenizer", CPP)
    (repository / "tokenizer" / "1" / "model.onnx").write_bytes(b"constants")
    assert published_models(repository, triton) == ["tokenizer"]
    assert f"serving: click is left out: {reason}" in capsys.readouterr().err


def test_int8_without_vnni_concerns_the_cpp_backend_alone(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text("flags: avx2\n")
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("serving.repository.models.machine", lambda: "x86_64")
    triton = make_triton(tmp_path / "triton", "python", CPP)
    assert published_models(repository, triton) == ["click"]
    with pytest.raises(ServingError, match=r"its integer products would saturate.*packed_cpu backend computes them"):
        published_models(repository, triton, "onnxruntime")


def test_a_name_that_a_shell_would_change_is_refused_where_a_shell_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(monkeypatch, make_triton(tmp_path / "triton", "python", CPP))
    monkeypatch.setattr("serving.repository.models.has_vnni", lambda: True)
    write_model(tmp_path / "repository", "two words", CPP)
    assert Server(tmp_path / "repository", Addresses.free()).models == ["two words"]
    write_model(tmp_path / "repository", "three small words", PACKED_CPU)
    with pytest.raises(ServingError, match="'three small words' cannot be served"):
        Server(tmp_path / "repository", Addresses.free())


def test_packages_are_sought_where_tritons_python_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """In the `python3` beside this interpreter. Neither this process's own search path nor PYTHONPATH counts."""
    triton = make_triton(tmp_path / "triton", "python", CPP)
    check_triton(triton, needs_python=True)
    venv.create(tmp_path / "bare", symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    python = tmp_path / "bare" / "bin" / "python3"
    with pytest.raises(ServingError, match=rf"needs onnxruntime, numpy in the `python3` .*, {python}; run `make inst"):
        check_triton(triton, needs_python=True)
    check_triton(triton, needs_python=False)
    put_on_path(monkeypatch, triton)
    assert main(["--check"]) == 1
    assert "the packed_cpu backend needs onnxruntime" in capsys.readouterr().err
    for package in PACKAGES:
        folder = (
            tmp_path / "bare" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        )
        (folder / package).mkdir()
    assert main(["--check"]) == 0


def test_the_interpreter_comes_first_on_path_for_python_alone(tmp_path: Path) -> None:
    triton = make_triton(tmp_path / "triton", "python", CPP)
    first = environment(triton, needs_python=True)["PATH"].split(":")[0]
    assert first == str(Path(sys.executable).parent)
    assert environment(triton, needs_python=False) == {
        name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"
    }
