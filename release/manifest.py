"""The record beside every published model: what it was made from, by which tools, and how it was proved."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from release.expected import Expected
from release.files import sha256
from release.names import MANIFEST_FILE, MANIFEST_SUM_FILE
from release.records import LATER, RecordError, read_record, to_json

SCHEMA = 1


class ManifestError(ValueError):
    """A version has no manifest that this release can read, or is not what it describes; says what to do."""


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
    user_tokens: int | None = field(default=None, metadata=LATER)  # that a user text keeps; None: full attention
    expected: Expected | None = field(default=None, metadata=LATER)  # None: the tokenizer
    created: str = ""
    files: dict[str, str] = field(default_factory=dict)  # hash by name
    schema: int = SCHEMA


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest into a version's folder, with the time and the hashes of the files that lie there."""
    own = (MANIFEST_FILE, MANIFEST_SUM_FILE)
    files = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name not in own}
    complete = replace(manifest, created=datetime.now(UTC).isoformat(timespec="seconds"), files=files)
    (folder / MANIFEST_FILE).write_bytes(to_json(complete))
    (folder / MANIFEST_SUM_FILE).write_text(f"{sha256(folder / MANIFEST_FILE)}  {MANIFEST_FILE}\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a published version.

    Raises:
        ManifestError: it is missing, damaged or of another release.
    """
    try:
        return read_record(Manifest, folder / MANIFEST_FILE, SCHEMA)
    except RecordError as exc:
        raise ManifestError(f"{exc}; export the model again with `python -m export`") from exc


def verify(folder: Path) -> Manifest:
    """Reads the manifest of a published version, and holds it and every file that it lists against their hashes.

    That finds damage: a flipped bit, a copy that was cut short. It is no signature: who can write into the folder can
    write a manifest that fits. What the manifest does not list, such as a plan that was built here, is not looked at.

    Raises:
        ManifestError: a file is missing, cannot be read, or is not the one that was published; names it.
    """
    again = "copy the version again from where it was exported, or export it again with `python -m export`"
    if hash_of(folder / MANIFEST_FILE, again) != expected_sum(folder):
        raise ManifestError(
            f"{folder / MANIFEST_FILE} is damaged: its SHA-256 is not that in {MANIFEST_SUM_FILE}; {again}"
        )
    manifest = read_manifest(folder)
    for name, published in manifest.files.items():
        if hash_of(folder / name, again) != published:
            raise ManifestError(f"{folder / name} is damaged: its SHA-256 is not that in {MANIFEST_FILE}; {again}")
    return manifest


def expected_sum(folder: Path) -> str:
    """The hash that a version's manifest must have. Raises ManifestError."""
    file = folder / MANIFEST_SUM_FILE
    try:
        return file.read_bytes().split(maxsplit=1)[0].decode("ascii")
    except (OSError, IndexError, UnicodeDecodeError) as exc:
        raise ManifestError(
            f"{file} cannot be read ({type(exc).__name__}): the version was copied in part, or published by a former "
            f"release; export it again, or, if you trust the folder, run `cd {shlex.quote(str(folder))} && sha256sum "
            f"{MANIFEST_FILE} > {MANIFEST_SUM_FILE}`"
        ) from exc


def hash_of(path: Path, advice: str) -> str:
    """The file's hash. Raises ManifestError."""
    try:
        return sha256(path)
    except OSError as exc:
        raise ManifestError(f"{path} cannot be read ({exc.strerror}); {advice}") from exc
