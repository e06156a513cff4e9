"""`python -m export plan` where something is missing or goes wrong: it says what, and the former plan stays."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import release.files
from export import plan as plan_command
from export.__main__ import main
from export.tensorrt import build as plan
from export.tensorrt.build import Run
from export.tensorrt.runtime import LoadedPlan
from release.lock import held, locked
from release.names import PLAN_FILE, TENSORRT_INPUTS
from release.stamp import STAMP_FILE, PlanError
from release.versions import withdraw
from tests.export.tensorrt.fake_gpu import FEED, MODEL, Gpu, command, nvidia_smi, tree, write_graph

pytest_plugins = ("tests.export.tensorrt.gpu_fixtures",)


@pytest.fixture(params=[False, True], ids=["no former plan", "a former plan"])
def before(request: pytest.FixtureRequest, version: Path, gpu: Gpu) -> dict[str, bytes]:
    """The version's files before a build that fails: without a plan, or with one that does not fit any more."""
    if request.param:
        assert command(version) == 0
        gpu.tensorrt.__version__ = "12.0"
    return tree(version)


@pytest.mark.parametrize("error", [ValueError("AUC fell by 0.02"), KeyboardInterrupt(), SystemExit(3)])
def test_a_failed_gate_leaves_the_former_plan(version: Path, gpu: Gpu, before, error, monkeypatch, capsys) -> None:
    def gate(folder: Path, run: Run) -> None:
        assert run(FEED)["logits"].shape == (3, 1)
        raise error

    monkeypatch.setattr(plan_command, "run_gate", gate)
    if isinstance(error, SystemExit):
        with pytest.raises(SystemExit):
            command(version)
    else:
        assert command(version) == (130 if isinstance(error, KeyboardInterrupt) else 1)
    message = capsys.readouterr().err
    assert ("failed its gate, and was not put in place: AUC fell" in message) == isinstance(error, ValueError)
    assert tree(version) == before
    assert not gpu.memory


@pytest.mark.parametrize("file", [f"{PLAN_FILE}.staging", f"{STAMP_FILE}.staging", "timing.cache.staging"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_ctrl_c_while_writing_leaves_no_half_plan(
    version: Path, gpu: Gpu, before, file, error, monkeypatch, capsys
) -> None:
    def sync(path: Path) -> None:
        if path.name == file:
            raise error

    monkeypatch.setattr(release.files, "sync", sync)
    monkeypatch.setattr(plan, "sync", sync)
    assert command(version) == (1 if isinstance(error, OSError) else 130)
    assert isinstance(error, KeyboardInterrupt) or "failed: No space left on device" in capsys.readouterr().err
    assert tree(version) == before
    assert not list(version.parent.rglob("*.staging"))


def test_a_failure_between_stamp_and_plan_takes_the_stamp_back(version: Path, gpu: Gpu, before, monkeypatch) -> None:
    replace = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        if target.name == PLAN_FILE:
            assert (version / STAMP_FILE).read_bytes() != before.get(STAMP_FILE)  # the stamp goes first
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    assert command(version) == 130
    assert tree(version) == before


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        (["parser: no such operator"], "model.onnx: TensorRT 11.2.1.2 cannot read it: parser: no such operator"),
        (["out of memory", "no tactic"], "built no plan: out of memory; no tactic"),
    ],
)
def test_tensorrts_own_words_are_passed_on(version: Path, gpu: Gpu, errors, message, capsys) -> None:
    gpu.errors = errors
    assert command(version) == 1
    assert message in capsys.readouterr().err
    assert not (version / PLAN_FILE).exists()


def test_a_graph_with_other_inputs_is_refused_before_the_build(version: Path, gpu: Gpu, capsys) -> None:
    write_graph(version / "model.onnx", TENSORRT_INPUTS[:-1])
    assert command(version) == 1
    assert "the graph's inputs are" in capsys.readouterr().err
    assert gpu.builds == 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"max_elements.longest"', '"x"', "config.pbtxt must have max_elements.lengths"),
        ('string_value: "512"', 'string_value: "256"', "pairs have up to 512 tokens"),
        ("max_batch_size: 8", "max_batch_size: 0", "it must be at least 1"),
        ("max_batch_size: 8", "max_batch_size:", "is not a valid model configuration"),
    ],
)
def test_limits_that_are_missing_or_contradict_are_named(version: Path, gpu: Gpu, old, new, message, capsys) -> None:
    config = version.parent / "config.pbtxt"
    config.write_text(config.read_text().replace(old, new))
    assert command(version) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("module", ["tensorrt", "cuda.bindings.driver"])
def test_a_missing_package_is_named_with_what_installs_it(version: Path, gpu: Gpu, module, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", None)
    assert command(version) == 1
    assert "install the pinned packages of the dependency group `plan`, or run this in the" in capsys.readouterr().err


def test_the_bindings_alone_will_do(version: Path, gpu: Gpu, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", gpu.tensorrt)
    assert command(version) == 0


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["NVIDIA L4, 8.9, 580.65.06", "NVIDIA A100-SXM4-40GB, 8.0, 580.65.06"], "GPUs of several kinds"),
        ([], "no NVIDIA GPU here (nvidia-smi ended with code 0 and answered '')"),
        (["No devices were found"], "no NVIDIA GPU here (nvidia-smi ended with code 0 and answered 'No devices were"),
    ],
)
def test_one_kind_of_gpu_is_asked_for(version: Path, gpu: Gpu, monkeypatch, tmp_path, lines, message, capsys) -> None:
    nvidia_smi(monkeypatch, tmp_path, *lines)
    assert command(version) == 1
    assert message in capsys.readouterr().err


