"""Where the server is and how it is spoken to: plain gRPC or TLS, with or without a token.

Everything is checked before anything is sent. Each check raises `InvalidInputError`, and none of them shows the token.
"""

import ipaddress
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from clickbert.errors import InvalidInputError

TLS = "grpcs://"
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s/:@\[\]]+):(\d{1,5})")
_TOKEN = re.compile(r"[!-~]+")  # printable ASCII without spaces: what a bearer token and gRPC's metadata may hold


@dataclass(frozen=True)
class Address:
    """A checked address. `url` is `host:port`, with `grpcs://` in front where TLS is spoken."""

    url: str
    roots: bytes | None = field(repr=False)  # PEM; None is gRPC's own roots
    token: str | None = field(repr=False)

    @property
    def tls(self) -> bool:
        """Whether TLS is spoken."""
        return self.url.startswith(TLS)

    @property
    def target(self) -> str:
        """`host:port`, as gRPC takes it."""
        return self.url.removeprefix(TLS)


def check_url(url: str) -> str:
    """Return `host:port` (a `grpc://` in front is dropped), or `grpcs://host:port`."""
    address = url.removeprefix("grpc://") if isinstance(url, str) else ""
    match = _HOST_PORT.fullmatch(address.removeprefix(TLS))
    if match is None or not 0 < int(match[2]) < 65536:
        raise InvalidInputError(
            f"url is {url!r}, expected the host and the gRPC port of the server, like 'localhost:8001', or"
            " 'grpcs://ranking.example:8001' for TLS (no http://, no path; HTTP is another port)"
        )
    return address


def check_address(url: str, ca_file: str | Path | None, token: str | None) -> Address:
    """Check an address with its certificate authority and token, and read `ca_file`."""
    url = check_url(url)
    if token is not None:
        _check_token(token)
    if not url.startswith(TLS):
        if ca_file is not None:
            raise InvalidInputError(f"ca_file is for TLS, but url is {url!r}: write '{TLS}{url}', or leave ca_file out")
        if token is not None and not _is_loopback(url.rpartition(":")[0]):
            raise InvalidInputError(
                f"a token would travel readable for everyone to {url!r}: write '{TLS}{url}' (TLS), or leave it out"
            )
    return Address(url, None if ca_file is None else _read_roots(ca_file), token)


def _check_token(token: object) -> None:
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        what = "empty or holds a space, a line break or another character that a header cannot carry"
        raise InvalidInputError(
            f"the token is {what if isinstance(token, str) else 'of type ' + type(token).__name__};"
            " expected printable ASCII: is there a line break at the end of the file that it was read from?"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name
        return False


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
