"""The files that Envoy reads: the policy in envoy.yaml with an operator's values, and the secrets beside it.

The folder of secrets, in which only server.pem, server.key and tokens must be there:

    server.pem, server.key   the gateway's certificate, and its chain; the private key
    tokens                   one caller a line: NAME TOKEN
    ca.pem                   callers must show a certificate of this authority
    triton-token             what the Tritons want themselves (the file `token` of `python -m serving --secure`)
    triton-ca.pem            the Tritons speak TLS, with certificates of this authority
    triton.pem, triton.key   the certificate that the Tritons want to see

Each secret becomes a file of its own, which Envoy reads again when it is replaced.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
import ssl
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

POLICY = Path(__file__).with_name("envoy.yaml")
CONFIG, TOKENS = "envoy.yaml", "tokens.json"
CERTIFICATES = ("server", "triton")  # the gateway's for its callers, and for the Tritons
OPTIONAL = ("ca.pem", "triton-token", "triton-ca.pem", "triton.pem")
_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[\w.-]+):(?P<port>[0-9]{1,5})", re.ASCII)
_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."


class GatewayError(RuntimeError):
    """Something that the gateway needs is missing or wrong. The message says what, where, and what to do."""


class ExpiredError(GatewayError):
    """A certificate that is in use is no longer valid. All else that is new was taken."""


def host_port(text: str) -> tuple[str, int]:
    """A host name or an address, and a port. Raises ValueError."""
    match = _HOST_PORT.fullmatch(text)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return match["host"].strip("[]"), int(match["port"])


def write_config(
    folder: Path,
    secrets: Path,
    tritons: Sequence[tuple[str, int]],
    canaries: Sequence[tuple[str, int]],
    listen: tuple[str, int],
    model: str,
    admin_port: int,
    metrics: tuple[str, int] | None = None,
) -> None:
    """Writes Envoy's configuration, which names the files that `write_secrets` writes.

    Args:
        metrics: where Prometheus asks for the figures; None: nowhere.
    """
    there = {name: (secrets / name).exists() for name in OPTIONAL}

    def secret(name: str) -> dict[str, Any]:
        source = {"resource_api_version": "V3", "path_config_source": {"path": str(folder / f"{name}.json")}}
        return {"name": name, "sds_config": source}

    values = {
        "admin_port": admin_port,
        "address": listen[0],
        "port": listen[1],
        "metrics_wanted": metrics is not None,
        "metrics_address": metrics[0] if metrics else "127.0.0.1",
        "metrics_port": metrics[1] if metrics else 0,
        "tokens_file": str(folder / TOKENS),
        "server_secret": secret("server"),
        "client_certificates": there["ca.pem"],
        "callers_secret": secret("callers"),
        "no_triton_token": not there["triton-token"],
        "triton_token_secret": secret("triton-token"),
        "tritons": endpoints(tritons),
        "canaries": endpoints(canaries),
        "triton_transport": PLAINTEXT,
        "canary_transport": PLAINTEXT,
        "model_ready_request": model_ready_request(model).hex(),
    }
    if there["triton-ca.pem"]:
        own = [secret("triton")] if there["triton.pem"] else []
        values["triton_transport"] = tls(tritons, secret("triton-ca"), own)
        values["canary_transport"] = tls(canaries, secret("triton-ca"), own)
    text = Template(POLICY.read_text(encoding="utf-8"))
    replace(folder / CONFIG, text.substitute({name: json.dumps(value) for name, value in values.items()}))


def endpoints(servers: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    """The servers of a cluster."""
    return [
        {"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}} for host, port in servers
    ]


def tls(
    servers: Sequence[tuple[str, int]], authority: dict[str, Any], certificates: list[dict[str, Any]]
) -> dict[str, Any]:
    """How servers of this authority are reached, with these certificates if they want one."""
    names = {"default_validation_context": {"match_typed_subject_alt_names": [alternative_name(h) for h, _ in servers]}}
    context = {
        "alpn_protocols": ["h2"],
        "combined_validation_context": names | {"validation_context_sds_secret_config": authority},
        "tls_certificate_sds_secret_configs": certificates,
    }
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {"@type": f"{_TLS}UpstreamTlsContext", "common_tls_context": context},
    }


def write_secrets(folder: Path, secrets: Path) -> None:
    """Writes what has changed of the secrets; Envoy takes it over for new calls and connections.

    Raises:
        GatewayError: one is missing or wrong, or is gone that was there at the start. Nothing was written then.
        ExpiredError: a certificate that is in use has expired.
    """
    read = {TOKENS: tokens(secrets / "tokens"), "server.json": certificate("server", secrets)}
    read["callers.json"] = authority("callers", secrets / "ca.pem")
    read["triton-token.json"] = triton_token(secrets / "triton-token")
    if (secrets / "triton-ca.pem").exists():
        read["triton-ca.json"] = authority("triton-ca", secrets / "triton-ca.pem")
        if (secrets / "triton.pem").exists():
            read["triton.json"] = certificate("triton", secrets)
    former = {name: read_resource(folder / name) for name in read}
    for name, resource in read.items():
        if resource in (NO_AUTHORITY, NO_TRITON_TOKEN) and former[name] not in (None, resource):
            gone = "ca.pem" if resource == NO_AUTHORITY else "triton-token"
            raise GatewayError(f"{secrets} no longer has {gone}: to run without it, start the gateway anew")
    changed = [name for name, resource in read.items() if former[name] != resource]
    certificates = [name for name in CERTIFICATES if f"{name}.json" in read]
    if faults := certificate_faults([name for name in certificates if f"{name}.json" in changed], secrets):
        raise GatewayError("; ".join(faults))
    for name in changed:
        replace(folder / name, json.dumps({"resources": [read[name]]}))
    # Only now: when one that is in use expires, new tokens must be taken all the same.
    if faults := certificate_faults([name for name in certificates if f"{name}.json" not in changed], secrets):
        raise ExpiredError("; ".join(faults))


def tokens(file: Path) -> dict[str, Any]:
    """The filter that checks tokens, which knows each caller's.

    Raises:
        GatewayError: the file cannot be read, or a line is not NAME TOKEN, or one occurs twice. No token is shown.
    """
    callers: dict[str, str] = {}
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"([\w.-]+)[ \t]+([!-~]+)[ \t]*", line, re.ASCII)
        if match is None:
            raise GatewayError(f"{file}, line {number}: expected NAME TOKEN, both without spaces")
        name, token = match.groups()
        if name in callers.values() or token in callers:
            raise GatewayError(f"{file}, line {number}: the name or the token stands there twice; each has its own")
        callers[token] = name
    if not callers:
        raise GatewayError(f"{file} has no token: write one caller a line, NAME TOKEN")
    return {
        "@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
        "name": "tokens",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuth",
            "credentials": [{"key": token, "client": name} for token, name in callers.items()],
            "key_sources": [{"header": "authorization"}],
            "forwarding": {"header": "x-clickbert-caller"},
        },
    }


def certificate(name: str, secrets: Path) -> dict[str, Any]:
    """The secret of a certificate and its key, unchecked. Raises GatewayError if one cannot be read."""
    chain, key = secrets / f"{name}.pem", secrets / f"{name}.key"
    content = {"certificate_chain": inline(read_text(chain)), "private_key": inline(read_text(key))}
    return as_secret(name, tls_certificate=content)


def certificate_faults(names: Sequence[str], secrets: Path) -> list[str]:
    """What is wrong with these certificates and their keys: none, or not of each other, or not valid now."""
    faults = []
    for name in names:
        chain, key = secrets / f"{name}.pem", secrets / f"{name}.key"
        try:
            shake_hands(chain, key, is_servers=name == "server")
        except ssl.SSLCertVerificationError as exc:
            faults.append(
                f"{chain} cannot be used: {exc.verify_message}; renew it, or look at its dates and what it is for"
            )
        except (OSError, ValueError) as exc:
            faults.append(f"{chain} and {key.name} cannot be used: {exc}; expected a certificate and its key")
    return faults


def shake_hands(chain: Path, key: Path, *, is_servers: bool) -> None:
    """Tries a certificate out in memory, on a server's side or on a client's. Raises OSError and ValueError.

    It is taken for its own authority: who signed it, the other side knows.
    """
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    for context in (server, client):
        context.load_cert_chain(chain, key, password="")
    checking = client if is_servers else server
    checking.verify_mode = ssl.CERT_REQUIRED
    checking.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    checking.load_verify_locations(chain)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)
    left = list(sides)
    while left:
        for side in tuple(left):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
                left.remove(side)


def authority(name: str, file: Path) -> dict[str, Any]:
    """The secret of an authority; one that checks nothing where there is no file. Raises GatewayError."""
    if not file.exists():
        return as_secret(name, validation_context={})
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except (OSError, ValueError) as exc:
        raise GatewayError(f"{file} cannot be used: {exc}; expected an authority's certificate") from exc
    return as_secret(name, validation_context={"trusted_ca": inline(read_text(file))})


def triton_token(file: Path) -> dict[str, Any]:
    """The secret of what the Tritons want; empty where there is no file. Raises GatewayError."""
    token = read_text(file).strip() if file.exists() else ""
    if file.exists() and not re.fullmatch(r"[!-~]+", token):
        raise GatewayError(f"{file} holds no token: expected printable ASCII without spaces")
    return as_secret("triton-token", generic_secret={"secret": inline(token)})


def as_secret(name: str, **content: Any) -> dict[str, Any]:
    """A secret as Envoy's secret discovery takes it."""
    return {"@type": f"{_TLS}Secret", "name": name, **content}


