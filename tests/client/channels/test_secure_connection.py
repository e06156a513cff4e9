"""TLS and tokens over real gRPC: what works, what is refused before anything is sent, and which error says what."""

import http.server
import os
import subprocess
import sys
import threading
import traceback

import grpc
import pytest

import clickbert
from clickbert import Connection, Ranker
from clickbert.__main__ import main
from tests.client.certificates import Authority
from tests.client.fakes import Guard, grpc_server, rank_once

SECRET = "s3cret-t0ken.with~signs"


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def certificate(authority) -> tuple[bytes, bytes]:
    key, certificate = authority.issue()
    return key.read_bytes(), certificate.read_bytes()


@pytest.fixture
def guard() -> Guard:
    return Guard("authorization", f"Bearer {SECRET}")


@pytest.fixture
def guarded(server, guard, certificate):
    """A server with TLS that wants the token."""
    with grpc_server(server, guard, certificate=certificate) as address:
        yield f"grpcs://localhost:{address.rpartition(':')[2]}"


def test_over_tls_the_ranking_is_the_same(server, url, certificate, authority, blocking):
    expected = rank_once(url, blocking)
    with grpc_server(server, Guard("authorization", None), certificate=certificate) as address:
        for name in (address, address.replace("127.0.0.1", "localhost")):
            assert rank_once(Connection(f"grpcs://{name}", ca_file=authority.file), blocking) == expected
        assert rank_once(Connection(f"grpcs://{address}", ca_file=str(authority.file)), blocking) == expected


def test_another_authoritys_server_is_refused(server, certificate, tmp_path, blocking):
    other = Authority(tmp_path / "other")
    with grpc_server(server, certificate=certificate) as address:
        for ca_file in (other.file, None):
            with pytest.raises(clickbert.ConnectionFailedError, match=r"certificate is not trusted.*ca_file"):
                rank_once(Connection(f"grpcs://{address}", ca_file=ca_file), blocking)


@pytest.mark.parametrize(
    "issued, message", [({"names": "DNS:elsewhere"}, "not valid for this host name"), ({"days": -1}, "expired")]
)
def test_a_certificate_that_does_not_hold_is_refused(server, tmp_path, blocking, issued, message):
    authority = Authority(tmp_path / "ours")
    key, certificate = authority.issue(**issued)
    with grpc_server(server, certificate=(key.read_bytes(), certificate.read_bytes())) as address:
        with pytest.raises(clickbert.ConnectionFailedError, match=message):
            rank_once(Connection(f"grpcs://{address}", ca_file=authority.file), blocking)
    assert server.requests == []


def test_a_server_without_tls_is_told_from_one_that_is_not_trusted(url, authority, blocking):
    with pytest.raises(clickbert.ConnectionFailedError, match="does not speak TLS"):
        rank_once(Connection(f"grpcs://{url}", ca_file=authority.file), blocking)


def test_an_http_server_does_not_speak_tls(authority, blocking):
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(clickbert.ConnectionFailedError, match="does not speak TLS"):
            rank_once(Connection(f"grpcs://127.0.0.1:{other.server_port}", ca_file=authority.file), blocking)
        other.shutdown()


def test_a_server_with_tls_that_is_asked_plainly(guarded, blocking):
    wants_tls = "if it wants TLS, write grpcs://"
    by_name = guarded.removeprefix("grpcs://")
    # gRPC tells the error of 127.0.0.1, or that ::1 refused the connection: then the message says how to see the other.
    with pytest.raises(clickbert.ConnectionFailedError, match=f"{wants_tls}|write 127.0.0.1 in place of localhost"):
        rank_once(by_name, blocking)
    with pytest.raises(clickbert.ConnectionFailedError, match=wants_tls):
        rank_once(by_name.replace("localhost", "127.0.0.1"), blocking)


def test_the_token_goes_with_every_call(guard, guarded, authority, blocking):
    assert len(rank_once(Connection(guarded, ca_file=authority.file, token=SECRET), blocking)) == 2
    assert [name for name, _ in guard.calls] == ["ModelMetadata", "ModelConfig", "ModelInfer", "ModelInfer"]
    assert {sent for _, sent in guard.calls} == {f"Bearer {SECRET}"}


