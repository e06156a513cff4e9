"""Certificates for tests with TLS, made by the `openssl` command. Where that is missing, the test is skipped."""

import shutil
import subprocess
from pathlib import Path

import pytest


class Authority:
    """A certificate authority of the test's own, with its files in `folder`."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("the openssl command is not installed: no certificates, so TLS is not checked")
        folder.mkdir()
        self.folder, self.file = folder, folder / "authority.pem"
        self._run(
            "req", "-x509", "-nodes", "-keyout", "authority.key", "-out", self.file, "-days", "2", "-subj", "/CN=a"
        )

    def issue(self, names: str = "DNS:localhost,IP:127.0.0.1", days: int = 2) -> tuple[Path, Path]:
        """Return the files of a key and a certificate for these names, that many days valid."""
        (self.folder / "names").write_text(f"subjectAltName={names}")
        self._run("req", "-nodes", "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=server")
        signed = ["-CA", self.file, "-CAkey", "authority.key", "-CAcreateserial", "-extfile", "names", "-days", days]
        self._run("x509", "-req", "-in", "server.csr", *signed, "-out", "server.pem")
        return self.folder / "server.key", self.folder / "server.pem"

    def _run(self, *arguments: object) -> None:
        if arguments[0] == "req":
            arguments = (*arguments, "-newkey", "rsa:2048")
        command = ["openssl", *map(str, arguments)]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
