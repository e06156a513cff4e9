"""A gRPC server in a Triton's place that answers any method as a test wants, and remembers what reached it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc


@dataclass
class Arrival:
    """One call: its method, its headers, the seconds it had left, and whether its caller has given it up."""

    method: str
    headers: dict[str, str]
    left: float
    given_up: threading.Event = field(default_factory=threading.Event)


class Upstream(grpc.GenericRpcHandler):
    """Says that every model is ready; gives anything else `answer`, or `refusal`, or nothing while it is `silent`."""

    def __init__(self) -> None:
        self.ending = threading.Event()
        self.reset()

    def reset(self) -> None:
        self.arrivals: list[Arrival] = []
        self.answer = b""
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        self.silent = False

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = details.method.rpartition("/")[2]

        def respond(_request: bytes, context: grpc.ServicerContext) -> bytes:
            if method == "ModelReady":
                return b"\x08\x01"
            arrival = Arrival(method, dict(context.invocation_metadata()), context.time_remaining() or 0.0)
            context.add_callback(arrival.given_up.set)
            self.arrivals.append(arrival)
            if self.silent:
                while context.is_active() and not self.ending.wait(0.05):
                    pass
            if self.refusal is not None:
                context.abort(*self.refusal)
            return self.answer

        return grpc.unary_unary_rpc_method_handler(respond)


@contextmanager
def upstream(certificate: tuple[bytes, bytes] | None = None) -> Iterator[tuple[Upstream, str]]:
    """One that runs, and its host:port. With TLS if there is a (key, certificate), both PEM."""
    handler = Upstream()
    server = grpc.server(ThreadPoolExecutor(64), handlers=[handler])
    if certificate:
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([certificate]))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield handler, f"127.0.0.1:{port}"
    finally:
        handler.ending.set()
        server.stop(0).wait()
