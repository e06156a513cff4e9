"""Certificates and a token as `make certs` writes them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "make-certs.sh"


def make_certs(folder: Path, authority: Path | None = None, days: int = 2) -> Path:
    """A folder for `--secure`; returns it.

    Args:
        authority: another such folder, whose authority signs here, too.
        days: how long the certificates are valid; -1: they expired yesterday.
    """
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is not installed: no certificates, so TLS is not checked")
    if authority:
        folder.mkdir()
        for name in ("ca.pem", "ca.key", "token"):
            shutil.copy(authority / name, folder)
    environment = os.environ | {"DAYS": str(days)}
    done = subprocess.run([SCRIPT, folder], env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return folder
