"""The admin token: who has it may load and unload models, and read and change what is logged and traced.

Triton checks it (`--grpc-restricted-protocol`). A server makes one at its start, or takes that of the environment, and
leaves it in a file for this user alone, named after where the server listens. `python -m serving load` finds it there.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from dataclasses import replace
from pathlib import Path

from serving.access.security import PREFIX
from serving.addresses import Addresses
from serving.runtime import own_folders
from serving.triton import ServingError

VARIABLE = "CLICKBERT_ADMIN_TOKEN"
HEADER = "clickbert-admin"
# Closed to callers: models loaded and unloaded, memory registered that they name, texts written into logs and traces.
CLOSED = "model-repository,shared-memory,trace,logging"


def make_token() -> str:
    """The environment's, or a new one. Raises ServingError where the environment's cannot be sent."""
    given = os.environ.get(VARIABLE)
    if not given:
        return secrets.token_urlsafe(32)
    if not re.fullmatch(r"[\w.~+/=-]{16,}", given, re.ASCII):
        raise ServingError(f"{VARIABLE} holds no token: it must be 16 or more letters, digits and -._~+/=")
    return given


def restriction(token: str, *, http: bool) -> list[str]:
    """The flags of tritonserver that close what is not for callers."""
    rest = f"{CLOSED}:{HEADER}={token}"
    return [f"--grpc-restricted-protocol={rest}", *([f"--http-restricted-api={rest}"] if http else [])]


def headers(token: str) -> dict[str, str]:
    """What a call must carry to be let in."""
    return {PREFIX + HEADER: token}


def keep_token(token: str, addresses: Addresses, folder: Path) -> None:
    """Writes the token into a server's own folder, which no cleaner visits, for this user alone. Raises OSError."""
    file = folder / file_name(addresses)
    file.touch(mode=0o600)
    file.write_text(token, encoding="ascii")


def find_token(addresses: Addresses) -> str | None:
    """The admin token of the server at these addresses: the environment's, or that of its file; None: no such file."""
    if given := os.environ.get(VARIABLE):
        return given
    for address in (addresses.address, "0.0.0.0", "::"):  # a server on all addresses is asked at one of them
        name = file_name(replace(addresses, address=address))
        found = []
        for folder in own_folders():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # another server's, or just removed
                file = folder / name
                found.append((file.stat().st_mtime, file.read_text(encoding="ascii")))
        if found:  # one that was killed may have left another
            return max(found)[1]
    return None


def file_name(addresses: Addresses) -> str:
    """Where a server listens tells it from others on this machine."""
    return f"admin-token-{addresses.address}-{addresses.grpc_port}"
