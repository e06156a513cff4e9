"""What is verified before Triton loads it: the versions that it would load, and the tokenizers that belong to them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from release.manifest import read_manifest, write_manifest
from release.names import TOKENIZER_MODEL
from serving.repository.verification import loaded_versions, verify_models, verify_version
from serving.triton import ServingError

MODEL = "clickbert_onnx"


@pytest.fixture
def repository(published_repository: Path, tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("clickbert_onnx_int8")
    return shutil.copytree(published_repository, tmp_path / "repository", ignore=ignored)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", ["12"]),
        ("version_policy { latest { num_versions: 2 } }", ["12", "9"]),
        ("version_policy: { all {} }", ["12", "9", "1"]),
        ("version_policy { specific { versions: [ 1, 9, 40 ] } }", ["9", "1"]),
    ],
)
def test_the_config_says_which_versions_triton_loads(tmp_path: Path, policy: str, expected: list[str]) -> None:
    for name in ("1", "9", "12", "withdrawn.13"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").touch()
    (tmp_path / "config.pbtxt").write_text(f'name: "m" {policy}  # a comment')
    assert [version.name for version in loaded_versions(tmp_path)] == expected


def test_a_damaged_version_is_refused_if_triton_would_load_it(repository: Path) -> None:
    shutil.copytree(repository / MODEL / "1", repository / MODEL / "2")
    shutil.copytree(repository / TOKENIZER_MODEL / "1", repository / TOKENIZER_MODEL / "2")
    (repository / MODEL / "1" / "model.onnx").write_bytes(b"damaged")
    verify_models(repository, [MODEL, TOKENIZER_MODEL])
    (repository / TOKENIZER_MODEL / "1" / "model.onnx").unlink()  # of an older version, and kept for it
    (repository / MODEL / "2" / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(ServingError) as caught:
        verify_models(repository, [MODEL, TOKENIZER_MODEL])
    assert f"{MODEL} version 2 is refused: {repository}/{MODEL}/2/model.onnx is damaged" in str(caught.value)
    assert f"{repository}/{TOKENIZER_MODEL}/1/model.onnx cannot be read" in str(caught.value), "all are named"


def test_a_version_without_its_tokenizer_is_refused(repository: Path) -> None:
    shutil.copytree(repository / MODEL / "1", repository / MODEL / "2")
    with pytest.raises(ServingError, match=f"{MODEL} version 2 is refused: {repository}/{TOKENIZER_MODEL}/2/"):
        verify_version(repository / MODEL / "2")


def test_a_version_with_another_ones_tokenizer_is_refused(repository: Path) -> None:
    tokenizer = repository / TOKENIZER_MODEL / "1"
    write_manifest(tokenizer, replace(read_manifest(tokenizer), tokenizer_sha256="another"))
    with pytest.raises(ServingError, match=rf"{tokenizer} is not the tokenizer of {repository}/{MODEL}/1"):
        verify_version(repository / MODEL / "1")


def test_a_version_that_was_copied_in_part_says_what_to_do(repository: Path) -> None:
    (repository / MODEL / "1" / "manifest.json.sha256").unlink()
    with pytest.raises(ServingError, match=r"copied in part, .*sha256sum manifest.json > manifest.json.sha256"):
        verify_version(repository / MODEL / "1")
