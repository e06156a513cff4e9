"""Stand-ins for TensorRT's Python package, the CUDA driver's bindings and nvidia-smi, for the logic around them.

Names and signatures are those of the real bindings 8.6.1, 10.16.1 and 11.2.1. They show nothing about TensorRT itself:
the tests marked `gpu` do. The fake plan answers each pair with its length.
"""

from __future__ import annotations

import ctypes
import enum
import os
import signal
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import plan as plan_command
from export.tensorrt.build import Run
from release.names import TENSORRT_INPUTS

MODEL = "clickbert_trt_fp16"
FEED = {
    **{name: np.zeros(9, np.int32) for name in ("input_ids", "token_type_ids", "longest", "longest_shape")},
    **{name: np.array([9], np.int32) for name in ("token_counts", "type_counts", "pair_counts")},
    "lengths": np.array([2, 3, 4], np.int32),
}


class Gpu:
    """What the fakes share, and what the code under test did with them."""

    def __init__(self, version: str = "11.2.1.2", strongly_typed: bool = True) -> None:
        self.version = version
        self.memory: dict[int, Any] = {}  # device address -> bytes
        self.network_flags: int | None = None
        self.builder_flags: set[str] = set()
        self.tactic_sources: int | None = None
        self.parsed = b""
        self.profile: dict[str, tuple[int, int, int]] = {}
        self.timings: list[bytes] = []  # timing caches that were set
        self.builds = 0
        self.sigint_while_building: object = None
        self.errors: list[str] = []  # what the parser, then the builder, finds wrong
        self.has_gpu = True
        self.outputs = {"logits": 1}  # of every plan, with their widths
        self.tensorrt = make_tensorrt(self, strongly_typed)
        self.driver = make_driver(self)


