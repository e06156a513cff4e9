"""The files of TLS: an authority's certificate, and the caller's own with its key. Read and checked before any call."""

import ssl
from pathlib import Path
from typing import NamedTuple

from clickbert.errors import InvalidInputError


class Credentials(NamedTuple):
    """What TLS needs, in PEM, in the order in which gRPC takes it; None for `roots` stands for gRPC's own."""

    roots: bytes | None
    key: bytes | None
    certificate: bytes | None


def read_credentials(
    ca_file: str | Path | None, certificate_file: str | Path | None, key_file: str | Path | None
) -> Credentials:
    """Read the files. Raises `InvalidInputError` for one that cannot be used, and for a certificate without a key."""
    if (certificate_file is None) != (key_file is None):
        given, missing = ("certificate_file", "key_file") if key_file is None else ("key_file", "certificate_file")
        raise InvalidInputError(f"{given} is given, but not {missing}: a certificate is of use only with its key")
    # gRPC takes anything for certificates, and then trusts nobody; OpenSSL says what is wrong with a file.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    roots = certificate = key = None
    try:
        if ca_file is not None:
            context.load_verify_locations(cafile=ca_file)
            roots = Path(ca_file).read_bytes()
    except (OSError, ValueError, TypeError) as exc:
        raise InvalidInputError(
            f"ca_file {str(ca_file)!r} cannot be used: {exc}; expected a PEM file with the certificate of the"
            " authority that signed the server's"
        ) from exc
    try:
        if certificate_file is not None and key_file is not None:
            # Without a password OpenSSL would ask for one at the terminal.
            context.load_cert_chain(certificate_file, key_file, password="")
            certificate, key = Path(certificate_file).read_bytes(), Path(key_file).read_bytes()
    except (OSError, ValueError, TypeError) as exc:
        raise InvalidInputError(
            f"certificate_file {str(certificate_file)!r} and key_file {str(key_file)!r} cannot be used: {exc}; expected"
            " PEM files with a certificate and its key, which has no password"
        ) from exc
    return Credentials(roots, key, certificate)
