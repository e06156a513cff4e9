"""How a server is reached: its address, TLS or plain gRPC, the token. All of it is in this file.

An option of the connection is a field of `Connection`. Its check, its command-line option or environment variable, and
its use where the channel is opened stand beside it, so that a new one is a change of this file alone.
"""

import argparse
import ipaddress
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import grpc

from clickbert.errors import InvalidInputError

DEFAULT_URL = "localhost:8001"
TLS = "grpcs://"
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s/:@\[\]]+):(\d{1,5})")
_TOKEN = re.compile(r"[!-~]+")  # printable ASCII without spaces: what a bearer token and gRPC's metadata may hold
_UNLIMITED = 2**31 - 1
# Triton refuses keepalive pings that come more often than every five minutes, and there is no need to ping an idle
# channel. Switching keepalive on makes a connection that died silently fail after 20 s instead of minutes. After an
# outage gRPC would wait up to two minutes before it tries again: too long for a server that is back.
_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", _UNLIMITED),
    ("grpc.max_receive_message_length", _UNLIMITED),
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)
_NO_PROXY = ("grpc.enable_http_proxy", 0)


class _Source(NamedTuple):
    """Where a command gets a field's value: an option, or the environment variable if it has one."""

    help: str
    metavar: str = ""
    variable: str = ""


def option(metavar: str, text: str) -> dict[str, _Source]:
    """Return the metadata of a field that commands take as an option, named after the field."""
    return {"source": _Source(text, metavar=metavar)}


def variable(name: str, text: str) -> dict[str, _Source]:
    """Return the metadata of a field that commands take from the environment: `ps` shows options to everybody."""
    return {"source": _Source(text, variable=name)}


