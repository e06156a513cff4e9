"""Which proxy of the environment gRPC uses for an address: gRPC's own rules, repeated here for error messages."""

import ipaddress
import os

from clickbert.channels.addresses import host_of, is_loopback

# Channel options; the first for what http_proxy and its like name, the second for GRPC_ADDRESS_HTTP_PROXY.
PAST_PROXIES = (("grpc.enable_http_proxy", 0), ("grpc.address_http_proxy_enabled_addresses", ""))
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTION_VARIABLES = ("no_grpc_proxy", "no_proxy")


def proxy_variable(target: str) -> str | None:
    """Return the environment variable whose proxy gRPC uses for `host:port`; None if it uses none.

    Calls to this machine go past every proxy. Only the first variable that is set counts, even if it is empty.
    """
    name = next((name for name in _PROXY_VARIABLES if name in os.environ), None)
    if is_loopback(target) or name is None or not os.environ[name].startswith("http://"):
        return None
    exceptions = next((os.environ[name] for name in _EXCEPTION_VARIABLES if name in os.environ), "")
    host = host_of(target)
    return None if any(_covers(entry.strip(), host) for entry in exceptions.split(",") if entry) else name


def _covers(entry: str, host: str) -> bool:
    """Tell whether an entry of no_proxy covers the host: it is the end of its name, or a range of addresses."""
    if host.lower().endswith(entry.lower()):
        return True
    try:
        return "/" in entry and ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
