"""`--secure DIR`: what is read from the folder, what is refused, and that new files are taken by a restart."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path

import pytest

import serving.access.security
from serving.__main__ import main
from serving.access.security import LOOK, Rotation, read_security
from serving.asking import why_not_ready
from serving.server import Addresses, Server
from serving.triton import ServingError
from tests.processes import paused
from tests.published import serve
from tests.serving.certs import make_certs
from tests.serving.command import Command
from tests.waiting import eventually


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certs(tmp_path_factory.mktemp("certs") / "ours")


@pytest.fixture
def folder(certs: Path, tmp_path: Path) -> Path:
    """A copy of its own."""
    return shutil.copytree(certs, tmp_path / "certs")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of another authority."""
    return make_certs(tmp_path_factory.mktemp("certs") / "others")


def test_the_files_that_are_there_decide_what_callers_need(folder: Path) -> None:
    token = (folder / "token").read_text().strip()
    security = read_security(folder)
    assert security.name == "localhost"
    assert security.token == token
    assert token not in repr(security)
    assert security.flags(Path("/copies")) == [
        "--grpc-use-ssl-mutual=true",
        "--grpc-server-cert=/copies/server.pem",
        "--grpc-server-key=/copies/server.key",
        "--grpc-root-cert=/copies/ca.pem",
        f"--grpc-restricted-protocol=inference,metadata,model-config,statistics:clickbert-token={token}",
    ]
    for name in ("ca.pem", "client.pem", "client.key", "token"):
        (folder / name).unlink()
    assert read_security(folder).flags(Path("/copies")) == [
        "--grpc-use-ssl=true",
        "--grpc-server-cert=/copies/server.pem",
        "--grpc-server-key=/copies/server.key",
    ]


def test_what_triton_reads_is_written_for_this_user_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    read_security(folder).write(tmp_path / "copies")
    written = {path.name: path for path in (tmp_path / "copies").iterdir()}
    assert sorted(written) == ["ca.pem", "server.key", "server.pem"], "no token, and no caller's key"
    assert {oct(path.stat().st_mode & 0o777) for path in written.values()} == {"0o600"}
    assert all(path.read_bytes() == (folder / name).read_bytes() for name, path in written.items())


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["server.pem", "server.key"], r"has no server.pem, server.key\."),
        (["client.key"], r"has no client.key\. With ca.pem, this machine itself needs client.pem and client.key"),
    ],
)
def test_a_missing_file_is_named(folder: Path, missing: list[str], message: str) -> None:
    for name in missing:
        (folder / name).unlink()
    with pytest.raises(ServingError, match=message):
        read_security(folder)


@pytest.mark.parametrize(
    ("taken", "message"),
    [(["server.key"], "KEY_VALUES_MISMATCH"), (["client.pem", "client.key"], "unable to get local issuer certificate")],
)
def test_files_that_do_not_belong_together_are_refused(
    folder: Path, others: Path, taken: list[str], message: str
) -> None:
    for name in taken:
        shutil.copy(others / name, folder)
    with pytest.raises(ServingError, match=f"no caller could connect with these certificates: {message}"):
        read_security(folder)


def test_what_is_no_certificate_or_has_expired_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="certificate has expired"):
        read_security(make_certs(tmp_path / "expired", authority=folder, days=-1))
    (folder / "server.pem").write_text("no certificate")
    with pytest.raises(ServingError, match="no caller could connect"):
        read_security(folder)


@pytest.mark.parametrize("token", ["", "short", "two words, and long enough", "x" * 20 + ",b=c", "größe" * 5])
def test_what_is_no_token_is_refused(folder: Path, token: str) -> None:
    (folder / "token").write_text(token, encoding="utf-8")
    with pytest.raises(ServingError, match=r"token holds no token: one line .* write one with"):
        read_security(folder)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(serving.access.security.time, "monotonic", lambda: now[0])
    return now


def test_new_files_are_due_once_they_are_whole(folder: Path, clock: list[float]) -> None:
    rotation = Rotation(read_security(folder))

    def look() -> bool:
        clock[0] += LOOK
        return rotation.is_due()

    assert not look()
    former = (folder / "server.pem").read_bytes()
    (folder / "server.pem").write_bytes(former[:100])
    assert not look(), "somebody writes"
    (folder / "server.pem").write_bytes(former)
    assert not look(), "nothing has changed, in the end"
    make_certs(folder)
    assert not rotation.is_due(), "it is not time to look"
    assert not look()
    assert look()


def test_new_files_that_are_no_good_are_said_once_and_not_taken(folder: Path, others: Path, clock: list[float]) -> None:
    rotation = Rotation(read_security(folder))
    shutil.copy(others / "server.key", folder)
    for number in range(6):
        clock[0] += LOOK
        if number == 1:
            with pytest.raises(ServingError, match="KEY_VALUES_MISMATCH"):
                rotation.is_due()
        else:
            assert not rotation.is_due()
    shutil.copy(others / "server.pem", folder)
    clock[0] += LOOK
    assert not rotation.is_due()
    clock[0] += LOOK
    assert rotation.is_due(), "put in order"