@dataclass(frozen=True)
class Connection:
    """How to reach a server; rankers, commands and benchmarks pass it on whole.

    `url` is the server's host and gRPC port, with `grpcs://` in front for TLS (a `grpc://` is dropped). `ca_file` is a
    PEM file with the certificate of an authority of your own; without it gRPC's own roots hold. `token` is sent with
    every call (`authorization: Bearer ...`), and without TLS only to this machine.

    Everything is checked when it is made. Raises `InvalidInputError`, which never shows the token.
    """

    url: str = field(metadata=option("HOST:PORT", "host and gRPC port of the server, grpcs://HOST:PORT for TLS"))
    ca_file: str | Path | None = field(
        default=None, metadata=option("FILE", "PEM certificate of the authority that signed the server's")
    )
    token: str | None = field(
        default=None, repr=False, metadata=variable("CLICKBERT_TOKEN", "the token that the server or a gateway wants")
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", _checked_url(self.url))
        if isinstance(self.ca_file, str):
            object.__setattr__(self, "ca_file", Path(self.ca_file))
        if self.token is not None:
            _check_token(self.token)
        if self.tls:
            _ = self.roots  # read now, so that a wrong file is an error here and not in some later call
        elif self.ca_file is not None:
            raise InvalidInputError(
                f"ca_file is for TLS, but url is {self.url!r}: write '{TLS}{self.url}', or leave ca_file out"
            )
        elif self.token is not None and not self.is_loopback:
            raise InvalidInputError(
                f"a token would travel readable for everyone to {self.url!r}: write '{TLS}{self.url}' (TLS), or leave"
                " it out"
            )

    @property
    def tls(self) -> bool:
        """Whether TLS is spoken."""
        return self.url.startswith(TLS)

    @property
    def target(self) -> str:
        """`host:port`, as gRPC takes it."""
        return self.url.removeprefix(TLS)

    @property
    def is_loopback(self) -> bool:
        """Whether the address is this machine's own: localhost, 127.0.0.0/8 or ::1."""
        host = self.target.rpartition(":")[0].strip("[]")
        try:
            return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:  # a name
            return False

    @cached_property
    def roots(self) -> bytes | None:
        """The content of `ca_file`; None stands for gRPC's own roots."""
        return None if self.ca_file is None else _read_roots(self.ca_file)

    @property
    def headers(self) -> dict[str, str]:
        """What goes with every call."""
        return {} if self.token is None else {"authorization": f"Bearer {self.token}"}

    @property
    def channel_options(self) -> list[tuple[str, int]]:
        """The options of the gRPC channel. No proxy of the environment gets a call to this machine."""
        return [*_CHANNEL_OPTIONS, _NO_PROXY] if self.is_loopback else list(_CHANNEL_OPTIONS)

    @property
    def tritonclient_arguments(self) -> dict[str, Any]:
        """The arguments of tritonclient's `InferenceServerClient` for this connection; its calls take `headers`."""
        return {
            "url": self.target,
            "ssl": self.tls,
            "root_certificates": None if self.ca_file is None else str(self.ca_file),
            "channel_args": self.channel_options,
        }

    def hide_secrets(self, text: str) -> str:
        """Return the text without the token: a server that repeats it must not get it into our errors and logs."""
        for name, source in _sources(type(self)).items():
            if source.variable and (secret := getattr(self, name)):
                text = text.replace(secret, "***")
        return text

    def open_channel(self, api: Any) -> Any:
        """Open a channel of `api`, which is `grpc` or `grpc.aio`."""
        if self.tls:
            return api.secure_channel(self.target, grpc.ssl_channel_credentials(self.roots), self.channel_options)
        return api.insecure_channel(self.target, self.channel_options)

    @classmethod
    def add_arguments(
        cls,
        parser: argparse.ArgumentParser,
        *,
        default_url: str | None = DEFAULT_URL,
        url_group: Any = None,
    ) -> None:
        """Add the options of a connection to a command, in a group that names the environment variables, too.

        Without a `default_url` the option may be left out. `url_group` is the argparse group that gets `--url`: a
        mutually exclusive one, for a command that can start a server instead.
        """
        sources = _sources(cls)
        variables = [f"{source.variable}: {source.help}" for source in sources.values() if source.variable]
        group = parser.add_argument_group("connection", "; ".join(["from the environment", *variables]))
        for name, source in sources.items():
            if source.variable:
                continue
            default = default_url if name == "url" else None
            (url_group or group if name == "url" else group).add_argument(
                _flag(name),
                metavar=source.metavar,
                default=default,
                help=source.help if default is None else f"{source.help} ({default})",
            )

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Self:
        """Make the connection of a command's options and the environment; a variable set to nothing is not set."""
        values: dict[str, Any] = {
            name: (environment.get(source.variable) or None) if source.variable else getattr(arguments, name)
            for name, source in _sources(cls).items()
        }
        # A field that is not given has its default; the address has none, and its check says so.
        return cls(**{name: value for name, value in values.items() if value is not None or name == "url"})

    def to_arguments(self) -> list[str]:
        """Return the options that give a child process this connection, together with `to_environment`."""
        return [
            f"{_flag(name)}={getattr(self, name)}"
            for name, source in _sources(type(self)).items()
            if not source.variable and getattr(self, name) is not None
        ]

    def to_environment(self) -> dict[str, str]:
        """Return the environment variables that a child process needs.

        What is not set is there with an empty value, so that the child does not inherit another server's.
        """
        return {
            source.variable: "" if getattr(self, name) is None else str(getattr(self, name))
            for name, source in _sources(type(self)).items()
            if source.variable
        }


def as_connection(connection: Connection | str) -> Connection:
    """Return the connection, made of the address where only that is given."""
    return connection if isinstance(connection, Connection) else Connection(connection)


def _sources(kind: type[Connection]) -> dict[str, _Source]:
    return {each.name: each.metadata["source"] for each in fields(kind)}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _checked_url(url: object) -> str:
    """Return `host:port` or `grpcs://host:port`."""
    address = url.removeprefix("grpc://") if isinstance(url, str) else ""
    match = _HOST_PORT.fullmatch(address.removeprefix(TLS))
    if match is None or not 0 < int(match[2]) < 65536:
        raise InvalidInputError(
            f"url is {url!r}, expected the host and the gRPC port of the server, like 'localhost:8001', or"
            " 'grpcs://ranking.example:8001' for TLS (no http://, no path; HTTP is another port)"
        )
    return address


def _check_token(token: object) -> None:
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        what = "empty or holds a space, a line break or another character that a header cannot carry"
        raise InvalidInputError(
            f"the token is {what if isinstance(token, str) else 'of type ' + type(token).__name__};"
            " expected printable ASCII: is there a line break at the end of the file that it was read from?"
        )


def _read_roots(ca_file: str | Path) -> bytes:
    try:
        # gRPC takes anything for certificates, and then trusts nobody; OpenSSL says what is wrong with the file.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=ca_file)
        return Path(ca_file).read_bytes()
    except (OSError, ValueError, TypeError) as exc:
        raise InvalidInputError(
            f"ca_file {str(ca_file)!r} cannot be used: {exc}; expected a PEM file with the certificate of the"
            " authority that signed the server's"
        ) from exc
