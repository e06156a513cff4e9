"""Connections that hold on to a server and never come to an end, until this process is killed.

    python slow_clients.py PORT COUNT

COUNT of each kind, in HTTP/2 as RFC 9113 has it:

- idle: connected, and nothing was sent.
- half a frame: of the call's headers.
- half a message: of a call that has begun.
- trickle: the same, and one byte of the message every 0.1 s.
- unread: complete calls, whose answers it never takes (a window of 0 bytes).

It prints "ready" when all are there, and when a line comes in how many the server has not closed.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import threading
import time

HEADERS, SETTINGS, DATA = 1, 4, 0
END_HEADERS, END_STREAM = 4, 1
INITIAL_WINDOW_SIZE = 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MESSAGE = 10_000  # bytes that a half message says it has
PAUSE = 0.1  # seconds
CALLS = 20  # of each connection that takes no answer


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def text(value: str) -> bytes:
    """A string in HPACK, without Huffman's code."""
    return bytes([len(value)]) + value.encode()


def call_headers(method: str) -> bytes:
    """The header block of a gRPC call: POST, http, and literals that no table takes up."""
    path = f"/inference.GRPCInferenceService/{method}"
    return (
        b"\x83\x86"
        + b"\x04"
        + text(path)
        + b"\x01"
        + text("localhost")
        + b"\x0f\x10"
        + text("application/grpc")
        + b"\x00"
        + text("te")
        + text("trailers")
    )


def settings(window: int = 65_535) -> bytes:
    """What opens a connection."""
    return PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, window))


def half_a_message() -> bytes:
    """A call's headers, and the first bytes of its message."""
    begun = struct.pack(">BI", 0, MESSAGE) + bytes(100)
    return settings() + frame(HEADERS, END_HEADERS, 1, call_headers("ModelInfer")) + frame(DATA, 0, 1, begun)


def unread() -> bytes:
    """Whole calls (an empty message each); the server may send no byte of their answers."""
    sent = settings(window=0)
    for stream in range(1, 2 * CALLS, 2):
        sent += frame(HEADERS, END_HEADERS, stream, call_headers("ServerMetadata"))
        sent += frame(DATA, END_STREAM, stream, struct.pack(">BI", 0, 0))
    return sent


KINDS = {
    "idle": b"",
    "half a frame": settings() + frame(HEADERS, END_HEADERS, 1, call_headers("ModelInfer"))[:20],
    "half a message": half_a_message(),
    "trickle": half_a_message(),
    "unread": unread(),
}


def main(port: int, count: int) -> None:
    """Holds them."""
    held: dict[str, list[socket.socket]] = {kind: [] for kind in KINDS}
    for kind, beginning in KINDS.items():
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", port), timeout=10)
            connection.sendall(beginning)
            held[kind].append(connection)

    def trickle() -> None:
        while True:
            for connection in held["trickle"]:
                connection.sendall(frame(DATA, 0, 1, b"x"))
            time.sleep(PAUSE)

    threading.Thread(target=trickle, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.readline()
    print(sum(is_open(connection) for each in held.values() for connection in each), flush=True)
    sys.stdin.readline()


def is_open(connection: socket.socket) -> bool:
    """Whether the server has not closed it."""
    connection.setblocking(False)
    while select.select([connection], [], [], 0)[0]:
        try:
            if not connection.recv(65_536):
                return False
        except OSError:
            return False
    return True


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