def make_tensorrt(gpu: Gpu, strongly_typed: bool) -> ModuleType:
    trt: Any = ModuleType("tensorrt")
    trt.__version__ = gpu.version
    old = gpu.version.startswith("8.")
    mode = trt.TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
    severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO"])
    trt.ILogger = type("ILogger", (), {"Severity": severity})
    trt.Logger = type("Logger", (trt.ILogger,), {"WARNING": severity.WARNING, "__init__": lambda *_: None})
    # The numbers are arbitrary on purpose: nobody may rely on them.
    flags = {"EXPLICIT_BATCH": 3} if old else {"STRONGLY_TYPED": 5} if strongly_typed else {"OTHER": 1}
    trt.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", flags)
    trt.BuilderFlag = enum.Enum("BuilderFlag", ["FP16", "INT8"] if old else ["TF32"])
    trt.TacticSource = enum.IntEnum(
        "TacticSource", {"CUBLAS": 0, "CUBLAS_LT": 1, "CUDNN": 2, "EDGE_MASK_CONVOLUTIONS": 3, "JIT_CONVOLUTIONS": 4}
    )

    class Config:
        def set_flag(self, flag: enum.Enum) -> None:
            gpu.builder_flags.add(flag.name)

        def set_tactic_sources(self, sources: int) -> None:
            gpu.tactic_sources = sources

        def add_optimization_profile(self, profile: Profile) -> int:
            return 0

        def create_timing_cache(self, data: bytes) -> bytes | None:
            return None if data == b"corrupt" else data

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            if cache == b"of another GPU":
                return False
            gpu.timings.append(cache)
            return True

        def get_timing_cache(self) -> Any:
            return SimpleNamespace(serialize=lambda: gpu.timings[-1] + b"+")

    class Profile:
        def set_shape(self, name: str, low: tuple[int], typical: tuple[int], high: tuple[int]) -> None:
            gpu.profile[name] = (*low, *typical, *high)

    class Builder:
        def __init__(self, log: Any) -> None:
            self.log = log
            if not gpu.has_gpu:
                log.log(severity.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")

        create_builder_config = staticmethod(Config)
        create_optimization_profile = staticmethod(Profile)

        def create_network(self, network_flags: int = 0) -> object:
            gpu.network_flags = network_flags
            return object()

        def build_serialized_network(self, network: object, config: Config) -> bytes | None:
            gpu.sigint_while_building = signal.getsignal(signal.SIGINT)
            gpu.builds += 1
            for error in gpu.errors:
                self.log.log(severity.ERROR, error)
                self.log.log(severity.WARNING, "of no interest")
            return None if gpu.errors else b"plan %d" % gpu.builds

    class OnnxParser:
        def __init__(self, network: object, log: Any) -> None:
            self.found = gpu.errors.pop(0) if gpu.errors and gpu.errors[0].startswith("parser") else None
            self.num_errors = 1 if self.found else 0

        def parse(self, model: bytes, path: str) -> bool:
            gpu.parsed = model
            return not self.found

        def get_error(self, index: int) -> Any:
            return SimpleNamespace(desc=lambda: self.found)

    class Context:
        def __init__(self) -> None:
            self.shapes: dict[str, tuple[int, ...]] = {}
            self.addresses: dict[str, int] = {}

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            low, _, high = gpu.profile.get(name, (1, 0, 0))
            self.shapes[name] = shape
            return low <= shape[0] <= high

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return True

        def get_tensor_shape(self, name: str) -> tuple[int, int]:
            return (self.shapes["lengths"][0] if "lengths" in self.shapes else -1, gpu.outputs[name])

        def execute_async_v3(self, stream: int) -> bool:
            lengths = np.frombuffer(gpu.memory[self.addresses["lengths"]], dtype=np.int32)
            for name, width in gpu.outputs.items():  # as TensorRT, it needs an address for each
                gpu.memory[self.addresses[name]][:] = np.repeat(lengths, width).astype(np.float32).tobytes()
            return True

    class Runtime:
        def __init__(self, log: Any) -> None:
            pass

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            if not plan.startswith(b"plan"):
                return None
            names = [*TENSORRT_INPUTS, *gpu.outputs]
            return SimpleNamespace(
                create_execution_context=Context,
                device_memory_size_v2=12345,
                num_io_tensors=len(names),
                get_tensor_name=names.__getitem__,
                get_tensor_mode=lambda name: mode.OUTPUT if name in gpu.outputs else mode.INPUT,
            )

    trt.Builder, trt.OnnxParser, trt.Runtime = Builder, OnnxParser, Runtime
    return trt  # type: ignore[no-any-return]


def make_driver(gpu: Gpu) -> ModuleType:
    driver: Any = ModuleType("cuda.bindings.driver")
    result = enum.IntEnum("CUresult", {"CUDA_SUCCESS": 0, "CUDA_ERROR_NO_DEVICE": 100})

    def allocate(size: int) -> tuple[int, int]:
        address = 1 + max(gpu.memory, default=0)
        gpu.memory[address] = bytearray(size)
        return result.CUDA_SUCCESS, address

    def to_device(address: int, host: int, size: int, stream: int) -> tuple[int]:
        gpu.memory[address][:] = ctypes.string_at(host, size)
        return (result.CUDA_SUCCESS,)

    def to_host(host: int, address: int, size: int, stream: int) -> tuple[int]:
        ctypes.memmove(host, bytes(gpu.memory[address]), size)
        return (result.CUDA_SUCCESS,)

    driver.cuInit = lambda _: (result.CUDA_SUCCESS if gpu.has_gpu else result.CUDA_ERROR_NO_DEVICE,)
    driver.cuMemAlloc, driver.cuMemcpyHtoDAsync, driver.cuMemcpyDtoHAsync = allocate, to_device, to_host
    driver.cuMemFree = lambda address: (result.CUDA_SUCCESS, gpu.memory.pop(address))[:1]
    for name in ("cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuStreamCreate"):
        setattr(driver, name, lambda _: (result.CUDA_SUCCESS, 7))
    for name in ("cuCtxSetCurrent", "cuStreamSynchronize", "cuStreamDestroy", "cuDevicePrimaryCtxRelease"):
        setattr(driver, name, lambda _: (result.CUDA_SUCCESS,))
    return driver  # type: ignore[no-any-return]


def write_graph(path: Path, inputs: tuple[str, ...] = TENSORRT_INPUTS, quantized: bool = False) -> None:
    """A graph with a plan's inputs and output: the length of each pair, times a weight in half precision."""
    nodes = [
        helper.make_node("Cast", ["lengths"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["half", "one"], ["product"]),
        helper.make_node("Cast", ["product"], ["full"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["full", "axis"], ["logits"]),
    ]
    if quantized:
        nodes.insert(1, helper.make_node("QuantizeLinear", ["half", "one"], ["unused"]))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, TensorProto.INT32, [name]) for name in inputs],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["lengths", 1])],
        [
            numpy_helper.from_array(np.array(1, np.float16), "one"),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)


def nvidia_smi(monkeypatch: pytest.MonkeyPatch, folder: Path, *lines: str) -> None:
    """Puts a program of that name on PATH, which answers with `lines`."""
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir(exist_ok=True)
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)


def pass_gate(version: Path, run: Run) -> None:
    assert run(FEED)["logits"].tolist() == [[2], [3], [4]]


def command(version: Path, *more: str) -> int:
    return plan_command.main([f"--repository={version.parent.parent}", *more])


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