@pytest.mark.parametrize(
    "status, error",
    [
        (grpc.StatusCode.UNAUTHENTICATED, clickbert.AuthenticationError),
        (grpc.StatusCode.PERMISSION_DENIED, clickbert.PermissionDeniedError),
    ],
)
@pytest.mark.parametrize("token", ["wr0ng-t0ken", None])
def test_a_refused_token_has_an_error_that_does_not_show_it(
    guard, guarded, authority, blocking, status, error, token, caplog, capfd
):
    guard.status = status
    with pytest.raises(error, match="token") as caught:
        rank_once(Connection(guarded, ca_file=authority.file, token=token), blocking)
    # This server repeats what it was sent. The whole trace is searched, with the errors behind the error.
    assert "not with" in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text + "".join(capfd.readouterr())
    assert "wr0ng" not in shown


@pytest.mark.parametrize("host", ["ranking.example", "10.0.0.1", "[2001:db8::1]", "localhost.example", "128.0.0.1"])
def test_a_token_does_not_leave_the_machine_without_tls(host):
    with pytest.raises(clickbert.InvalidInputError, match=r"readable .*write 'grpcs://") as caught:
        Connection(f"{host}:8001", token=SECRET)
    assert SECRET not in str(caught.value)
    Connection(f"grpcs://{host}:8001", token=SECRET)
    Ranker(f"{host}:8001").close()


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "[::1]"])
def test_on_this_machine_a_token_needs_no_tls(host):
    Connection(f"grpc://{host}:8001", token=SECRET)


@pytest.mark.parametrize(
    "token",
    ["", "s3cret\n", "s3cret\r\nother: header", "s3 cret", "s3cr\u00e9t", "s3cret\x00", "s3cret\x7f", b"s3cret"],
)
def test_a_token_that_no_header_can_carry_is_refused(token):
    with pytest.raises(clickbert.InvalidInputError, match="the token is") as caught:
        Connection("grpcs://ranking.example:8001", token=token)
    assert "s3" not in str(caught.value)


def test_the_token_is_in_no_repr(authority):
    address = Connection("grpcs://ranking.example:8001", authority.file, SECRET)
    assert address.token == SECRET
    with Ranker(Connection("grpcs://ranking.example:8001", token=SECRET)) as ranker:
        assert SECRET not in repr([address, ranker, vars(ranker), vars(ranker._transport)])


def test_a_ca_file_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "empty.pem").touch()
    (tmp_path / "other.pem").write_text("no certificate\n")
    for name in ("missing.pem", "empty.pem", "other.pem", ""):
        with pytest.raises(clickbert.InvalidInputError, match=f"{tmp_path / name}.*PEM"):
            Connection("grpcs://localhost:8001", ca_file=tmp_path / name)
    with pytest.raises(clickbert.InvalidInputError, match="ca_file '7'"):
        Connection("grpcs://localhost:8001", ca_file=7)


def test_a_ca_file_without_tls_is_refused(authority):
    with pytest.raises(clickbert.InvalidInputError, match="write 'grpcs://localhost:8001'"):
        Connection("localhost:8001", ca_file=authority.file)


def test_the_command_takes_a_ca_file_and_the_token_from_the_environment(guarded, authority, tmp_path):
    (tmp_path / "documents.txt").write_text("a bar\na bank\n")
    command = [sys.executable, "-m", "clickbert", "rank", "--url", guarded, "--ca-file", str(authority.file)]
    command += ["--query", "tea", "--documents", str(tmp_path / "documents.txt")]
    for token, status in ((SECRET, 0), ("wr0ng-t0ken", 1), ("", 1), ("two\nlines", 1)):
        variables = os.environ | {"CLICKBERT_TOKEN": token}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == status, done.stderr
        assert ("a bar" in done.stdout) == (status == 0)
        assert "wr0ng" not in done.stderr and "two" not in done.stderr
        assert not done.stderr or done.stderr.startswith("clickbert: ")


def test_the_command_has_no_option_for_the_token():
    with pytest.raises(SystemExit) as caught:
        main(["rank", "--query", "tea", "--documents", "-", "--token", SECRET])
    assert caught.value.code == 2
