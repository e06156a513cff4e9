"""One channel to one address, and what every call over it shares: headers, and gRPC's errors turned into ours."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

from clickbert.channels import forks
from clickbert.channels.addresses import TLS
from clickbert.channels.descriptors import check_descriptors
from clickbert.channels.proxies import proxy_variable
from clickbert.channels.rotation import Rotation
from clickbert.connection import Connection
from clickbert.errors import RankerClosedError, ServerError, from_status


class Channel:
    """A channel of `grpc` or `grpc.aio`, and Triton's calls over it, each with the connection's headers."""

    def __init__(self, api: Any, connection: Connection, target: str) -> None:
        forks.note_channel()
        check_descriptors(target)
        self.channel = connection.open_channel(api, target)
        self.is_cut_off = False  # closed because the process forks, not by the caller
        self._calls = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self._headers = connection.headers

    def call(self, name: str, message: Any, timeout: float, headers: Mapping[str, str]) -> Any:
        """Make a call that may take `timeout` seconds; returns the answer, or with `grpc.aio` an awaitable of it.

        The connection's own headers hold where `headers` has one of the same name.
        """
        metadata = tuple({**headers, **self._headers}.items())
        return getattr(self._calls, name)(message, timeout=timeout, metadata=metadata)


@contextmanager
def reaching(rotation: Rotation, connection: Connection, model: str) -> Iterator[str]:
    """Yield the address whose turn it is; raise gRPC's errors as our own, and remember how it went."""
    target = rotation.next()
    where = f"{model} at {TLS if connection.tls else ''}{target}"
    try:
        yield target
    except grpc.RpcError as exc:
        details = exc.details() or "no message"
        message = connection.hide_secrets(details)
        error = from_status(exc.code().name, message, where=where, proxy=proxy_variable(target), tls=connection.tls)
        if isinstance(error, ServerError):
            rotation.ended(target, error)
        # The original repeats what was hidden.
        raise error from (exc if message == details else None)
    except (grpc.aio.UsageError, ValueError) as exc:
        # gRPC has no class of its own for a channel that another thread closed a moment ago.
        if "closed" not in str(exc).lower() or isinstance(exc, UnicodeError):
            raise
        raise RankerClosedError(f"{where}: the ranker was closed while the call ran") from exc
    rotation.ended(target)
