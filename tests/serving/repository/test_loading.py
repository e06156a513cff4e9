"""`python -m serving load`: forward, back, and what it refuses without changing anything."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest
from tritonclient.utils import InferenceServerException

import serving.access.admin
import serving.repository.loading
import serving.runtime
from release.files import STAGING
from release.lock import held, locked
from release.manifest import read_manifest, write_manifest
from serving.__main__ import main
from serving.access.admin import VARIABLE, find_token
from serving.asking import Version
from serving.runtime import PREFIX, own_folders
from serving.server import Addresses, Server
from serving.triton import ServingError
from tests.published import serve
from tests.serving.certs import make_certs
from tests.waiting import eventually


@pytest.fixture
def server(small_repository: Path, tmp_path: Path) -> Iterator[Server]:
    with serve(shutil.copytree(small_repository, tmp_path / "repository")) as server:
        yield server


def publish(server: Server, number: int) -> Path:
    """The same model once more."""
    model = server.repository / "small"
    return Path(shutil.copytree(model / "1", model / str(number)))


def load(server: Server, *more: str, model: str = "small") -> int:
    return main(
        ["load", model, f"--repository={server.repository}", f"--grpc-port={server.addresses.grpc_port}", *more]
    )


def names(server: Server) -> list[str]:
    return sorted(path.name for path in (server.repository / "small").iterdir() if path.is_dir())


def test_the_newest_version_is_loaded_and_an_older_one_by_its_number(server: Server, capsys) -> None:
    for number in (2, 10):
        publish(server, number)
    assert load(server) == 0
    assert capsys.readouterr().out == "serving: small version 10 is served\n"
    assert load(server, "--version=2") == 0
    printed = capsys.readouterr()
    assert printed.out == "serving: small version 2 is served\n"
    assert f"version 10 is withdrawn, as {server.repository}/small/withdrawn.10" in printed.err
    assert names(server) == ["1", "2", "withdrawn.10"]
    assert load(server) == 0, "what is withdrawn is not the newest"
    assert capsys.readouterr().out == "serving: small version 2 is served\n"
    assert load(server, "--version=10") == 0
    assert names(server) == ["1", "10", "2"]


def test_the_health_check_tells_former_versions_plainly(server: Server, capsys) -> None:
    publish(server, 2)
    assert load(server) == 0

    def told() -> list[str]:
        capsys.readouterr()
        assert main(["--health", f"--grpc-port={server.addresses.grpc_port}"]) == 0
        return sorted(capsys.readouterr().out.splitlines()[1:])

    eventually(lambda: told() == ["serving: small 1 unloaded", "serving: small 2 READY"])
    assert str(Version("small", "1", "UNLOADING", "")) == "small 1 being unloaded"
    assert str(Version("small", "3", "UNAVAILABLE", "no graph\nstack")) == "small 3 UNAVAILABLE (no graph)"


def test_a_version_that_triton_refuses_is_withdrawn_and_what_was_newer_comes_back(server: Server, capsys) -> None:
    for number in (2, 3):
        publish(server, number)
    assert load(server) == 0
    broken = server.repository / "small" / "2"
    (broken / "model.onnx").write_bytes(b"no graph")
    write_manifest(broken, read_manifest(broken))
    assert load(server, "--version=2") == 1
    assert "small version 2 is not loaded, 3 serves on: Triton did not load it: load failed" in capsys.readouterr().err
    assert names(server) == ["1", "3", "withdrawn.2"]
    publish(server, 2)
    assert load(server, "--version=2") == 0, "it was copied again"
    assert load(server, "--version=1") == 0
    assert names(server) == ["1", "withdrawn.2", "withdrawn.2.1", "withdrawn.3"]


@pytest.mark.parametrize("damage", ["no graph", "no config"])
def test_the_first_version_of_a_model_is_withdrawn_if_it_is_to_blame(server: Server, capsys, damage: str) -> None:
    """With a version that Triton refuses, the server would not start again."""
    other = shutil.copytree(server.repository / "small", server.repository / "other")
    config = (other / "config.pbtxt").read_text().replace("small", "other")
    (other / "config.pbtxt").write_text(f"{config} no_such_field: 1" if damage == "no config" else config)
    if damage == "no graph":
        (other / "1" / "model.onnx").write_bytes(b"no graph")
        write_manifest(other / "1", read_manifest(other / "1"))
    assert load(server, model="other") == 1
    assert "other version 1" in capsys.readouterr().err
    assert (other / "1").is_dir() == (damage == "no config")
    if damage == "no graph":
        shutil.copy(server.repository / "small" / "1" / "model.onnx", other / "withdrawn.1")
        write_manifest(other / "withdrawn.1", read_manifest(other / "withdrawn.1"))
        assert load(server, "--version=1", model="other") == 0


def test_a_damaged_version_that_serves_is_not_taken_away(server: Server, capsys) -> None:
    (server.repository / "small" / "1" / "model.onnx").write_bytes(b"damaged")
    assert load(server) == 1
    assert "small/1/model.onnx is damaged" in capsys.readouterr().err
    assert names(server) == ["1"]


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ("small", ["--version=7"], "small has no version 7; it has 1, 4."),
        ("nowhere", [], "nowhere has no published version. `python -m export` publishes one"),
    ],
)
def test_what_is_not_there_is_said(server: Server, model: str, more: list[str], message: str, capsys) -> None:
    publish(server, 4).rename(server.repository / "small" / "withdrawn.4")
    assert load(server, *more, model=model) == 1
    assert message in capsys.readouterr().err
    assert names(server) == ["1", "withdrawn.4"]


def test_who_has_no_token_or_a_wrong_one_changes_nothing(server: Server, monkeypatch, tmp_path: Path, capsys) -> None:
    publish(server, 2)
    publish(server, 3)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))  # another user's
    assert load(server, "--version=2") == 1
    assert "there is no admin token for a server at" in capsys.readouterr().err
    monkeypatch.setenv(VARIABLE, "not-the-token-of-the-server")
    assert load(server, "--version=2") == 1
    assert "the admin token is another server's" in capsys.readouterr().err
    assert names(server) == ["1", "2", "3"]


def test_a_server_that_is_gone_changes_nothing(server: Server, monkeypatch, capsys) -> None:
    publish(server, 2)
    publish(server, 3)
    monkeypatch.setenv(VARIABLE, server.admin_token)
    server.kill()
    assert load(server, "--version=2") == 1
    assert "the server cannot be asked: " in capsys.readouterr().err
    assert names(server) == ["1", "2", "3"]


@pytest.mark.parametrize("is_withdrawn", [True, False])
def test_a_version_that_kills_triton_is_not_published_again_by_that(
    small_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_withdrawn: bool
) -> None:
    @contextmanager
    def asking(*_: object) -> Iterator[Mock]:
        dead = InferenceServerException("Socket closed", status="StatusCode.UNAVAILABLE")
        yield Mock(load_model=Mock(side_effect=dead))

    repository = shutil.copytree(small_repository, tmp_path / "repository")
    folder = repository / "small" / ("withdrawn.7" if is_withdrawn else "7")
    shutil.copytree(repository / "small" / "1", folder)
    monkeypatch.setenv(VARIABLE, "one-that-somebody-has-chosen")
    monkeypatch.setattr(serving.repository.loading, "asking", asking)
    monkeypatch.setattr(serving.repository.loading, "ready_versions", lambda *_: {"small": ["1"]})
    with pytest.raises(ServingError, match="Socket closed"):
        serving.repository.loading.load(repository, Addresses.free(), None, "small", 7)
    assert folder.is_dir(), "it lies where it lay"


def test_a_version_whose_tokenizer_is_not_kept_stays_withdrawn(small_repository: Path, tmp_path: Path) -> None:
    repository = shutil.copytree(small_repository, tmp_path / "repository")
    tokenizer = repository / "clickbert_tokenizer"
    for number in "123":
        shutil.copytree(repository / "small" / "1", tokenizer / number)
    (tokenizer / "config.pbtxt").write_text("version_policy { latest { num_versions: 2 } }")
    (repository / "small" / "1").rename(repository / "small" / "withdrawn.1")
    with pytest.raises(ServingError, match="the server keeps the newest, 3, 2"):
        serving.repository.loading.find(repository, "small", 1)
    assert (repository / "small" / "withdrawn.1").is_dir()


def test_what_is_damaged_of_the_new_versions_is_withdrawn_and_nothing_else(
    small_repository: Path, tmp_path: Path, capsys
) -> None:
    model = shutil.copytree(small_repository, tmp_path / "repository") / "small"
    for number in "234":
        shutil.copytree(model / "1", model / number)
    for number in "134":
        (model / number / "model.onnx").write_bytes(b"damaged")

    def names_after(*loaded: str) -> list[str]:
        serving.repository.loading.withdraw_refused(model.parent, {"small": list(loaded), "taken away": ["1"]}, "")
        return sorted(path.name for path in model.iterdir() if path.is_dir())

    assert names_after("4") == ["1", "2", "3", "4"], "what it had loaded is all that it can serve"
    assert names_after("1") == ["1", "2", "withdrawn.3", "withdrawn.4"], "2 is new and whole"
    assert capsys.readouterr().err.count("is damaged") == 2
    shutil.rmtree(model / "2")
    assert names_after() == ["1", "withdrawn.3", "withdrawn.4"], "there is nothing else to serve"


def test_a_repository_that_is_none_is_not_made(tmp_path: Path, capsys) -> None:
    assert main(["load", "small", f"--repository={tmp_path / 'typo'}"]) == 1
    assert f"{tmp_path / 'typo'} is no folder" in capsys.readouterr().err
    assert not (tmp_path / "typo").exists()


def test_a_server_that_ends_while_its_token_is_looked_for_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / f"{PREFIX}gone"
    monkeypatch.setattr(serving.access.admin, "own_folders", lambda: [gone])
    assert find_token(Addresses.free()) is None
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(serving.runtime.Path, "glob", lambda *_: [gone])
    assert own_folders() == []


def test_while_a_load_or_the_end_of_an_export_is_at_work_nothing_is_loaded(server: Server, capsys) -> None:
    with locked(server.repository):
        assert load(server) == 1
    assert "a load is at work in" in capsys.readouterr().err


def export(repository: Path, done: str) -> list[str]:
    """Exports `small`, with the files of its version 1, and does this when half a file is written."""
    model = repository / "small"
    code = (
        "import os, shutil, signal, sys; from pathlib import Path; from export.publish import staged\n"
        f"with staged(Path({str(repository)!r}), ['small'], {{}}) as (number, folders):\n"
        "    (folders['small'] / 'model.onnx').write_bytes(b'half of it')\n"
        f"    print(number, flush=True); {done}\n"
        f"    shutil.copytree({str(model / '1')!r}, folders['small'], dirs_exist_ok=True)"
    )
    return [sys.executable, "-c", code]


def test_during_an_export_a_rollback_succeeds_and_what_is_half_written_is_not_loaded(server: Server, capsys) -> None:
    publish(server, 2)
    assert load(server) == 0
    command = export(server.repository, "sys.stdin.read()")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "3\n"
        assert load(server, "--version=1") == 0, "the export goes on for minutes"
        assert load(server) == 0
        assert load(server, "--version=3") == 1
        assert "small has no version 3; it has 1, 2. " in capsys.readouterr().err
        process.communicate()
    assert process.returncode == 0
    assert names(server) == ["1", "3", "withdrawn.2"], "and nothing staged"
    assert load(server) == 0
    assert capsys.readouterr().out.endswith("serving: small version 3 is served\n")


def test_after_an_export_that_was_killed_the_newest_whole_version_is_loaded(server: Server, capsys) -> None:
    command = export(server.repository, "os.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run(command, check=False, capture_output=True).returncode < 0
    assert (server.repository / "small" / STAGING / "model.onnx").read_bytes() == b"half of it"
    publish(server, 2)
    assert load(server) == 0
    assert load(server, "--version=1") == 0
    assert subprocess.run(export(server.repository, "pass"), check=False).returncode == 0
    assert load(server) == 0
    assert capsys.readouterr().out.endswith("serving: small version 3 is served\n")


@pytest.mark.parametrize("is_withdrawn", [True, False])
def test_a_version_whose_plan_is_being_built_is_neither_loaded_nor_withdrawn(
    server: Server, is_withdrawn: bool, capsys
) -> None:
    being_built, older = publish(server, 3), publish(server, 2)
    if is_withdrawn:
        being_built = being_built.rename(being_built.with_name("withdrawn.3"))
    with held(being_built, "unused"):
        assert load(server, "--version=3") == 1
        assert "a plan of small version 3 is being built; wait for it" in capsys.readouterr().err
        assert being_built.is_dir()
        assert load(server, f"--version={older.name}") == 0, "another version need not wait"


def test_a_secured_server_is_loaded_with_its_folder(small_repository: Path, tmp_path: Path, capsys) -> None:
    repository, certs = shutil.copytree(small_repository, tmp_path / "repository"), make_certs(tmp_path / "certs")
    with serve(repository, secure=certs) as server:
        publish(server, 2)
        assert load(server) == 1
        wants_tls = "Socket closed (it has ended, or it wants TLS: give its --secure)"
        said = capsys.readouterr().err
        assert "the server cannot be asked: " in said and wants_tls in said
        assert main(["--health", f"--grpc-port={server.addresses.grpc_port}"]) == 1
        assert wants_tls in capsys.readouterr().out
        assert load(server, f"--secure={certs}") == 0


def test_the_environments_token_is_taken_by_both_sides(small_repository: Path, monkeypatch) -> None:
    monkeypatch.setenv(VARIABLE, "one-that-somebody-has-chosen")
    assert Server(small_repository, Addresses.free()).admin_token == "one-that-somebody-has-chosen"
    assert find_token(Addresses.free()) == "one-that-somebody-has-chosen"
    monkeypatch.setenv(VARIABLE, "with,comma:and=so on")
    assert main([f"--repository={small_repository}"]) == 1


def test_a_server_on_all_addresses_is_found_at_this_machines(small_repository: Path) -> None:
    addresses = Addresses.free("0.0.0.0")
    with serve(small_repository, addresses=addresses) as server:
        assert find_token(Addresses(grpc_port=addresses.grpc_port)) == server.admin_token
