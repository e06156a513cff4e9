"""TLS, mutual TLS and the callers' token, from the files of one folder (`python -m serving --secure DIR`).

    server.pem, server.key     the server's certificate, with its chain, and its key
    ca.pem                     if it is there, callers must show a certificate of this authority (mutual TLS)
    client.pem, client.key     with ca.pem: the certificate by which this machine asks its own server
    token                      if it is there, every call but health must carry this token

Triton reads them once, at its start. So they are looked at again and again, and Triton is started anew with new ones.
"""

from __future__ import annotations

import re
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from serving.triton import ServingError

SERVER_FILE, SERVER_KEY = "server.pem", "server.key"
AUTHORITY_FILE, CLIENT_FILE, CLIENT_KEY = "ca.pem", "client.pem", "client.key"
TOKEN_FILE = "token"
FILES = (SERVER_FILE, SERVER_KEY, AUTHORITY_FILE, CLIENT_FILE, CLIENT_KEY, TOKEN_FILE)
TOKEN_HEADER = "clickbert-token"
# Triton wants a restricted protocol's header with this prefix.
PREFIX = "triton-grpc-protocol-"
# All that a caller of a ranking needs, and statistics. Health stays open, for load balancers.
CALLERS = "inference,metadata,model-config,statistics"
LOOK = 1.0  # seconds between two looks at the files


@dataclass(frozen=True)
class Security:
    """The files of a folder as they were read. (`read_security` checks them first.)"""

    folder: Path
    files: dict[str, bytes]
    name: str  # one that the server's certificate is for

    def __repr__(self) -> str:  # no key, and no token
        return f"Security({self.folder})"

    @property
    def token(self) -> str | None:
        """The callers' token."""
        text = self.files.get(TOKEN_FILE)
        return None if text is None else text.decode("ascii").strip()

    def write(self, folder: Path) -> None:
        """Writes what Triton reads into a folder of the server's own, for this user alone. Raises OSError.

        Not where they came from: when Triton is started again, after a crash, others may lie there that are no good.
        """
        for name in (SERVER_FILE, SERVER_KEY, AUTHORITY_FILE):
            if name in self.files:
                (folder / name).touch(mode=0o600)
                (folder / name).write_bytes(self.files[name])

    def flags(self, folder: Path) -> list[str]:
        """The flags of tritonserver, which reads the files in `folder`."""
        paths = {"server-cert": SERVER_FILE, "server-key": SERVER_KEY}
        if AUTHORITY_FILE in self.files:
            paths["root-cert"] = AUTHORITY_FILE
        kind = "--grpc-use-ssl-mutual=true" if AUTHORITY_FILE in self.files else "--grpc-use-ssl=true"
        tokens = [f"--grpc-restricted-protocol={CALLERS}:{TOKEN_HEADER}={self.token}"] if self.token else []
        return [kind, *(f"--grpc-{flag}={folder / file}" for flag, file in paths.items()), *tokens]

    @property
    def credentials(self) -> Any:
        """gRPC's credentials for asking this very server: its own certificate is the only one to trust."""
        return grpc.ssl_channel_credentials(
            self.files[SERVER_FILE], self.files.get(CLIENT_KEY), self.files.get(CLIENT_FILE)
        )

    @property
    def channel_arguments(self) -> list[tuple[str, str]]:
        """gRPC's options for that. The certificate is for the name that callers know, which may not lead here."""
        return [("grpc.ssl_target_name_override", self.name)]


class Rotation:
    """Looks whether the files of a folder were changed since they were read."""

    def __init__(self, security: Security) -> None:
        self.security = security
        self.seen = security.files
        self.said = ""  # what is wrong with the new files
        self.next_look = time.monotonic() + LOOK

    def is_due(self) -> bool:
        """Whether there are new files, whole and good.

        Raises:
            ServingError: the new files are no good; raised once for what is wrong with them.
        """
        if time.monotonic() < self.next_look:
            return False
        self.next_look = time.monotonic() + LOOK
        try:
            return self.look()
        except ServingError as exc:
            if str(exc) == self.said:
                return False
            self.said = str(exc)
            raise

    def look(self) -> bool:
        """The same, now. New files are taken when two looks find the same: somebody may still be writing."""
        former, self.seen = self.seen, read_files(self.security.folder)
        if self.seen == self.security.files:
            self.said = ""
            return False
        if self.seen != former:
            return False
        check_kept(self.security, self.seen)
        check_files(self.security.folder, self.seen)
        return True


