"""A manifest is read back as it was written, or refused with its file's name and what to do."""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from release.manifest import Manifest, ManifestError, read_manifest, verify, write_manifest
from release.names import MANIFEST_FILE, MANIFEST_SUM_FILE
from tests.release.examples import EXPECTED, MANIFEST


@pytest.mark.parametrize("manifest", [MANIFEST, replace(MANIFEST, proof=None, calibration=None, keep_fp32=())])
def test_what_was_written_is_read_back_with_the_hashes_of_the_files(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    write_manifest(tmp_path, manifest)
    found = read_manifest(tmp_path)
    assert replace(found, created="", files={}) == manifest
    assert found.files == {"model.onnx": hashlib.sha256(b"graph").hexdigest()}
    assert found.created.endswith("+00:00")
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path).files == found.files, "a former manifest is not one of the version's files"


def test_a_version_is_verified_against_its_manifest(tmp_path: Path) -> None:
    for name in ("model.onnx", "pairs.txt"):
        (tmp_path / name).write_bytes(name.encode())
    write_manifest(tmp_path, MANIFEST)
    (tmp_path / "model.plan").write_bytes(b"built where it runs")
    assert verify(tmp_path) == read_manifest(tmp_path)
    command = ["sha256sum", "--check", MANIFEST_SUM_FILE]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.parametrize("name", ["model.onnx", "pairs.txt", MANIFEST_FILE, MANIFEST_SUM_FILE])
@pytest.mark.parametrize("content", [None, b"", b"else"])
def test_a_file_that_is_missing_or_damaged_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    for file in ("model.onnx", "pairs.txt"):
        (tmp_path / file).write_bytes(file.encode())
    write_manifest(tmp_path, MANIFEST)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    named = name if content != b"else" else name.removesuffix(".sha256")  # which of the two is wrong nobody knows
    with pytest.raises(ManifestError, match=f"^{tmp_path / named} (is damaged|cannot be read)"):
        verify(tmp_path)


def change(folder: Path, **fields: Any) -> None:
    """Changes fields of the manifest's file; `...` removes one."""
    content = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8")) | fields
    kept = {name: value for name, value in content.items() if value is not ...}
    (folder / MANIFEST_FILE).write_text(json.dumps(kept), encoding="utf-8")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schema": 2}, "has schema 2, this release reads 1"),
        ({"schema": ...}, "has schema None, this release reads 1"),
        ({"max_length": ...}, "it has missing or unexpected fields: max_length"),
        ({"max_lenght": 3}, "it has missing or unexpected fields: max_lenght"),
        ({"max_length": "512"}, "max_length is '512', it must be int"),
        ({"max_length": True}, "max_length is True, it must be int"),
        ({"max_length": None}, "max_length is None, it must be int"),
        ({"labels": "click"}, "labels is 'click', it must be"),
        ({"labels": ["click", 1]}, r"labels\[1\] is 1, it must be str"),
        (
            {"expected": {"scores": {}}},
            "expected has missing or unexpected fields: candidates, tokens, truncated, unknown",
        ),
        ({"expected": asdict(EXPECTED) | {"truncated": 2.0}}, "truncated is 2.0, expected a share from 0 to 1"),
        ({"checkpoint": []}, r"checkpoint is \[\], it must be"),
        ({"checkpoint": {"name": "x"}}, "checkpoint has missing or unexpected fields: files, sha256"),
        (
            {"evaluation": {"file": "x", "sha256": "y", "pytorch_metrics": {"auc": "0.7"}}},
            "pytorch_metrics.auc is '0.7'",
        ),
    ],
)
def test_a_field_that_is_wrong_is_named(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    write_manifest(tmp_path, MANIFEST)
    change(tmp_path, **fields)
    with pytest.raises(ManifestError, match=rf"manifest\.json.*{message}.*; export the model again") as caught:
        read_manifest(tmp_path)
    assert str(tmp_path / MANIFEST_FILE) in str(caught.value)


def test_a_manifest_of_a_former_release_expects_nothing(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    change(tmp_path, expected=..., user_tokens=...)
    assert read_manifest(tmp_path).expected is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"text"', None])
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(
        ManifestError, match=r"manifest\.json (cannot be read|has schema None).*; export the model again"
    ):
        read_manifest(tmp_path)


def test_whole_numbers_are_floats_where_a_float_is_due(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    change(tmp_path, evaluation={"file": "x", "sha256": "y", "pytorch_metrics": {"auc": 1}})
    assert read_manifest(tmp_path).evaluation.pytorch_metrics == {"auc": 1.0}
