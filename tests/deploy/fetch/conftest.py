"""A small published repository to be fetched: a click model and its tokenizer, with real manifests and configs."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from release.manifest import write_manifest
from release.names import TOKENIZER_MODEL
from release.versions import published
from tests.release.examples import MANIFEST

ROOT = Path(__file__).parents[3]
MODEL = "clickbert_onnx"
SIZE = 3_000_000  # bytes of the model, so that it takes some chunks


@pytest.fixture(autouse=True)
def own_signal() -> Iterator[None]:
    """The command takes SIGTERM over, in a test that calls it in this process, too."""
    former = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, former)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Version 3, and what does not belong to it: one that was withdrawn, and one that is being written."""
    folder = tmp_path / "published"
    for model, size in ((TOKENIZER_MODEL, 1000), (MODEL, SIZE)):
        numbers = [path.name for path in published(ROOT / "model_repository", model)]
        ignored = shutil.ignore_patterns(*numbers, "withdrawn.*", "*.staging", ".staging")
        shutil.copytree(ROOT / "model_repository" / model, folder / model, ignore=ignored)
        for number in ("3", "withdrawn.4", ".staging"):
            (folder / model / number).mkdir()
            (folder / model / number / "model.onnx").write_bytes(random.Random(model).randbytes(size))
        write_manifest(folder / model / "3", replace(MANIFEST, model=model, version=3))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def expected(repository: Path, source: str) -> dict[str, bytes]:
    """What a fetch must make of the repository."""
    kept = {
        name: data for name, data in content(repository).items() if "withdrawn." not in name and "staging" not in name
    }
    return kept | {"fetched-from": f"{source}\n".encode()}


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def flip(path: Path) -> None:
    """Changes one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


# What an operator may do to what is published, and what the error must name.
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (lambda path: flip(path / MODEL / "3" / "model.onnx"), f"{MODEL}/3/model.onnx is damaged"),
    "a missing file": (
        lambda path: (path / MODEL / "3" / "model.onnx").unlink(),
        f"{MODEL}/3/model.onnx cannot be read",
    ),
    "a missing config": (lambda path: (path / MODEL / "config.pbtxt").unlink(), f"{MODEL}/config.pbtxt cannot be read"),
    "no tokenizer's version": (
        lambda path: shutil.rmtree(path / TOKENIZER_MODEL / "3"),
        f"{TOKENIZER_MODEL}/3/manifest.json cannot be read",
    ),
    "a copy cut short": (
        lambda path: (path / MODEL / "3" / "manifest.json.sha256").unlink(),
        f"{MODEL}/3/manifest.json.sha256 cannot be read",
    ),
    "no model": (lambda path: shutil.rmtree(path / MODEL), "holds no published click model"),
}


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path, int], Path]]:
    """Mounts a file system with room for that many bytes at a folder."""
    mounted: list[Path] = []

    def mount(folder: Path, size: int) -> Path:
        folder.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(words, capture_output=True, check=False).returncode:
            pytest.skip("nobody may mount a small file system here: no disk is full")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)
