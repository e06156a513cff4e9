"""deploy/make-certs.sh: certificates that are made anew are for the same names."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.serving.certs import SCRIPT, make_certs


def names(folder: Path) -> str:
    command = ["openssl", "x509", "-in", folder / "server.pem", "-noout", "-ext", "subjectAltName"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[1].strip()


@pytest.mark.parametrize("given", ["IP:10.0.0.7", "DNS:ranking.example,DNS:other.example,IP:10.0.0.7"])
def test_a_renewal_keeps_the_names_unless_others_are_given(tmp_path: Path, given: str) -> None:
    folder = make_certs(tmp_path / "certs")
    assert names(folder).startswith("DNS:localhost, IP Address:127.0.0.1")
    subprocess.run([SCRIPT, folder, given], check=True, capture_output=True)
    first = (folder / "server.pem").read_text()
    make_certs(folder)
    assert (folder / "server.pem").read_text() != first
    assert names(folder) == given.replace("IP:", "IP Address:").replace(",", ", ")


def test_a_renewal_keeps_what_was_given_out_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "certs"

    def made() -> str:
        return subprocess.run([SCRIPT, folder], check=True, capture_output=True, text=True).stdout

    assert "kept" not in made()
    first = {name: (folder / name).read_text() for name in ("ca.pem", "token", "tokens")}
    assert "kept as they were: ca.pem token tokens" in made()
    assert {name: (folder / name).read_text() for name in first} == first
    (folder / "token").unlink()
    assert "kept as they were: ca.pem tokens" in made()
    assert (folder / "token").read_text() != first["token"]
    assert (folder / "token").stat().st_mode & 0o777 == 0o600
