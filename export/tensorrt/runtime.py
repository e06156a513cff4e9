"""Runs a plan on packed batches, through NVIDIA's own bindings of the CUDA driver (`cuda-bindings`; no PyTorch).

It serves the gate: one batch at a time, each with memory of its own. What this module does not know: what the plan
computes, how it was built.
"""

from __future__ import annotations

import importlib
from types import TracebackType
from typing import Any

import numpy as np

from export.graph.packing import Feed, Outputs
from release.stamp import PlanError

MISSING = "install the pinned packages of the dependency group `plan`, or run this in the container (Dockerfile, gpu)"


def load_tensorrt() -> Any:
    """TensorRT's Python package.

    The bindings alone (`tensorrt_bindings`) are enough: they use the system's TensorRT, which in NVIDIA's Triton
    container is the one that will serve the plan.

    Raises:
        PlanError: it is not installed, or its libraries cannot be loaded.
    """
    reasons = []
    for name in ("tensorrt", "tensorrt_bindings"):
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as exc:
            reasons.append(str(exc))
            continue
        if hasattr(module, "__version__"):
            return module
        reasons.append(f"{name} is only a folder of that name")  # which Python imports as an empty package
    raise PlanError(f"TensorRT cannot be used here ({'; '.join(reasons)}); {MISSING}")


class LoadedPlan:
    """A plan, ready to run on the first GPU. As a context manager it releases its stream and memory.

    Args:
        trt: TensorRT's Python package.
        plan: the serialized engine.

    Raises:
        PlanError: there is no CUDA driver or GPU, or the plan is for another TensorRT or GPU.
    """

    def __init__(self, trt: Any, plan: bytes) -> None:
        try:
            self.driver = importlib.import_module("cuda.bindings.driver")
        except ImportError as exc:
            raise PlanError(f"NVIDIA's cuda-bindings are not installed ({exc}); {MISSING}") from exc
        try:
            self.call("cuInit", 0)
        except PlanError:
            raise
        except Exception as exc:  # the bindings' own, where libcuda.so.1 is missing
            raise PlanError(f"there is no CUDA driver here ({exc}); run this on the GPU that will serve") from exc
        self.device = self.call("cuDeviceGet", 0)
        # The primary context is the one that TensorRT uses, through the CUDA runtime.
        self.call("cuCtxSetCurrent", self.call("cuDevicePrimaryCtxRetain", self.device))
        self.stream = self.call("cuStreamCreate", 0)
        self.logger = trt.Logger(trt.Logger.WARNING)
        self.runtime = trt.Runtime(self.logger)  # must outlive the engine
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        self.context: Any = None if self.engine is None else self.engine.create_execution_context()
        if self.context is None:
            self.close()
            raise PlanError("TensorRT refused to load the plan, or has no memory for it; its log above says why")
        tensors = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        self.outputs = [name for name in tensors if self.engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]
        self.inputs = [name for name in tensors if name not in self.outputs]

    @property
    def activation_bytes(self) -> int:
        """GPU memory that one execution context takes for activations, at the profile's largest shapes."""
        size = getattr(self.engine, "device_memory_size_v2", None)  # TensorRT 10 and later
        return int(size if size is not None else self.engine.device_memory_size)

    def run(self, feed: Feed) -> Outputs:
        """Computes all outputs of one packed batch.

        Args:
            feed: int32 vectors by input name, all inputs of the plan.

        Returns:
            Each float32 [pairs, width], by name.

        Raises:
            PlanError: the plan has no such input or shape, or CUDA failed.
        """
        buffers: list[Any] = []
        arrays = {name: np.ascontiguousarray(array, dtype=np.int32) for name, array in feed.items()}
        try:
            for name, data in arrays.items():
                if not self.context.set_input_shape(name, data.shape):
                    raise PlanError(f"the plan has no input {name!r} of shape {list(data.shape)}")
                address = self.bind(name, data.nbytes, buffers)
                # On the stream of the execution: ordered before it, whatever CUDA's default stream does.
                self.call("cuMemcpyHtoDAsync", address, data.ctypes.data, data.nbytes, self.stream)
            found: Outputs = {}
            addresses = {}
            for name in self.outputs:  # TensorRT demands an address for each, whoever reads it
                shape = tuple(self.context.get_tensor_shape(name))
                if len(shape) != 2 or min(shape) < 0:
                    raise PlanError(f"the plan's {name!r} has no shape yet ({list(shape)}): an input was not given")
                found[name] = np.empty(shape, dtype=np.float32)
                addresses[name] = self.bind(name, found[name].nbytes, buffers)
            if not self.context.execute_async_v3(int(self.stream)):
                raise PlanError("TensorRT could not run the plan; its log above says why")
            for name, array in found.items():
                self.call("cuMemcpyDtoHAsync", array.ctypes.data, addresses[name], array.nbytes, self.stream)
            self.call("cuStreamSynchronize", self.stream)
            return found
        finally:
            # cuMemFree waits for the device, so nothing reads the buffers any more, even after an error.
            for buffer in buffers:
                self.driver.cuMemFree(buffer)

    def bind(self, name: str, size: int, buffers: list[Any]) -> Any:
        """Allocates device memory for a tensor, and binds it; returns its address."""
        address = self.call("cuMemAlloc", max(size, 1))
        buffers.append(address)
        if not self.context.set_tensor_address(name, int(address)):
            raise PlanError(f"the plan has no tensor {name!r}")
        return address

    def call(self, function: str, *arguments: Any) -> Any:
        """Calls the driver; returns its value, if it has one."""
        code, *values = getattr(self.driver, function)(*arguments)
        if int(code) != 0:
            raise PlanError(f"CUDA: {function} failed with {getattr(code, 'name', code)}")
        return values[0] if values else None

    def close(self) -> None:
        """Releases everything, the engine before the GPU's context that it lives in."""
        self.context = self.engine = None
        self.driver.cuStreamDestroy(self.stream)
        self.driver.cuDevicePrimaryCtxRelease(self.device)

    def __enter__(self) -> LoadedPlan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
