"""Mutual TLS: a server that wants a certificate of the caller's."""

import shutil
from pathlib import Path

import pytest

from clickbert import Connection, ConnectionFailedError, InvalidInputError
from clickbert.__main__ import main
from clickbert.errors import from_status
from tests.client.certificates import Authority
from tests.client.fakes import FakeTriton, grpc_server, rank_once


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def caller(authority, tmp_path_factory) -> dict[str, Path]:
    """The files of a caller's certificate."""
    folder = tmp_path_factory.mktemp("caller")
    key, certificate = authority.issue("DNS:caller")
    return {
        "certificate_file": Path(shutil.copy(certificate, folder / "caller.pem")),
        "key_file": Path(shutil.copy(key, folder / "caller.key")),
    }


@pytest.fixture
def strict(server: FakeTriton, authority, caller):
    """A server that wants one of this authority's."""
    key, certificate = authority.issue()
    with grpc_server(
        server, certificate=(key.read_bytes(), certificate.read_bytes()), callers=authority.file.read_bytes()
    ) as address:
        yield f"grpcs://{address}"


def test_with_its_certificate_a_caller_is_served(strict, authority, caller, blocking):
    assert len(rank_once(Connection(strict, authority.file, **caller), blocking)) == 2
    as_text = {name: str(path) for name, path in caller.items()}
    assert Connection(strict, authority.file, **as_text) == Connection(strict, authority.file, **caller)


def test_without_one_and_with_anothers_it_is_refused(server, strict, authority, tmp_path, blocking):
    key, certificate = Authority(tmp_path / "other").issue("DNS:caller")
    for files in ({}, {"certificate_file": certificate, "key_file": key}):
        with pytest.raises(ConnectionFailedError):
            rank_once(Connection(strict, authority.file, **files), blocking)
    assert server.requests == []


def test_the_command_takes_one(strict, authority, caller, tmp_path, capsys):
    (tmp_path / "documents.txt").write_text("a bar\na bank\n")
    arguments = ["rank", "--url", strict, "--query", "tea", "--documents", str(tmp_path / "documents.txt")]
    arguments += ["--ca-file", str(authority.file), "--certificate-file", str(caller["certificate_file"])]
    assert main([*arguments, "--key-file", str(caller["key_file"])]) == 0
    assert "a bank" in capsys.readouterr().out
    assert main(arguments) == 1
    assert "not key_file" in capsys.readouterr().err


def test_one_file_without_the_other_is_refused(caller):
    for name, path in caller.items():
        (missing,) = set(caller) - {name}
        with pytest.raises(InvalidInputError, match=f"{name} is given, but not {missing}"):
            Connection("grpcs://localhost:8001", **{name: path})


def test_files_without_tls_are_refused(caller):
    with pytest.raises(InvalidInputError, match="certificate_file is for TLS"):
        Connection("localhost:8001", **caller)


def test_files_that_cannot_be_used_are_named(authority, caller, tmp_path):
    (tmp_path / "empty.pem").touch()
    other_key, _ = Authority(tmp_path / "other").issue()
    for change in (
        {"certificate_file": tmp_path / "missing.pem"},
        {"certificate_file": tmp_path / "empty.pem"},
        {"key_file": tmp_path / "empty.pem"},
        {"key_file": other_key},
    ):
        (path,) = change.values()
        with pytest.raises(InvalidInputError, match=f"{path}.*PEM"):
            Connection("grpcs://localhost:8001", **(caller | change))


def test_a_connection_that_ends_as_soon_as_it_is_open_has_two_readings():
    text = "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:8001: Socket closed"
    plain, secure = (from_status("UNAVAILABLE", text, where="m at u", tls=tls) for tls in (False, True))
    assert "not HTTP (8000)" in str(plain) and "certificate_file" not in str(plain)
    assert "certificate_file" in str(secure) and "HTTP" not in str(secure)
