"""A server with `--secure`: who is refused by TLS, and by which token (22, 23)."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

import serving.access.security
from clickbert import AuthenticationError, Connection, ConnectionFailedError, Ranker
from serving.access import admin
from serving.access.security import PREFIX, TOKEN_HEADER
from serving.asking import why_not_ready
from serving.server import Addresses, Server
from tests.figures import Figures
from tests.integration.scores import PATIENCE
from tests.published import serve
from tests.reliability.hostile.triton_calls import ADMIN, CALLERS, HEALTH, refusals
from tests.serving.certs import make_certs

pytestmark = pytest.mark.reliability


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certs(tmp_path_factory.mktemp("certs") / "ours")


@pytest.fixture(scope="module")
def secure(published_repository: Path, certs: Path) -> Iterator[Server]:
    with serve(published_repository, log=certs.parent / "triton.log", secure=certs) as server:
        yield server


@pytest.fixture(scope="module")
def caller(secure: Server, certs: Path) -> Connection:
    """One that may rank."""
    return Connection(
        f"grpcs://{secure.addresses.grpc}",
        ca_file=certs / "ca.pem",
        certificate_file=certs / "client.pem",
        key_file=certs / "client.key",
        token=(certs / "token").read_text().strip(),
    )


def rank(connection: Connection) -> None:
    with Ranker(connection, timeout=PATIENCE, retries=0) as ranker:
        assert len(ranker.rank("w1", ["w2", "w3"])) == 2


def told(connection: Connection) -> str:
    """What such a caller is told; empty if it may rank."""
    try:
        rank(connection)
    except ConnectionFailedError as exc:
        return str(exc)
    return ""


def test_tls_refuses_each_wrong_caller_with_a_message_of_its_own(
    secure: Server, caller: Connection, certs: Path, tmp_path: Path, figures: Figures
) -> None:
    """22: of a server that wants certificates of its own authority."""
    rank(caller)
    other = make_certs(tmp_path / "other")
    expired = make_certs(tmp_path / "expired", authority=certs, days=-1)
    foreign = replace(caller, certificate_file=other / "client.pem", key_file=other / "client.key")
    late = replace(caller, certificate_file=expired / "client.pem", key_file=expired / "client.key")
    messages = {
        "if it wants TLS, write grpcs://": [told(Connection(secure.addresses.grpc))],
        "not trusted": [told(replace(caller, ca_file=other / "ca.pem"))],
        # The server says the same of them, which is nothing: its log tells the first from the others.
        "client certificate": [told(replace(caller, certificate_file=None, key_file=None)), told(foreign), told(late)],
    }
    refused = sum(bool(message) for group in messages.values() for message in group)
    figures.exactly(22, "kinds of callers refused by TLS, of 5", refused, 5)
    apart = sum(part in message for part, group in messages.items() for message in group)
    figures.exactly(22, "of them, those whose message says what is wrong", apart, 5)
    log = (certs.parent / "triton.log").read_text(errors="replace")
    reasons = ("wrong version number", "peer did not return a certificate", "certificate verify failed")
    figures.exactly(22, "reasons in the server's log, of 3", sum(reason in log for reason in reasons), 3)
    rank(caller)


def test_an_expired_server_is_refused_by_callers_and_does_not_start(
    published_repository: Path, caller: Connection, certs: Path, tmp_path: Path, monkeypatch, figures: Figures
) -> None:
    expired = make_certs(tmp_path / "expired", authority=certs, days=-1)
    with (tmp_path / "log").open("wb") as log:
        server = Server(published_repository, Addresses.free(), log=log, secure=expired)
        with pytest.raises(serving.access.security.ServingError, match="certificate has expired"):
            server.start()
        # It may also expire while it serves: then callers must see it. So the check before the start is left out.
        names = {"subjectAltName": (("DNS", "localhost"),)}
        monkeypatch.setattr(serving.access.security, "shake_hands", lambda *_, **__: names)
        try:
            server.start()
            while "expired" not in (why := why_not_ready(server.addresses, server.security) or "it is ready"):
                assert "refused" in why, why
            message = told(replace(caller, url=f"grpcs://{server.addresses.grpc}"))
        finally:
            server.kill()
    assert "expired" in message
    figures.exactly(22, "servers with an expired certificate that are refused, of 1", int("expired" in message), 1)


def test_each_call_wants_its_own_token(secure: Server, caller: Connection, certs: Path, figures: Figures) -> None:
    """23: no token, a wrong one, the callers', the admin's; each refusal names the header that it wants."""
    token = (certs / "token").read_text().strip()
    right = {PREFIX + TOKEN_HEADER: token}
    wrong = {PREFIX + TOKEN_HEADER: token[:-1] + "x", PREFIX + admin.HEADER: token}
    both = right | admin.headers(token)  # a caller's token, sent as the admin's
    credentials = grpc.ssl_channel_credentials(
        *((certs / name).read_bytes() for name in ("ca.pem", "client.key", "client.pem"))
    )
    with grpc.secure_channel(secure.addresses.grpc, credentials) as channel:
        for headers in ({}, wrong, right):
            assert not refusals(channel, HEALTH, headers), "load balancers have no token"
        for kind, headers in (("no", {}), ("a wrong", wrong)):
            found = refusals(channel, CALLERS | ADMIN, headers)
            figures.exactly(23, f"calls that {kind} token opens", len(CALLERS | ADMIN) - len(found), 0)
        for name, message in found.items():
            assert (admin.HEADER if name in ADMIN else TOKEN_HEADER) in message
        assert not refusals(channel, CALLERS, right)
        found = refusals(channel, ADMIN, both)
        figures.exactly(23, "admin calls that a caller's token opens", len(ADMIN) - len(found), 0)
        figures.exactly(
            23,
            "calls that the two right tokens do not open",
            len(refusals(channel, CALLERS | ADMIN, right | admin.headers(secure.admin_token))),
            0,
        )
    for bad in (None, "x" * 32):
        with pytest.raises(AuthenticationError, match=TOKEN_HEADER):
            rank(replace(caller, token=bad))
    # What others on this machine see of the server's flags.
    shown = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    seen = sum(secret in shown for secret in (token, secure.admin_token))
    figures.exactly(23, "tokens that `ps` shows", seen, 0)


def test_without_secure_the_admin_calls_are_closed_all_the_same(published_server: Server, figures: Figures) -> None:
    with grpc.insecure_channel(published_server.addresses.grpc) as channel:
        assert not refusals(channel, HEALTH | CALLERS, {})
        found = refusals(channel, ADMIN, {})
        figures.exactly(23, "admin calls open to everybody, by default", len(ADMIN) - len(found), 0)
        assert not refusals(channel, ADMIN, admin.headers(published_server.admin_token))
