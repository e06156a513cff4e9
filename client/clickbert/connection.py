"""How servers are reached: their addresses, TLS or plain gRPC, certificates, the token, the channels' options.

A connection option is a field of `Connection`. Its check, its command-line option or environment variable, and its use
where a channel is opened are here too, so adding one changes this file alone: declare the field with `option` or
`variable` as its metadata, check it in `__post_init__`, and use it in `channel_options`, `headers` or `open_channel`.
"""

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import grpc

from clickbert.channels.addresses import DNS, TLS, checked_urls, is_loopback
from clickbert.channels.credentials import Credentials, read_credentials
from clickbert.channels.proxies import PAST_PROXIES
from clickbert.errors import InvalidInputError

DEFAULT_URL = "localhost:8001"
_TOKEN = re.compile(r"[!-~]+")  # printable ASCII without spaces: what a bearer token and gRPC's metadata may hold
_FILES = ("ca_file", "certificate_file", "key_file")
_UNLIMITED = 2**31 - 1
_TOKEN_HEADER = "triton-grpc-protocol-clickbert-token"  # what `python -m serving --secure` has Triton ask for
# A connection that dies silently (a host that is gone, a process that hangs) is noticed in seconds: while calls are in
# flight, gRPC pings after 10 s without a word from the server, and waits 5 s for the answer. It also pings now and then
# when data is sent, to measure the bandwidth, and would wait 60 s for that answer, with no other ping meanwhile. It
# sends at most two pings without data between them, so no server complains of too many. An idle connection is not
# pinged. After an outage gRPC would wait up to two minutes before it tries again, and an address that swallows packets
# would hold its calls for 20 s.
_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", _UNLIMITED),
    ("grpc.max_receive_message_length", _UNLIMITED),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # the bandwidth's
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.min_reconnect_backoff_ms", 3_000),  # by its name; it is how long a connection may take to open
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)
_ROUND_ROBIN = ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]}))


class _Source(NamedTuple):
    """Where a command gets a field's value: from its environment variable if it has one, else from an option."""

    help: str
    metavar: str = ""
    variable: str = ""


def option(metavar: str, text: str) -> dict[str, _Source]:
    """Return the metadata of a field that commands take as an option, which has the field's name."""
    return {"source": _Source(text, metavar=metavar)}


def variable(name: str, text: str) -> dict[str, _Source]:
    """Return the metadata of a secret field. Commands take it from the environment: `ps` shows options to everybody."""
    return {"source": _Source(text, variable=name)}


