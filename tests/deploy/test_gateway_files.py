"""What Envoy gets to read: it takes it, and what is wrong is refused before, by name and without the secret."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

import deploy.gateway.files
from deploy.gateway.files import ExpiredError, GatewayError, model_ready_request, tokens, write_secrets
from tests.client.certificates import Authority
from tests.gateways import make_secrets, needs_envoy

COMMAND = [sys.executable, "-m", "deploy", "gateway"]
TRITONS = ["--triton=triton-0.example:8001", "--triton=10.0.0.2:8001", "--triton=[2001:db8::2]:8001"]
FILES = ["ca.pem", "triton-token", "triton-ca.pem", "triton.pem", "triton.key"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    authority = make_secrets(folder)
    for name, source in zip(FILES, [authority.file, None, authority.file, *reversed(authority.issue())], strict=True):
        if source:
            shutil.copy(source, folder / name)
    (folder / "triton-token").write_text("tr1ton-t0ken\n", encoding="utf-8")
    return folder


@pytest.fixture
def secrets(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "secrets", tmp_path / "secrets")


@needs_envoy
@pytest.mark.parametrize("also", [[], FILES], ids=["least", "everything"])
def test_envoy_takes_the_configuration(made: Path, secrets: Path, also: list[str]) -> None:
    for name in also:
        shutil.copy(made / name, secrets)
    done = check(secrets, *TRITONS)
    assert done.returncode == 0 and "OK" in done.stdout, done.stderr


@needs_envoy
def test_what_envoy_refuses_is_an_error(secrets: Path) -> None:
    assert check(secrets, *TRITONS, "--listen=no-address:8443").returncode == 1


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "has no token"),
        ("# web s3cret\n", "has no token"),
        ("s3cret\n", "line 1: expected NAME TOKEN"),
        ("web s3cret\n\nbatch s3cret with spaces\n", "line 3: expected NAME TOKEN"),
        ("web s3crét\n", "line 1: expected NAME TOKEN"),
        ("web s3cret\nbatch s3cret\n", "line 2: the name or the token stands there twice"),
        ("web s3cret\nweb s3cret-2\n", "line 2: the name or the token stands there twice"),
    ],
)
def test_tokens_that_nobody_can_send_are_refused(secrets: Path, tmp_path: Path, content: str, message: str) -> None:
    (secrets / "tokens").write_text(content, encoding="utf-8")
    with pytest.raises(GatewayError, match=message) as caught:
        write_secrets(tmp_path, secrets)
    assert "s3cr" not in str(caught.value) and str(secrets / "tokens") in str(caught.value)
    assert not list(tmp_path.glob("*.json"))


def test_every_caller_has_a_token(secrets: Path) -> None:
    (secrets / "tokens").write_text("# who\nweb  one\nnightly-batch\ttwo \n", encoding="utf-8")
    read = tokens(secrets / "tokens")["typed_config"]["credentials"]
    assert read == [{"key": "one", "client": "web"}, {"key": "two", "client": "nightly-batch"}]


@pytest.mark.parametrize("name", ["server.pem", "server.key", "tokens"])
def test_what_is_missing_is_named(secrets: Path, name: str) -> None:
    (secrets / name).unlink()
    done = check(secrets, *TRITONS)
    assert done.returncode == 1 and done.stderr.startswith("gateway: ") and name in done.stderr


@pytest.mark.parametrize("name", FILES[:3])
def test_what_is_there_must_be_usable(secrets: Path, tmp_path: Path, name: str) -> None:
    (secrets / name).write_text("two words\n", encoding="utf-8")
    with pytest.raises(GatewayError, match=name):
        write_secrets(tmp_path, secrets)


def test_a_key_must_be_its_certificates(secrets: Path, tmp_path: Path) -> None:
    key, _ = Authority(tmp_path / "other").issue()
    shutil.copy(key, secrets / "server.key")
    with pytest.raises(GatewayError, match=r"server\.pem and server\.key cannot be used"):
        write_secrets(tmp_path, secrets)


def test_a_certificate_must_be_valid_now(made: Path, secrets: Path, tmp_path: Path) -> None:
    for name in FILES:
        shutil.copy(made / name, secrets)
    write_secrets(tmp_path, secrets)
    expired, former = Authority(tmp_path / "other").issue(days=-1), read_all(tmp_path)
    for name in ("server", "triton"):
        saved = {file: file.read_bytes() for file in secrets.glob(f"{name}.*")}
        for file in expired:
            shutil.copy(file, secrets / f"{name}{file.suffix}")
        with pytest.raises(
            GatewayError, match=rf"{name}\.pem cannot be used: certificate has expired; renew it, or look at"
        ):
            write_secrets(tmp_path, secrets)
        for file, content in saved.items():
            file.write_bytes(content)
    assert read_all(tmp_path) == former


def test_when_the_certificate_in_use_expires_new_tokens_are_taken_all_the_same(
    secrets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_secrets(tmp_path, secrets)
    expired = ssl.SSLCertVerificationError()
    expired.verify_message = "certificate has expired"
    monkeypatch.setattr(deploy.gateway.files, "shake_hands", Mock(side_effect=expired))
    (secrets / "tokens").write_text("web n3w\n", encoding="utf-8")
    with pytest.raises(ExpiredError, match=r"server\.pem cannot be used: .*; renew it"):  # and it is told
        write_secrets(tmp_path, secrets)
    assert "n3w" in (tmp_path / "tokens.json").read_text(encoding="utf-8")


def read_all(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.json")}


def test_only_what_changed_is_written(secrets: Path, tmp_path: Path) -> None:
    write_secrets(tmp_path, secrets)
    former = {file.name: file.stat().st_ino for file in tmp_path.glob("*.json")}
    (secrets / "tokens").write_text("web n3w\n", encoding="utf-8")
    write_secrets(tmp_path, secrets)
    changed = [file.name for file in tmp_path.glob("*.json") if file.stat().st_ino != former[file.name]]
    assert changed == ["tokens.json"] and "n3w" in json.dumps(json.loads((tmp_path / "tokens.json").read_text()))


@pytest.mark.parametrize("name", ["ca.pem", "triton-token"])
def test_what_vanishes_stays_in_use(made: Path, secrets: Path, tmp_path: Path, name: str) -> None:
    write_secrets(tmp_path, secrets)
    shutil.copy(made / name, secrets)
    write_secrets(tmp_path, secrets)
    former = {file.name: file.read_text() for file in tmp_path.glob("*.json")}
    (secrets / name).unlink()
    (secrets / "tokens").write_text("web n3w\n", encoding="utf-8")
    with pytest.raises(GatewayError, match=f"no longer has {name}: to run without it, start the gateway anew"):
        write_secrets(tmp_path, secrets)
    assert {file.name: file.read_text() for file in tmp_path.glob("*.json")} == former
    shutil.copy(made / name, secrets)
    write_secrets(tmp_path, secrets)
    assert "n3w" in (tmp_path / "tokens.json").read_text()


@pytest.mark.parametrize(
    "wrong", [["--triton=nowhere"], ["--triton=triton-0.example:0"], ["--listen=8443"], ["--triton=https://a:1"]]
)
def test_an_address_is_a_host_and_a_port(secrets: Path, wrong: list[str]) -> None:
    done = check(secrets, *TRITONS, *wrong)
    assert done.returncode == 2 and "is not HOST:PORT" in done.stderr


def test_the_health_check_asks_as_triton_reads_it() -> None:
    from tritonclient.grpc import service_pb2

    framed = model_ready_request("clickbert_onnx_int8")
    assert framed[:5] == bytes([0, 0, 0, 0, len(framed) - 5])
    assert service_pb2.ModelReadyRequest.FromString(framed[5:]).name == "clickbert_onnx_int8"
    assert service_pb2.ModelReadyResponse(ready=True).SerializeToString().hex() == "0801"  # what envoy.yaml expects
    with pytest.raises(GatewayError, match="up to 125"):
        model_ready_request("m" * 126)


def check(secrets: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, f"--secrets={secrets}", "--check", *options, "--", "--log-level", "error"]
    return subprocess.run(command, capture_output=True, text=True, check=False)
