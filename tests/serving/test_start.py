"""`python -m serving`: what it refuses before the start, with a sentence."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import numpy as np
import pytest

import serving.checks
import serving.triton
from serving.__main__ import main
from serving.server import Addresses, Server
from serving.triton import PYTHON, ServingError, find_triton
from tests.serving.command import options


@pytest.mark.parametrize(
    "flag",
    [
        "--grpc-port=1",
        "--http-port=1",
        "--allow-http=true",
        "--model-repository=x",
        "--model-store=x",
        "--load-model=y",
        "--model-config-name=z",
        "--grpc-restricted-protocol=health:a=b",
        "--grpc-use-ssl=true",
    ],
)
def test_flags_that_have_an_option_of_their_own_are_refused(small_repository: Path, flag: str, capsys) -> None:
    assert main([*options(small_repository, Addresses.free()), "--", flag]) == 1
    assert f"{flag.split('=', maxsplit=1)[0]} cannot be passed on" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["0", "70000", "-1", "http", ""])
def test_a_port_that_is_none_is_refused(port: str, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([f"--grpc-port={port}"])
    assert "a port is a number from 1 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--http-port", "--grpc-port", "--metrics-port"])
def test_a_taken_port_is_named_before_the_start(small_repository: Path, option: str, capsys) -> None:
    addresses = Addresses.free()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main([*options(small_repository, addresses), f"{option}={port}"]) == 1
    assert f"port {port} on 127.0.0.1 is taken" in capsys.readouterr().err


def test_an_address_of_another_machine_is_refused(small_repository: Path, capsys) -> None:
    assert main([*options(small_repository, Addresses.free()), "--address=192.0.2.1"]) == 1
    error = capsys.readouterr().err
    assert "cannot listen on 192.0.2.1" in error
    assert "give another --address" in error


def test_an_ipv6_address_without_ipv6_is_refused(small_repository: Path, monkeypatch, capsys) -> None:
    def no_ipv6(family: int = socket.AF_INET, *others: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return real(family, *others)

    real = socket.socket
    ports = options(small_repository, Addresses.free())
    monkeypatch.setattr(serving.checks.socket, "socket", no_ipv6)
    assert main([*ports, "--address=::"]) == 1
    assert "cannot listen on ::" in capsys.readouterr().err


def test_equal_ports_are_refused(small_repository: Path, capsys) -> None:
    assert main([f"--repository={small_repository}", "--http-port=9000", "--grpc-port=9000"]) == 1
    assert "ports must differ" in capsys.readouterr().err


def test_a_repository_without_published_models_says_what_to_do(tmp_path: Path, capsys) -> None:
    assert main([f"--repository={tmp_path}"]) == 1
    assert "publish one with `python -m export`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nowhere", "No such file"), ("file", "Not a directory"), ("loop", "Too many levels of symbolic links")],
)
def test_what_is_no_repository_is_refused_with_a_sentence(tmp_path: Path, name: str, reason: str, capsys) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    assert main([f"--repository={tmp_path / name}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / name} cannot be read ({reason}" in line
    assert "give --repository" in line


def test_a_config_that_cannot_be_read_is_named(small_repository: Path, tmp_path: Path, capsys) -> None:
    repository = shutil.copytree(small_repository, tmp_path / "repository")
    config = repository / "small" / "config.pbtxt"
    config.unlink()
    config.mkdir()
    assert main([f"--repository={repository}"]) == 1
    assert f"{config} cannot be read (Is a directory)" in capsys.readouterr().err


def test_a_model_whose_name_a_shell_would_change_is_refused(small_repository: Path, tmp_path: Path, capsys) -> None:
    repository = shutil.copytree(small_repository, tmp_path / "repository")
    (repository / "small").rename(repository / "two words")
    assert main([f"--repository={repository}"]) == 1
    assert "'two words' cannot be served" in capsys.readouterr().err


def test_a_python_model_is_refused_where_numpy_2_would_empty_its_tensors(
    small_repository: Path, tmp_path: Path
) -> None:
    if not find_triton().is_wheel or np.__version__.startswith("1."):
        pytest.skip("only the wheel's Triton with numpy 2 has this fault")
    repository = shutil.copytree(small_repository, tmp_path / "repository")
    (repository / "small" / "config.pbtxt").write_text('# a comment\nname: "small" backend: "python"')
    with pytest.raises(ServingError, match=r"small is a Python model.*'numpy<2'"):
        Server(repository, Addresses.free())


def test_a_missing_libpython_names_the_package(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(serving.checks, "missing_libraries", lambda *_: [f"libpython{PYTHON}.so.1.0"])
    assert main(["--check"]) == 1
    assert f"apt-get install libpython{PYTHON}" in capsys.readouterr().err