@dataclass(frozen=True)
class Connection:
    """How to reach one server or several; rankers, commands and benchmarks pass it on whole.

    `url` is the server's host and gRPC port, with `grpcs://` in front for TLS (a `grpc://` is dropped). Several, as a
    list or with commas between them, are used in turn; calls pass over one that just failed. `dns:///HOST:PORT` stands
    for all addresses of the name. All of them serve the same models.

    `ca_file` is a PEM file with the certificate of an authority of your own; without it gRPC's own roots hold.
    `certificate_file` and `key_file` are the PEM files of a certificate of the caller's, for a server that wants one.
    `token` is sent with every call, and without TLS only to this machine: as `authorization: Bearer ...` for a gateway,
    and in the header that Triton itself can check (`python -m serving --secure`).

    Everything is checked when it is made. Raises `InvalidInputError`, which never shows the token.
    """

    url: str = field(
        metadata=option("HOST:PORT", "host and gRPC port of the server, or several with commas; grpcs:// for TLS")
    )
    ca_file: str | Path | None = field(
        default=None, metadata=option("FILE", "PEM certificate of the authority that signed the server's")
    )
    token: str | None = field(
        default=None, repr=False, metadata=variable("CLICKBERT_TOKEN", "the token that the server or a gateway wants")
    )
    certificate_file: str | Path | None = field(
        default=None, metadata=option("FILE", "PEM certificate of the caller, for a server that wants one")
    )
    key_file: str | Path | None = field(default=None, metadata=option("FILE", "PEM key of --certificate-file"))

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", checked_urls(self.url))
        for name in _FILES:
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, Path(getattr(self, name)))
        if self.token is not None:
            _check_token(self.token)
        if self.tls:
            _ = self.credentials  # read now: a wrong file is an error here, and not in some later call
        elif given := [name for name in _FILES if getattr(self, name) is not None]:
            raise InvalidInputError(
                f"{given[0]} is for TLS, but url is {self.url!r}: write '{TLS}{self.url}', or leave {given[0]} out"
            )
        elif self.token is not None and not all(map(is_loopback, self.targets)):
            raise InvalidInputError(
                f"a token would travel readable for everyone to {self.url!r}: write '{TLS}{self.url}' (TLS), or leave"
                " it out"
            )

    @property
    def tls(self) -> bool:
        """Whether TLS is spoken."""
        return self.url.startswith(TLS)

    @property
    def targets(self) -> tuple[str, ...]:
        """The addresses, as gRPC takes them: `host:port` or `dns:///host:port`."""
        return tuple(each.removeprefix(TLS) for each in self.url.split(","))

    @cached_property
    def credentials(self) -> Credentials:
        """The contents of the files for TLS."""
        return read_credentials(self.ca_file, self.certificate_file, self.key_file)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every call."""
        if self.token is None:
            return {}
        return {"authorization": f"Bearer {self.token}", _TOKEN_HEADER: self.token}

    @property
    def channel_options(self) -> list[tuple[str, int | str]]:
        """The options of every gRPC channel."""
        return list(_CHANNEL_OPTIONS)

    def channel_options_for(self, target: str) -> list[tuple[str, int | str]]:
        """The options of the channel to one of the targets. Calls to this machine ignore the environment's proxies."""
        past_proxies = PAST_PROXIES if is_loopback(target) else ()
        return [*self.channel_options, *past_proxies, *((_ROUND_ROBIN,) if target.startswith(DNS) else ())]

    @property
    def tritonclient_arguments(self) -> dict[str, Any]:
        """The arguments of tritonclient's `InferenceServerClient`, for the first address; its calls take `headers`."""
        target = self.targets[0]
        files = {"root_certificates": self.ca_file, "certificate_chain": self.certificate_file}
        return {
            "url": target,
            "ssl": self.tls,
            **{name: None if file is None else str(file) for name, file in files.items()},
            "private_key": None if self.key_file is None else str(self.key_file),
            "channel_args": self.channel_options_for(target),
        }

    def hide_secrets(self, text: str) -> str:
        """Return the text without secrets: a server may repeat the token in a message, which ends up in logs."""
        for name, source in _sources(type(self)).items():
            if source.variable and (secret := getattr(self, name)):
                text = text.replace(secret, "***")
        return text

    def open_channel(self, api: Any, target: str) -> Any:
        """Open a channel of `api`, which is `grpc` or `grpc.aio`, to one of the targets."""
        options = self.channel_options_for(target)
        if self.tls:
            return api.secure_channel(target, grpc.ssl_channel_credentials(*self.credentials), options)
        return api.insecure_channel(target, options)

    @classmethod
    def add_arguments(
        cls,
        parser: argparse.ArgumentParser,
        *,
        default_url: str | None = DEFAULT_URL,
        url_group: Any = None,
    ) -> None:
        """Add the connection's options to a command, in a group whose help names the environment variables, too.

        If `default_url` is None, a user may leave `--url` out, and it is None. A command with an alternative to `--url`
        passes a mutually exclusive group of argparse as `url_group`.
        """
        sources = _sources(cls)
        variables = [f"{source.variable}, {source.help}" for source in sources.values() if source.variable]
        group = parser.add_argument_group("connection", "from the environment: " + "; ".join(variables))
        for name in cls.option_names():
            source = sources[name]
            default = default_url if name == "url" else None
            (url_group or group if name == "url" else group).add_argument(
                _flag(name),
                metavar=source.metavar,
                default=default,
                help=source.help if default is None else f"{source.help} ({default})",
            )

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Self:
        """Make the connection from a command's options and the environment. An empty variable counts as unset."""
        values: dict[str, Any] = {
            name: (environment.get(source.variable) or None) if source.variable else getattr(arguments, name)
            for name, source in _sources(cls).items()
        }
        # A field that is not given keeps its default. The address has none, and its check says what is missing.
        return cls(**{name: value for name, value in values.items() if value is not None or name == "url"})

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Make the connection from the environment alone: `url` is CLICKBERT_URL (default DEFAULT_URL), and so on."""
        values = {name: environment.get(f"CLICKBERT_{name.upper()}") or None for name in cls.option_names()}
        return cls.from_arguments(argparse.Namespace(**values | {"url": values["url"] or DEFAULT_URL}), environment)

    @classmethod
    def option_names(cls) -> list[str]:
        """Return the fields that commands take as options; secrets are not among them."""
        return [name for name, source in _sources(cls).items() if not source.variable]

    def to_arguments(self) -> list[str]:
        """Return the options for a child process; its environment needs `to_environment`, too."""
        return [
            f"{_flag(name)}={getattr(self, name)}" for name in self.option_names() if getattr(self, name) is not None
        ]

    def to_environment(self) -> dict[str, str]:
        """Return the environment variables for a child process.

        A secret that is not set is an empty variable, so that the child does not inherit another server's.
        """
        return {
            source.variable: "" if getattr(self, name) is None else str(getattr(self, name))
            for name, source in _sources(type(self)).items()
            if source.variable
        }


def as_connection(connection: Connection | str | Sequence[str]) -> Connection:
    """Return a connection as it is, and make one from an address or several."""
    return connection if isinstance(connection, Connection) else Connection(connection)  # type: ignore[arg-type]


def _sources(kind: type[Connection]) -> dict[str, _Source]:
    return {each.name: each.metadata["source"] for each in fields(kind)}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_token(token: object) -> None:
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        what = "empty or holds a space, a line break or another character that a header cannot carry"
        raise InvalidInputError(
            f"the token is {what if isinstance(token, str) else 'of type ' + type(token).__name__};"
            " expected printable ASCII: is there a line break at the end of the file that it was read from?"
        )
