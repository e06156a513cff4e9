"""Secrets change as the kubelet changes a mounted one: all files at once, by a link that is renamed."""

from __future__ import annotations

import json
import ssl
import threading
from pathlib import Path

import grpc
import pytest

import serving.access.security
from deploy.gateway.files import GatewayError, write_secrets
from serving.access.security import LOOK, Rotation, read_security
from tests.client.certificates import Authority
from tests.deploy.upstream import upstream
from tests.gateways import TOKEN, gateway, make_secrets, needs_envoy, renew
from tests.serving.certs import make_certs
from tests.waiting import eventually

METHOD = "/inference.GRPCInferenceService/ModelInfer"


def put(folder: Path, files: dict[str, bytes]) -> None:
    """Writes files as the kubelet does: into a new folder, to which `..data` is then renamed; names lead through it."""
    folder.mkdir(exist_ok=True)
    former = (folder / "..data").resolve() if (folder / "..data").is_symlink() else None
    number = len(list(folder.glob("..20*"))) if former is None else int(former.name.rpartition("_")[2]) + 1
    fresh = folder / f"..2026_11_28_{number}"
    fresh.mkdir()
    for name, data in files.items():
        (fresh / name).write_bytes(data)
    (folder / "..data_tmp").symlink_to(fresh.name)
    (folder / "..data_tmp").rename(folder / "..data")
    for name in files:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    if former:
        for path in former.iterdir():
            path.unlink()
        former.rmdir()


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def plain(tmp_path: Path) -> tuple[Authority, Path]:
    """The gateway's secrets as files, and their authority."""
    authority = make_secrets(tmp_path / "made") if (tmp_path / "made").mkdir() is None else None
    assert authority
    return authority, tmp_path / "made" / "secrets"


@needs_envoy
def test_the_gateway_takes_over_what_a_mounted_secret_becomes(plain: tuple[Authority, Path], tmp_path: Path) -> None:
    authority, files = plain
    first = read(files)
    renew(authority, files)
    (files / "tokens").write_text("web n3w-t0ken\n", encoding="utf-8")
    second = read(files)
    (tmp_path / "ours").symlink_to(files.with_name("ours"))
    put(tmp_path / "secrets", first)
    with upstream() as (_, address), gateway(tmp_path, [address]) as running, running.channel() as channel:
        call = channel.unary_unary(METHOD)

        def status(token: str) -> grpc.StatusCode:
            try:
                call(b"", timeout=30, metadata=(("authorization", f"Bearer {token}"),))
            except grpc.RpcError as exc:
                return exc.code()
            return grpc.StatusCode.OK

        def shown() -> str:
            return ssl.get_server_certificate(("localhost", running.port))

        assert status(TOKEN) == grpc.StatusCode.OK and status("n3w-t0ken") == grpc.StatusCode.UNAUTHENTICATED
        former = shown()
        put(tmp_path / "secrets", second)
        eventually(lambda: status("n3w-t0ken") == grpc.StatusCode.OK)
        eventually(lambda: shown() != former)
        assert status(TOKEN) == grpc.StatusCode.UNAUTHENTICATED


def test_a_look_in_the_moment_of_a_change_harms_nothing(plain: tuple[Authority, Path], tmp_path: Path) -> None:
    """The gateway looks again and again meanwhile: it refuses what does not fit, and ends with what does."""
    authority, files = plain
    states = [read(files)]
    renew(authority, files)
    states.append(read(files))
    put(tmp_path / "secrets", states[0])
    (tmp_path / "envoy").mkdir()
    write_secrets(tmp_path / "envoy", tmp_path / "secrets")
    changing = threading.Thread(target=lambda: [put(tmp_path / "secrets", states[turn % 2]) for turn in range(1, 300)])
    changing.start()
    looks = 0
    while changing.is_alive():
        looks += 1
        try:
            write_secrets(tmp_path / "envoy", tmp_path / "secrets")
        except GatewayError:
            continue
    changing.join()
    assert looks > 1
    write_secrets(tmp_path / "envoy", tmp_path / "secrets")
    (resource,) = json.loads((tmp_path / "envoy" / "server.json").read_text(encoding="utf-8"))["resources"]
    certificate = resource["tls_certificate"]
    assert certificate["private_key"]["inline_string"].encode() == states[1]["server.key"]
    assert certificate["certificate_chain"]["inline_string"].encode() == states[1]["server.pem"]


def test_a_server_starts_anew_for_what_a_mounted_secret_becomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(serving.access.security.time, "monotonic", lambda: now[0])
    first, second = (read(make_certs(tmp_path / name)) for name in ("first", "second"))
    mounted = tmp_path / "certs"
    put(mounted, first)
    security = read_security(mounted)
    rotation = Rotation(security)

    def look() -> bool:
        now[0] += LOOK
        return rotation.is_due()

    assert not look()
    put(mounted, second)
    assert [look(), look()] == [False, True], "two looks find the same"
    renewed = read_security(mounted, former=security)
    assert renewed.files["server.key"] == second["server.key"] != first["server.key"]
