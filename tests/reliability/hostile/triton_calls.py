"""Every call that Triton's gRPC service has, by who may make it."""

from __future__ import annotations

from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc

MODEL = "clickbert_onnx"
HEALTH = {
    "ServerLive": messages.ServerLiveRequest(),
    "ServerReady": messages.ServerReadyRequest(),
    "ModelReady": messages.ModelReadyRequest(name=MODEL),
}
CALLERS = {
    "ServerMetadata": messages.ServerMetadataRequest(),
    "ModelMetadata": messages.ModelMetadataRequest(name=MODEL),
    "ModelConfig": messages.ModelConfigRequest(name=MODEL),
    "ModelStatistics": messages.ModelStatisticsRequest(name=MODEL),
    "ModelInfer": messages.ModelInferRequest(model_name="clickbert_tokenizer"),
    "ModelStreamInfer": messages.ModelInferRequest(model_name="clickbert_tokenizer"),
}
ADMIN = {
    "RepositoryIndex": messages.RepositoryIndexRequest(),
    "RepositoryModelLoad": messages.RepositoryModelLoadRequest(model_name="clickbert_tokenizer"),
    "RepositoryModelUnload": messages.RepositoryModelUnloadRequest(model_name="nowhere"),
    "SystemSharedMemoryStatus": messages.SystemSharedMemoryStatusRequest(),
    "SystemSharedMemoryRegister": messages.SystemSharedMemoryRegisterRequest(name="x", key="/nowhere", byte_size=4),
    "SystemSharedMemoryUnregister": messages.SystemSharedMemoryUnregisterRequest(),
    "CudaSharedMemoryStatus": messages.CudaSharedMemoryStatusRequest(),
    "CudaSharedMemoryRegister": messages.CudaSharedMemoryRegisterRequest(name="x", raw_handle=b"x", byte_size=4),
    "CudaSharedMemoryUnregister": messages.CudaSharedMemoryUnregisterRequest(),
    "TraceSetting": messages.TraceSettingRequest(),
    "LogSettings": messages.LogSettingsRequest(),
}


def refusals(channel: grpc.Channel, calls: dict[str, Any], headers: dict[str, str]) -> dict[str, str]:
    """What Triton says of the calls that it refuses as restricted. Others may fail for reasons of their own."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    found = {}
    for name, request in calls.items():
        streamed = name == "ModelStreamInfer"
        try:
            answer = getattr(stub, name)(
                iter([request]) if streamed else request, metadata=list(headers.items()), timeout=60
            )
            if streamed:
                next(answer)
        except grpc.RpcError as exc:
            if "restricted" in exc.details():
                found[name] = exc.details()
    return found