def read_security(folder: Path, former: Security | None = None) -> Security:
    """Reads and checks the files.

    Args:
        former: what they were before, in a server that is started anew.

    Raises:
        ServingError: one is missing or cannot be read; a key is not its certificate's; a certificate is not valid now,
            or not of the authority; the token cannot be sent.
    """
    folder = folder.absolute()
    files = read_files(folder)
    if former:
        check_kept(former, files)
    return Security(folder, files, check_files(folder, files))


def check_kept(former: Security, files: dict[str, bytes]) -> None:
    """Checks that no file is gone: without `ca.pem` or `token` the server would be open to more callers than it was.

    Somebody may be about to copy it anew, or a volume is being mounted. Who means it starts the server himself.

    Raises:
        ServingError: one is; names it.
    """
    if gone := [name for name in former.files if name not in files]:
        raise ServingError(
            f"--secure {former.folder} no longer has {', '.join(gone)}; to serve without it, start the server anew"
        )


def read_files(folder: Path) -> dict[str, bytes]:
    """The content of the files that are there. Raises ServingError."""
    found = {}
    for name in FILES:
        try:
            found[name] = (folder / name).read_bytes()
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise ServingError(f"{folder / name} cannot be read: {exc.strerror}; see `make certs`") from exc
    return found


def check_files(folder: Path, files: dict[str, bytes]) -> str:
    """Checks that callers can be served with these files; returns a name that the server's certificate is for."""
    mutual = AUTHORITY_FILE in files
    needed = [SERVER_FILE, SERVER_KEY, *([CLIENT_FILE, CLIENT_KEY] if mutual else [])]
    if missing := [name for name in needed if name not in files]:
        why = f" With {AUTHORITY_FILE}, this machine itself needs {CLIENT_FILE} and {CLIENT_KEY}." if mutual else ""
        raise ServingError(f"--secure {folder} has no {', '.join(missing)}.{why} `make certs` writes such a folder")
    if TOKEN_FILE in files and not re.fullmatch(rb"\s*[\w.~+/=-]{16,}\s*", files[TOKEN_FILE], re.ASCII):
        raise ServingError(
            f"{folder / TOKEN_FILE} holds no token: one line of 16 or more letters, digits and -._~+/=; write one with "
            f"`python -c 'import secrets; print(secrets.token_urlsafe(32))' > {TOKEN_FILE}`"
        )
    try:
        certificate = shake_hands(folder, mutual=mutual)
    except ssl.SSLError as exc:
        reason = getattr(exc, "verify_message", None) or exc.reason or exc
        raise ServingError(
            f"--secure {folder}: no caller could connect with these certificates: {reason}. Check that each key is its "
            "certificate's, that they are valid today, and that ca.pem signed client.pem"
        ) from exc
    names = [name for kind, name in certificate.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
    if not names:
        raise ServingError(
            f"{folder / SERVER_FILE} is for no name: callers look for the name or address that they connect to among "
            "its subjectAltName"
        )
    return str(names[0]).replace("*", "any")


def shake_hands(folder: Path, *, mutual: bool) -> dict[str, Any]:
    """Tries the files out in memory, as server and as client; returns the server's certificate. Raises SSLError."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / SERVER_FILE, folder / SERVER_KEY)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the server's own certificate is trusted, whoever signed it
    client.load_verify_locations(folder / SERVER_FILE)
    if mutual:
        server.verify_mode = ssl.CERT_REQUIRED
        server.load_verify_locations(folder / AUTHORITY_FILE)
        client.load_cert_chain(folder / CLIENT_FILE, folder / CLIENT_KEY)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = (
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    done: set[ssl.SSLObject] = set()
    while len(done) < len(sides):
        for side in sides:
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                continue
    return dict(sides[0].getpeercert() or {})
