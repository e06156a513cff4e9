"""Integer products stay whole on every processor: in the stand-in, at the gate, and by refusal where they would not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.cpu import open_on_cpu
from serving.backends.onnxruntime import products
from serving.checks import published_models
from serving.triton import ServingError, Triton, find_triton

WITHOUT = "processor: 0\nflags: fpu sse4_1 avx2 avx512f\n"
WITH = {"AVX-512": f"{WITHOUT}flags: avx512f avx512_vnni\n", "AVX": "flags: avx2 avx_vnni\n"}


@pytest.fixture
def cpuinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What stands for /proc/cpuinfo: a processor without VNNI."""
    file = tmp_path / "cpuinfo"
    file.write_text(WITHOUT)
    monkeypatch.setattr(products, "CPUINFO", file)
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


def by_the_stand_in() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    products.keep_products(options)
    return onnxruntime.InferenceSession(graph(), options, providers=["CPUExecutionProvider"])


def test_products_are_whole_on_this_processor() -> None:
    compute(by_the_stand_in())
    compute(open_on_cpu(graph(), for_gpu=False))


def test_without_vnni_onnx_runtime_is_asked_to_keep_them(cpuinfo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute(by_the_stand_in())  # whatever this processor is, the signed weights are made unsigned
    options = onnxruntime.SessionOptions()
    products.keep_products(options)
    assert options.get_session_config_entry("session.x64quantprecision") == "1"
    read = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda path, **how: read(cpuinfo if str(path) == "/proc/cpuinfo" else path, **how)
    )
    session = open_on_cpu(graph(), for_gpu=False)
    compute(session)
    assert session.get_session_options().get_session_config_entry("session.x64quantprecision") == "1"


@pytest.mark.parametrize("flags", WITH.values(), ids=WITH)
def test_with_vnni_it_is_not(cpuinfo: Path, flags: str) -> None:
    cpuinfo.write_text(flags)
    options = onnxruntime.SessionOptions()
    products.keep_products(options)
    with pytest.raises(RuntimeError):
        options.get_session_config_entry("session.x64quantprecision")


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
    monkeypatch.setattr("serving.checks.machine", lambda: "x86_64")
    library = tmp_path / "triton" / "backends" / "onnxruntime" / "libtriton_onnxruntime.so"
    library.parent.mkdir(parents=True)
    library.touch()
    return Triton(tmp_path / "triton" / "bin" / "tritonserver", tmp_path / "triton" / "backends", None)


def test_tritons_own_backend_does_not_serve_int8_without_vnni(
    repository: Path, with_onnxruntime: Triton, cpuinfo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ServingError, match=r"clickbert_onnx_int8 is INT8, .* cuts integer products off.*int8/3 out of"):
        published_models(repository, with_onnxruntime)
    cpuinfo.write_text(WITH["AVX-512"])
    assert published_models(repository, with_onnxruntime) == ["clickbert_onnx_int8"]
    cpuinfo.write_text(WITHOUT)
    monkeypatch.setattr("serving.checks.machine", lambda: "aarch64")
    assert published_models(repository, with_onnxruntime) == ["clickbert_onnx_int8"]


def test_the_stand_in_serves_it_and_fp32_is_served_anywhere(
    repository: Path, with_onnxruntime: Triton, cpuinfo: Path
) -> None:
    if not find_triton().has_onnxruntime:
        assert published_models(repository, find_triton()) == ["clickbert_onnx_int8"]
    (repository / "clickbert_onnx_int8" / "3" / "model.onnx").write_bytes(b"a graph of MatMul")
    assert published_models(repository, with_onnxruntime) == ["clickbert_onnx_int8"]