def inline(text: str) -> dict[str, str]:
    """A text in place of a file."""
    return {"inline_string": text}


def alternative_name(host: str) -> dict[str, Any]:
    """What a Triton's certificate must be for: its name, or its address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return {"san_type": "DNS", "matcher": {"exact": host}}
    return {"san_type": "IP_ADDRESS", "matcher": {"exact": host}}


def model_ready_request(model: str) -> bytes:
    """Triton's ModelReadyRequest{name} as gRPC frames it: not compressed, its length, field 1."""
    name = model.encode()
    if not 0 < len(name) < 126:  # so that lengths are one byte
        raise GatewayError(f"--model {model!r} cannot be asked for: expected a name of up to 125 characters")
    return bytes([0, 0, 0, 0, len(name) + 2, 10, len(name)]) + name


def read_text(file: Path) -> str:
    """The content of a file. Raises GatewayError."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as exc:
        raise GatewayError(f"{file} cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc


def read_resource(file: Path) -> Any:
    """What was written for Envoy last; None where nothing was."""
    return json.loads(read_text(file))["resources"][0] if file.exists() else None


def replace(file: Path, text: str) -> None:
    """Writes a file whole: Envoy looks for files that are moved into place."""
    unfinished = file.with_name(f".{file.name}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(file)


PLAINTEXT = {
    "name": "envoy.transport_sockets.raw_buffer",
    "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"},
}
# What Envoy gets in the place of files that are not there.
NO_AUTHORITY = as_secret("callers", validation_context={})
NO_TRITON_TOKEN = as_secret("triton-token", generic_secret={"secret": inline("")})
