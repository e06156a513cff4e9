"""A manifest is read back as it was written, or refused with its file's name and what to do."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from release.manifest import Manifest, ManifestError, read_manifest, write_manifest
from release.names import MANIFEST_FILE
from tests.release.examples import MANIFEST


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