@pytest.mark.parametrize("name", ["token", "ca.pem"])
def test_a_file_that_vanishes_opens_the_server_to_nobody(folder: Path, clock: list[float], name: str) -> None:
    security = read_security(folder)
    rotation = Rotation(security)
    (folder / name).rename(folder / "away")
    for number in range(4):
        clock[0] += LOOK
        if number == 1:
            with pytest.raises(
                ServingError, match=rf"no longer has {name}; to serve without it, start the server anew"
            ):
                rotation.is_due()
        else:
            assert not rotation.is_due()
    with pytest.raises(ServingError, match=f"no longer has {name}"):
        read_security(folder, former=security)  # a server that is started anew for another reason
    (folder / "away").rename(folder / name)
    clock[0] += LOOK
    assert not rotation.is_due()
    assert read_security(folder, former=security) == security


def test_http_is_not_opened_beside_tls(small_repository: Path, folder: Path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([f"--repository={small_repository}", f"--secure={folder}", "--http-port=8000"])
    assert "HTTP without TLS" in capsys.readouterr().err


def test_a_secured_server_is_ready_for_who_has_its_files(
    small_repository: Path, certs: Path, others: Path, tmp_path: Path
) -> None:
    with serve(small_repository, log=tmp_path / "log", secure=certs) as server:
        assert why_not_ready(server.addresses, read_security(certs), ["small"]) is None
        assert why_not_ready(server.addresses) is not None
        assert why_not_ready(server.addresses, read_security(others)) is not None


def test_a_rotation_drains_the_server_and_starts_it_with_the_new_files(
    small_repository: Path, folder: Path, others: Path, tmp_path: Path
) -> None:
    with Command(small_repository, tmp_path, f"--secure={folder}") as command:
        former, first = read_security(folder), command.triton()
        shutil.copy(others / "server.key", folder)
        eventually(lambda: "the former files stay in use" in command.log_file.read_text())
        assert command.triton() == first
        make_certs(folder)
        eventually(lambda: "the server was drained and is started with them" in command.log_file.read_text())
        assert command.process.stdout
        assert command.process.stdout.readline() == "serving: small ready\n"
        assert why_not_ready(command.addresses, read_security(folder)) is None
        assert why_not_ready(command.addresses, former) is not None, "its certificate is another"
        assert command.triton() != first
        assert command.end(signal.SIGTERM) == 0


def test_a_signal_while_it_drains_for_new_files_does_not_cut_that_short(
    small_repository: Path, folder: Path, tmp_path: Path
) -> None:
    with Command(small_repository, tmp_path, f"--secure={folder}") as command:
        triton = command.triton()
        with paused([triton]):  # it is told to drain, and has not begun
            make_certs(folder)
            eventually(lambda: is_pending(signal.SIGTERM, triton))
            command.process.send_signal(signal.SIGTERM)
            eventually(lambda: not is_pending(signal.SIGTERM, command.process.pid))
        assert command.process.wait(timeout=60) == 0
        assert "Found 0 live models" in command.log_file.read_text()


def is_pending(number: signal.Signals, process: int) -> bool:
    """Whether a signal was sent to a process that has not taken it."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    (mask,) = re.findall(r"^ShdPnd:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_a_server_that_crashes_comes_back_with_the_files_that_it_had(
    small_repository: Path, folder: Path, others: Path, tmp_path: Path
) -> None:
    with Command(small_repository, tmp_path, f"--secure={folder}") as command:
        security = read_security(folder)
        shutil.copy(others / "server.key", folder)
        (folder / "token").unlink()
        os.kill(command.triton(), signal.SIGSEGV)
        assert command.process.stdout
        assert command.process.stdout.readline() == "serving: small ready\n"
        assert why_not_ready(command.addresses, security) is None
        assert "the former files stay in use" in command.log_file.read_text()
        assert command.process.stdout.readline().startswith("serving: gRPC")
        make_certs(folder)  # a token, too
        eventually(lambda: "the server was drained and is started with them" in command.log_file.read_text())
        assert command.process.stdout.readline() == "serving: small ready\n"
        assert why_not_ready(command.addresses, read_security(folder)) is None
        assert command.end(signal.SIGTERM) == 0


def test_a_server_is_not_started_with_files_that_are_no_good(small_repository: Path, folder: Path) -> None:
    (folder / "server.key").unlink()
    server = Server(small_repository, Addresses.free(), secure=folder)
    with pytest.raises(ServingError, match=r"has no server\.key"), server:
        pass
    assert server.process is None
