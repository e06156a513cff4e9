"""The record that lies beside every published model: what it was made of, by which tools, and how it was proved."""

from __future__ import annotations

import hashlib
import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from release.files import sha256
from release.names import MANIFEST_FILE

TOOLS = ("torch", "transformers", "tokenizers", "onnx", "onnxscript", "onnxruntime", "numpy")


def hash_checkpoint(folder: Path) -> dict[str, Any]:
    """The hashes of a checkpoint's weights, config and tokenizer, and one over them all.

    Returns:
        {"name": folder name, "sha256": over the sorted lines "hash  name", "files": {name: hash}}
    """
    files = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".json")}
    lines = "".join(f"{digest}  {name}\n" for name, digest in files.items())
    return {"name": folder.resolve().name, "sha256": hashlib.sha256(lines.encode()).hexdigest(), "files": files}


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