def test_two_equal_gpus_are_one_kind(version: Path, gpu: Gpu, monkeypatch, tmp_path) -> None:
    nvidia_smi(monkeypatch, tmp_path, *["NVIDIA L4, 8.9, 580.65.06"] * 2)
    assert command(version) == 0


def test_no_gpu_says_where_to_run_it(version: Path, gpu: Gpu, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command(version) == 1
    assert "there is no NVIDIA GPU here (nvidia-smi: " in capsys.readouterr().err


def test_a_gpu_that_cannot_be_used_is_reported(version: Path, gpu: Gpu, capsys) -> None:
    gpu.has_gpu = False
    assert command(version) == 1
    assert "found no usable GPU here: CUDA initialization failure with error: 35" in capsys.readouterr().err


def test_nothing_to_build_needs_no_gpu(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert plan_command.main([f"--repository={tmp_path}"]) == 0
    assert "no published model for TensorRT; there is nothing to build" in capsys.readouterr().err


@pytest.mark.parametrize("model", [(), ("--model", MODEL)], ids=["all models", "one model"])
@pytest.mark.parametrize("name", ["nowhere", "file", "file/below"])
def test_a_repository_that_is_not_there_is_refused(tmp_path: Path, name: str, model: tuple[str, ...], capsys) -> None:
    (tmp_path / "file").touch()
    assert main(["plan", f"--repository={tmp_path / name}", *model]) == 1
    message = capsys.readouterr()
    assert f"{tmp_path / name} is not a folder; give the model repository with --repository" in message.err
    assert not message.out


@pytest.mark.parametrize("content", [(), (MODEL,), (f"{MODEL}/1",)], ids=["empty", "no config", "no version"])
def test_a_model_that_was_asked_for_must_be_published(tmp_path: Path, content: tuple[str, ...], capsys) -> None:
    for folder in content:
        (tmp_path / folder).mkdir(parents=True)
    assert main(["plan", f"--repository={tmp_path}", "--model", MODEL]) == 1
    assert f"holds no published model '{MODEL}' for TensorRT (it has none)" in capsys.readouterr().err


def test_a_graph_that_is_missing_is_named(version: Path, gpu: Gpu, capsys) -> None:
    (version / "model.onnx").unlink()
    assert command(version) == 1
    assert "model.onnx is missing or damaged" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", '{"schema": 0}', None])
def test_a_manifest_that_cannot_be_read_is_named(version: Path, gpu: Gpu, content: str | None, capsys) -> None:
    manifest = version / "manifest.json"
    manifest.unlink() if content is None else manifest.write_text(content)
    assert command(version) == 1
    assert "manifest.json" in (error := capsys.readouterr().err)
    assert "export the model again" in error


def test_an_unknown_model_is_refused(version: Path, gpu: Gpu, capsys) -> None:
    assert command(version, "--model", "clickbert_onnx") == 1
    assert "no published model 'clickbert_onnx' for TensorRT (it has clickbert_trt_fp16)" in capsys.readouterr().err


def test_two_builds_of_a_plan_at_once_are_refused(version: Path, gpu: Gpu, capsys) -> None:
    with held(version, "unused"):
        assert command(version) == 1
    assert f"a load of {version}, or another build of its plan, is at work" in capsys.readouterr().err


def test_a_version_that_is_withdrawn_while_its_plan_is_built_stays_withdrawn(
    version: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def withdrawn_meanwhile(*_: object) -> None:
        with locked(version.parent.parent):  # as a rollback does
            withdraw(version)

    monkeypatch.setattr(plan_command, "run_gate", withdrawn_meanwhile)
    assert command(version) == 1
    assert "the former plan, if there was one, is untouched" in capsys.readouterr().err
    assert not version.exists()
    assert not (version.with_name("withdrawn.10") / "model.plan").exists()


def test_an_engine_refuses_what_is_not_the_plans(gpu: Gpu) -> None:
    with pytest.raises(PlanError, match="refused to load the plan"):
        LoadedPlan(gpu.tensorrt, b"of another TensorRT")
    gpu.profile = dict.fromkeys(FEED, (1, 4, 8))
    with LoadedPlan(gpu.tensorrt, b"plan") as engine:
        for feed in ({"input_ids": np.zeros(9, np.int32)}, {"unknown": np.zeros(1, np.int32)}):
            with pytest.raises(PlanError, match=rf"no input '{next(iter(feed))}' of shape"):
                engine.run(feed)
        with pytest.raises(PlanError, match="an input was not given"):
            engine.run({"input_ids": np.zeros(3, np.int32)})
    assert not gpu.memory


def test_a_driver_error_is_named(gpu: Gpu) -> None:
    gpu.has_gpu = False
    with pytest.raises(PlanError, match="CUDA: cuInit failed with CUDA_ERROR_NO_DEVICE"):
        LoadedPlan(gpu.tensorrt, b"plan")

    def missing(_: int) -> Any:
        raise RuntimeError("libcuda.so.1")

    gpu.driver.cuInit = missing  # type: ignore[attr-defined]
    with pytest.raises(PlanError, match=r"there is no CUDA driver here \(libcuda.so.1\)"):
        LoadedPlan(gpu.tensorrt, b"plan")


def test_the_command_and_its_gate_need_none_of_what_the_container_lacks() -> None:
    """The dependency group `plan` is all that the serving container has."""
    absent = ("torch", "transformers", "tokenizers", "onnxruntime", "onnxscript", "matplotlib", "tqdm", "safetensors")
    program = f"""
import sys
class Absent:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {absent}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import export.verify.saved_gate
from export.__main__ import main
sys.exit(main(["plan", "--help"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "python -m export plan" in done.stdout
