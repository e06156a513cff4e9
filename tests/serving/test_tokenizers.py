"""Tokenizers of former releases, which lack an output of the config: no obstacle to packed_cpu, told to others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from release.names import HEADS_JSON, TOKENIZER_MODEL
from serving.repository.models import published_models
from serving.triton import ServingError, Triton


@pytest.fixture
def repository(published_repository: Path, tmp_path: Path) -> Path:
    """The newest tokenizer is of this release, two others are not."""
    folder = tmp_path / "repository" / TOKENIZER_MODEL
    shutil.copytree(published_repository / TOKENIZER_MODEL, folder)
    for number in ("8", "10"):
        shutil.copytree(folder / "1", folder / number)
    for number in ("1", "8"):
        graph = folder / number / "model.onnx"
        graph.write_bytes(graph.read_bytes().replace(HEADS_JSON.encode(), b"something!"))
    return folder.parent


@pytest.fixture
def with_onnxruntime(tmp_path: Path) -> Triton:
    """NVIDIA's Triton, as far as the checks look at it."""
    library = tmp_path / "triton" / "backends" / "onnxruntime" / "libtriton_onnxruntime.so"
    library.parent.mkdir(parents=True)
    library.touch()
    return Triton(tmp_path / "triton" / "bin" / "tritonserver", tmp_path / "triton" / "backends", None)


def test_the_cpp_backend_would_end_so_it_is_told_which_to_move_away(repository: Path, with_onnxruntime: Triton) -> None:
    folder = repository / TOKENIZER_MODEL
    with pytest.raises(ServingError, match=rf"^{folder}/1, {folder}/8: .*{HEADS_JSON}.* then move these folders away"):
        published_models(repository, with_onnxruntime)
    for number in ("1", "8"):
        shutil.rmtree(folder / number)
    assert published_models(repository, with_onnxruntime) == [TOKENIZER_MODEL]


def test_packed_cpu_serves_them(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "backends" / "python").mkdir(parents=True)
    bare = Triton(tmp_path / "bin" / "tritonserver", tmp_path / "backends", None)
    assert published_models(repository, bare) == [TOKENIZER_MODEL]


def test_a_config_of_a_former_release_is_served_as_it_is(repository: Path, with_onnxruntime: Triton) -> None:
    config = repository / TOKENIZER_MODEL / "config.pbtxt"
    config.write_text(config.read_text(encoding="utf-8").replace(HEADS_JSON, "labels_json"), encoding="utf-8")
    assert published_models(repository, with_onnxruntime) == [TOKENIZER_MODEL]
