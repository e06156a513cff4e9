"""The record beside every published model: what it was made from, by which tools, and how it was proved."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from release.files import sha256
from release.names import MANIFEST_FILE
from release.records import RecordError, read_record, to_json

SCHEMA = 1


class ManifestError(ValueError):
    """A version has no manifest that this release can read; the message says what to do."""


@dataclass(frozen=True)
class CheckpointRecord:
    """The checkpoint: its folder's name, the hash of each file that was read, and one hash over them all."""

    name: str
    sha256: str
    files: dict[str, str]


@dataclass(frozen=True)
class EvaluationRecord:
    """The click log that the gates looked at, and what PyTorch scored on it."""

    file: str
    sha256: str
    pytorch_metrics: dict[str, float]


@dataclass(frozen=True)
class GateRecord:
    """One figure that was held against its limit."""

    name: str
    value: float
    limit: float
    passed: bool


@dataclass(frozen=True)
class Proof:
    """What the gates found on an engine, its size and its speed.

    `parity` and `comparison` are the fields of `export.verify.parity.Parity` and `export.verify.comparison.Comparison`.
    """

    engine: str
    precision: str
    parity: dict[str, float]
    comparison: dict[str, Any]
    gate: tuple[GateRecord, ...]
    largest_fp16_activations: dict[str, float]
    bytes: int
    cpu_pairs_per_second: float | None  # None: it does not run on CPUs


@dataclass(frozen=True)
class Manifest:
    """One published version of one model."""

    model: str
    version: int
    checkpoint: CheckpointRecord
    labels: tuple[str, ...]
    click_label: int
    max_length: int
    evaluation: EvaluationRecord
    calibration: str | None  # the file's name; None: no engine was fitted to one
    keep_fp32: tuple[str, ...]
    tokenizer_sha256: str
    tools: dict[str, str]  # version by name
    proof: Proof | None = None  # None: the tokenizer
    created: str = ""
    files: dict[str, str] = field(default_factory=dict)  # hash by name
    schema: int = SCHEMA


def hash_checkpoint(folder: Path) -> dict[str, Any]:
    """The hashes of a checkpoint's weights, config and tokenizer, and one over them all.

    Returns:
        {"name": folder name, "sha256": over the sorted lines "hash  name", "files": {name: hash}}
    """
    files = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".json")}
    lines = "".join(f"{digest}  {name}\n" for name, digest in files.items())
    return {"name": folder.resolve().name, "sha256": hashlib.sha256(lines.encode()).hexdigest(), "files": files}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest into a version's folder, with the time and the hashes of the files that lie there."""
    files = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST_FILE}
    complete = replace(manifest, created=datetime.now(UTC).isoformat(timespec="seconds"), files=files)
    (folder / MANIFEST_FILE).write_bytes(to_json(complete))


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a published version.

    Raises:
        ManifestError: it is missing, damaged or of another release.
    """
    try:
        return read_record(Manifest, folder / MANIFEST_FILE, SCHEMA)
    except RecordError as exc:
        raise ManifestError(f"{exc}; export the model again with `python -m export`") from exc
