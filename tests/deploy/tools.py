"""The tools that check what is rolled out: those of .venv-deploy (`make deploy-tools`), and kubectl from elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def tool(name: str) -> str:
    """The path of one of them; skips the test where it is missing."""
    found = shutil.which(name, path=str(ROOT / ".venv-deploy" / "bin")) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (`make deploy-tools` brings all but kubectl): this is not checked")
    return found
