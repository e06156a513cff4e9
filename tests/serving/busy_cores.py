"""Keeps the cores from the backend, so that requests pile up in its schedule."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from benchmarks.load_gen.metrics import total
from clickbert.wire.protocol import InferRequest
from clickbert.wire.transport import AsyncGrpcTransport
from serving.backends.packed_cpu.cores import usable_cores
from serving.server import Server

needs_bound_cores = pytest.mark.skipif(
    usable_cores() < len(os.sched_getaffinity(0)), reason="a CPU limit: threads are not bound to cores"
)


@contextmanager
def busy_cores(server: Server) -> Iterator[None]:
    """Within the block no chunk is begun."""
    assert server.folder
    folder = server.folder.path / "backends" / "packed_cpu"
    with ExitStack() as held:
        for core in os.sched_getaffinity(0):
            file = held.enter_context((folder / f"core{core}.busy").open("rb"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def waiting_in_the_schedule(server: Server, model: str) -> int:
    """How many requests wait there, by the backend's own figures."""
    return int(total(server.metrics(), "clickbert_waiting_requests", model=model))


async def give_up(server: Server, request: InferRequest) -> None:
    """Sends a request whose chunks nobody begins (`busy_cores`), and cancels it once it waits in the schedule."""
    transport = AsyncGrpcTransport(server.addresses.grpc)
    call = asyncio.create_task(transport.infer(request, timeout=60))
    while waiting_in_the_schedule(server, request.model) < 1:
        await asyncio.sleep(0.05)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await transport.close()
