"""Integer products stay whole on every processor: in our backend, at the gate, and by refusal where they would not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.graph.session import open_on_cpu
from release import hardware
from serving.backends.packed_cpu.graph import Graph
from serving.backends.packed_cpu.settings import Settings
from serving.repository.models import published_models
from serving.triton import ServingError, Triton, find_triton

OPTION = "session.x64quantprecision"
WITHOUT = "processor: 0\nflags: fpu sse4_1 avx2 avx512f\n"
WITH = {"AVX-512": f"{WITHOUT}flags: avx512f avx512_vnni\n", "AVX": "flags: avx2 avx_vnni\n"}


@pytest.fixture
def cpuinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What stands for /proc/cpuinfo: a processor without VNNI."""
    file = tmp_path / "cpuinfo"
    file.write_text(WITHOUT)
    monkeypatch.setattr(hardware, "CPUINFO", file)
    return file


def graph() -> bytes:
    """x, bytes, times weights of 127 and -127, both with the largest sums: twice 255 * 127 does not fit 16 bits."""
    weight = np.full((64, 32), 127, np.int8) * np.where(np.arange(32) % 2, -1, 1).astype(np.int8)
    constants = {"weight": weight, "one": np.array(1, np.float32)}
    node = helper.make_node("MatMulIntegerToFloat", ["x", "weight", "one", "one"], ["y"], domain="com.microsoft")
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])
    tensors = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    body = helper.make_graph([node], "products", [x], [y], initializer=tensors)
    return helper.make_model(body, opset_imports=opsets, ir_version=8).SerializeToString()


def compute(session: onnxruntime.InferenceSession) -> None:
    """Its products are whole, of one row and of several."""
    for rows in (1, 40):
        (y,) = session.run(["y"], {"x": np.full((rows, 64), 255, np.uint8)})
        assert np.array_equal(np.abs(y), np.full((rows, 32), 255 * 127 * 64))


def by_the_backend(repository: Path) -> onnxruntime.InferenceSession:
    """The session that packed_cpu opens."""
    config = {
        "name": "clickbert_onnx_int8",
        "max_batch_size": 0,
        "input": [{"name": "x", "data_type": "TYPE_UINT8", "dims": ["-1", "64"]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": ["-1", "32"]}],
    }
    session: onnxruntime.InferenceSession = Graph(Settings.of(config), repository / "clickbert_onnx_int8" / "3").session
    return session


def asked(session: onnxruntime.InferenceSession) -> bool:
    """Whether ONNX Runtime was asked to keep the products whole."""
    try:
        return bool(session.get_session_options().get_session_config_entry(OPTION) == "1")
    except RuntimeError:  # it has no such entry
        return False


def test_products_are_whole_on_this_processor() -> None:
    options = onnxruntime.SessionOptions()
    hardware.keep_products_whole(options)
    compute(onnxruntime.InferenceSession(graph(), options, providers=["CPUExecutionProvider"]))
    compute(open_on_cpu(graph(), for_gpu=False))


@pytest.mark.parametrize("flags", [WITHOUT, None, *WITH], ids=["without", "unknown", *WITH])
def test_where_there_is_no_vnni_onnx_runtime_is_asked_to_keep_them(
    repository: Path, cpuinfo: Path, flags: str | None
) -> None:
    cpuinfo.write_text(WITH.get(flags or "", flags or ""))
    if flags is None:
        cpuinfo.unlink()
    for session in (by_the_backend(repository), open_on_cpu(graph(), for_gpu=False)):
        assert asked(session) == (flags not in WITH)
        if flags not in WITH:  # a graph that ONNX Runtime could not convert would not have been opened
            compute(session)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One model, INT8."""
    version = tmp_path / "repository" / "clickbert_onnx_int8" / "3"
    version.mkdir(parents=True)
    onnx.save(onnx.load_from_string(graph()), version / "model.onnx")
    (version.parent / "config.pbtxt").write_text('name: "clickbert_onnx_int8" backend: "onnxruntime"')
    return version.parent.parent


@pytest.fixture
def with_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Triton:
    """A Triton with the C++ backend, as far as the checks look at it, on x86."""
    monkeypatch.setattr("serving.repository.models.machine", lambda: "x86_64")
    library = tmp_path / "triton" / "backends" / "onnxruntime" / "libtriton_onnxruntime.so"
    library.parent.mkdir(parents=True)
    library.touch()
    return Triton(tmp_path / "triton" / "bin" / "tritonserver", tmp_path / "triton" / "backends", None)


def test_tritons_own_backend_does_not_serve_int8_without_vnni(
    repository: Path, with_onnxruntime: Triton, cpuinfo: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    with pytest.raises(
        ServingError, match=r"can run here \(clickbert_onnx_int8: it is INT8, .* integer products would saturate"
    ):
        published_models(repository, with_onnxruntime)
    other = repository / "clickbert_onnx" / "3"
    other.mkdir(parents=True)
    (other / "model.onnx").write_bytes(b"a graph of MatMul")
    (other.parent / "config.pbtxt").write_text('name: "clickbert_onnx" backend: "onnxruntime"')
    assert published_models(repository, with_onnxruntime) == ["clickbert_onnx"]
    assert "serving: clickbert_onnx_int8 is left out: it is INT8" in capsys.readouterr().err
    shutil.rmtree(other.parent)
    cpuinfo.write_text(WITH["AVX-512"])
    assert published_models(repository, with_onnxruntime) == ["clickbert_onnx_int8"]
    cpuinfo.write_text(WITHOUT)
    monkeypatch.setattr("serving.repository.models.machine", lambda: "aarch64")
    assert published_models(repository, with_onnxruntime) == ["clickbert_onnx_int8"]


def test_packed_cpu_serves_it(repository: Path, cpuinfo: Path) -> None:
    if find_triton().has_onnxruntime:
        pytest.skip("this Triton has the C++ backend")
    assert published_models(repository, find_triton()) == ["clickbert_onnx_int8"]
