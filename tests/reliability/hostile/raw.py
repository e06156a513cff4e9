"""Requests as bytes, as anybody on the network can send them, and what a server must be like after each of them."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from serving.server import Server
from tests.integration.scores import PATIENCE
from tests.processes import children

SERVICE = "inference.GRPCInferenceService"
MODELS = ("clickbert_onnx", "clickbert_onnx_int8")
TOLERANCE = 1e-4  # of logits that were computed with other neighbours
# A request for a model of full attention, and one for a model that computes the user text once.
GOOD = {"input_ids": [2, 6, 3, 7, 3], "token_type_ids": [0, 0, 0, 1, 1], "lengths": [5]}
GOOD_ONCE = {"input_ids": [6, 9, 3, 2, 7, 3, 2, 8, 8, 3], "user_lengths": [3], "user_pairs": [2], "lengths": [3, 4]}


def message(model: str, tensors: dict[str, list[int]], version: str = "") -> Any:
    """A well-formed `ModelInferRequest`: int32 [1, elements] each."""
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    for name, values in tensors.items():
        request.inputs.add(name=name, datatype="INT32", shape=[1, len(values)])
        request.raw_input_contents.append(np.array(values, np.int32).tobytes())
    return request


class Refused(Exception):  # noqa: N818 (it is what a test wants to see)
    """The server answered with an error."""

    def __init__(self, status: str, details: str) -> None:
        super().__init__(f"{status}: {details}")
        self.status, self.details = status, details


class RawCaller:
    """Sends bytes as the message of any gRPC method, and reads answers as Triton's."""

    def __init__(self, url: str) -> None:
        # A connection of its own, and answers of any size.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        self.channel = grpc.insecure_channel(url, options=options)

    def send(self, request: bytes, method: str = "ModelInfer", service: str = SERVICE) -> bytes:
        """The bytes of the answer.

        Raises:
            Refused: the server answered with an error. (Who does not answer within a minute is one, too.)
        """
        call = self.channel.unary_unary(f"/{service}/{method}", request_serializer=None, response_deserializer=None)
        try:
            return call(request, timeout=PATIENCE) or b""  # a stream may end without an answer
        except grpc.RpcError as exc:
            raise Refused(exc.code().name, exc.details()) from exc

    def infer(self, request: Any) -> dict[str, np.ndarray]:
        """The outputs of fixed size. Raises Refused."""
        answer = service_pb2.ModelInferResponse.FromString(self.send(request.SerializeToString()))
        types = {"FP32": np.float32, "INT32": np.int32, "UINT8": np.uint8}
        return {
            output.name: np.frombuffer(raw, types[output.datatype]).reshape(output.shape)
            for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.channel.close()


class Unharmed:
    """What a server and its answers were like at first; `check` holds it against now.

    Args:
        server: with models.
        caller: of it.
        requests: well-formed ones, each answered alike as long as nothing is broken.
    """

    def __init__(self, server: Server, caller: RawCaller, requests: Sequence[Any]) -> None:
        assert server.process
        self.server, self.caller, self.requests = server, caller, requests
        self.processes = {server.process.pid, *children(server.process.pid)}
        self.expected = [caller.infer(request) for request in requests]

    def check(self, number: int = 0) -> None:
        """One of the good requests is answered as ever."""
        place = number % len(self.requests)
        found = self.caller.infer(self.requests[place])
        assert found.keys() == self.expected[place].keys()
        for name, values in self.expected[place].items():
            assert np.allclose(found[name], values, atol=TOLERANCE), f"{self.requests[place].model_name}: {name}"

    def check_processes(self) -> None:
        """The server and the processes of its models are those that they were."""
        assert self.server.process
        assert self.server.process.poll() is None
        assert {self.server.process.pid, *children(self.server.process.pid)} == self.processes
