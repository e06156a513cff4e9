"""Free ports for servers started in tests."""

from __future__ import annotations

import contextlib
import socket

from serving.server import LOOPBACK, Addresses


def free_addresses() -> Addresses:
    """Three ports on loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(3)]
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return Addresses(LOOPBACK, *(probe.getsockname()[1] for probe in probes))
