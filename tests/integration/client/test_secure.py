"""The client and a real tritonserver with TLS, with client certificates, and with a token."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from clickbert import AuthenticationError, Connection, ConnectionFailedError
from serving.server import Server
from tests.client.certificates import Authority
from tests.client.fakes import rank_once
from tests.integration.scores import PATIENCE
from tests.published import serve, serve_with_tls
from tests.serving.certs import make_certs

EITHER = pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "asyncio"])


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def secure(authority: Authority, published_repository: Path) -> Iterator[Server]:
    with serve_with_tls(published_repository, authority) as server:
        yield server


@EITHER
def test_ranking_over_tls_is_ranking(
    published_server: Server, secure: Server, authority: Authority, blocking: bool
) -> None:
    plain = rank_once(published_server.addresses.grpc, blocking, timeout=PATIENCE)
    url = f"grpcs://{secure.addresses.grpc}"
    # A token does no harm where nobody asks for it.
    over_tls = rank_once(Connection(url, authority.file, "nobody-asks"), blocking, timeout=PATIENCE)
    assert [item.index for item in over_tls] == [item.index for item in plain]
    assert [item.score for item in over_tls] == pytest.approx([item.score for item in plain], abs=1e-5)


@EITHER
def test_each_mismatch_says_what_it_is(
    published_server: Server, secure: Server, authority: Authority, blocking: bool
) -> None:
    plain = published_server.addresses.grpc
    for connection, message in [
        (Connection(f"grpcs://{secure.addresses.grpc}"), "not trusted"),
        (secure.addresses.grpc, "if it wants TLS, write grpcs://"),
        (Connection(f"grpcs://{plain}", authority.file), "does not speak TLS"),
        (Connection(f"grpcs://127.0.0.1:{secure.addresses.metrics_port}", authority.file), "does not speak TLS"),
    ]:
        with pytest.raises(ConnectionFailedError, match=message):
            rank_once(connection, blocking, timeout=PATIENCE)


def test_the_command_ranks_over_tls(secure: Server, authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "documents.txt").write_text("w1 w2\nw3\n", encoding="utf-8")
    command = [sys.executable, "-m", "clickbert", "rank", "--url", f"grpcs://{secure.addresses.grpc}", "--query", "w7"]
    command += ["--ca-file", str(authority.file), "--documents", str(tmp_path / "documents.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "w1 w2" in done.stdout


@EITHER
def test_a_server_that_wants_certificates_and_a_token_is_told_both(
    published_repository: Path, tmp_path: Path, blocking: bool
) -> None:
    certs = make_certs(tmp_path / "certs")
    with serve(published_repository, log=tmp_path / "triton.log", secure=certs) as server:
        connection = Connection(
            f"grpcs://{server.addresses.grpc}",
            ca_file=certs / "ca.pem",
            certificate_file=certs / "client.pem",
            key_file=certs / "client.key",
            token=(certs / "token").read_text().strip(),
        )
        assert len(rank_once(connection, blocking, timeout=PATIENCE)) == 2
        for wrong in (None, "another"):
            with pytest.raises(AuthenticationError, match="clickbert-token"):
                rank_once(replace(connection, token=wrong), blocking, timeout=PATIENCE)
        with pytest.raises(ConnectionFailedError, match="client certificate"):
            rank_once(replace(connection, certificate_file=None, key_file=None), blocking, timeout=PATIENCE)
