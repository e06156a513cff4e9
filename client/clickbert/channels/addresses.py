"""The addresses of servers: how they are written, checked, and told apart from this machine's own."""

import ipaddress
import re
from collections.abc import Sequence

from clickbert.errors import InvalidInputError

TLS = "grpcs://"
DNS = "dns:///"  # gRPC asks for all addresses of the name, and shares the calls among them
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+(%[\w.-]+)?\]|[\w.-]+):(?P<port>[0-9]{1,5})", re.ASCII)


def checked_urls(url: object) -> str:
    """Return the addresses, checked, each `host:port` or `dns:///host:port`, all or none with `grpcs://` in front.

    `url` is one address, several with commas between them, or a sequence of them; so is what it returns, with commas.
    Raises `InvalidInputError` for a wrong address, for TLS with only some, and for one that occurs twice.
    """
    parts = url.split(",") if isinstance(url, str) else url
    if not isinstance(parts, Sequence) or isinstance(parts, bytes) or not parts:
        raise _wrong(url)
    urls = [_checked(part.strip() if isinstance(part, str) else part) for part in parts]
    if len({each.startswith(TLS) for each in urls}) > 1:
        raise InvalidInputError(
            f"url has {', '.join(urls)}: write {TLS} in front of each address for TLS, or of none for plain gRPC"
        )
    if len(set(urls)) < len(urls):
        raise InvalidInputError(f"url has an address twice: {', '.join(urls)}; leave one out")
    return ",".join(urls)


def host_of(target: str) -> str:
    """Return the host of `host:port` or `dns:///host:port`."""
    return target.removeprefix(DNS).rpartition(":")[0].strip("[]")


def is_loopback(target: str) -> bool:
    """Tell whether an address is on this machine: localhost, 127.0.0.0/8 or ::1."""
    host = host_of(target)
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def _checked(url: object) -> str:
    address = url.removeprefix("grpc://") if isinstance(url, str) else ""
    match = _HOST_PORT.fullmatch(address.removeprefix(TLS).removeprefix(DNS))
    if match is None or not 0 < int(match["port"]) < 65536:
        raise _wrong(url)
    return address


def _wrong(url: object) -> InvalidInputError:
    return InvalidInputError(
        f"url is {url!r}, expected the host and the gRPC port of the server, like 'localhost:8001', or"
        " 'grpcs://ranking.example:8001' for TLS; several with commas or as a list, and 'dns:///ranking.example:8001'"
        " for all addresses of a name (no http://, no path; HTTP is another port)"
    )
