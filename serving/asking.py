"""Asks a running server by gRPC: past any proxy of the environment, over TLS where the server wants it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from serving.access.security import Security
from serving.addresses import Addresses

PATIENCE = 4.0  # seconds that an answer may take
OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.address_http_proxy_enabled_addresses", ""),
    # Channels of a process share their connections, and with them the wait after one that failed: each has its own, so
    # that a server is seen as soon as it listens.
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass(frozen=True)
class Version:
    """A version that the server knows: what it is doing, and why."""

    model: str
    number: str
    state: str
    reason: str

    @property
    def is_ready(self) -> bool:
        """Whether it answers."""
        return self.state == "READY"

    def __str__(self) -> str:
        name, reason = f"{self.model} {self.number}", first_line(self.reason)
        # A former version, as it should be; to Triton it is UNAVAILABLE then.
        if self.state == "UNLOADING" or reason == "unloaded":
            return f"{name} {'being ' if self.state == 'UNLOADING' else ''}unloaded"
        return f"{name} {self.state}{f' ({reason})' if reason else ''}"


@contextmanager
def asking(addresses: Addresses, security: Security | None) -> Iterator[Any]:
    """A client of tritonclient's."""
    credentials, more = (security.credentials, security.channel_arguments) if security else (None, [])
    client = triton.InferenceServerClient(addresses.grpc, creds=credentials, channel_args=[*OPTIONS, *more])
    try:
        yield client
    finally:
        client.close()


def why_not_ready(addresses: Addresses, security: Security | None = None, models: Iterable[str] = ()) -> str | None:
    """Why the server there is not ready to answer, for each of the models; None if it is."""
    try:
        with asking(addresses, security) as client:
            if not client.is_server_ready(client_timeout=PATIENCE):
                return "it says that it is not"
            late = [model for model in models if not client.is_model_ready(model, client_timeout=PATIENCE)]
            return f"{', '.join(late)} cannot be asked" if late else None
    except InferenceServerException as exc:
        return why_failed(exc)


def ask_versions(client: Any, admin: dict[str, str]) -> list[Version]:
    """All versions that the server has loaded, or tried to. Raises InferenceServerException."""
    index = client.get_model_repository_index(headers=admin, client_timeout=PATIENCE)
    # (A folder that was never loaded has a name alone.)
    return [Version(each.name, each.version, each.state, each.reason) for each in index.models if each.version]


def why_failed(exc: InferenceServerException) -> str:
    """What went wrong with a call, in a line."""
    text = str(exc.message())
    text = text.rpartition("last error: ")[2] if text.startswith("failed to connect to all") else first_line(text)
    return f"{text} (it has ended, or it wants TLS: give its --secure)" if text.endswith("Socket closed") else text


def first_line(text: str) -> str:
    """The first line of a message that may have a stack behind it."""
    return text.strip().partition("\n")[0]
