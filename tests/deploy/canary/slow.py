"""A proxy that makes a real Triton slow: an inference waits before it is passed on, a health check does not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc


class Proxy(grpc.GenericRpcHandler):
    def __init__(self, channel: grpc.aio.Channel, seconds: float) -> None:
        self.channel, self.seconds = channel, seconds

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        async def respond(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            if details.method.endswith("/ModelInfer"):
                await asyncio.sleep(self.seconds)
            try:
                return await self.channel.unary_unary(details.method)(request, timeout=context.time_remaining())
            except grpc.aio.AioRpcError as exc:
                await context.abort(exc.code(), exc.details() or "")

        return grpc.unary_unary_rpc_method_handler(respond)


@contextmanager
def slowed(target: str, seconds: float) -> Iterator[str]:
    """One in front of host:port; its own host:port."""
    loop, ready, ending = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    found: list[str] = []

    async def run() -> None:
        async with grpc.aio.insecure_channel(target) as channel:
            server = grpc.aio.server(handlers=[Proxy(channel, seconds)])
            found.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
            await server.start()
            ready.set()
            await ending.wait()
            await server.stop(0)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        assert ready.wait(60)
        yield found[0]
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join()
        loop.close()
