"""The record that lies beside every published model: what it was made of, by which tools, and how it was proved."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from release.files import sha256
from release.names import MANIFEST_FILE

TOOLS = ("torch", "transformers", "tokenizers", "onnx", "onnxscript", "onnxruntime", "numpy")


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Writes `facts`, the hashes of the files that lie in `folder`, the tools' versions and the time into it."""
    manifest = {
        **facts,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": {path.name: sha256(path) for path in sorted(folder.iterdir())},
        "tools": {"python": platform.python_version(), **{tool: version(tool) for tool in TOOLS}},
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest of a published version back.

    Raises:
        FileNotFoundError, ValueError: there is none, or it is not a JSON object.
    """
    manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    if not isinstance(manifest, dict):
        raise ValueError(f"{folder / MANIFEST_FILE} holds no JSON object")
    return manifest
